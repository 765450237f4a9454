//! The command line of `roc4mllm backfill`.

use super::pacing::Rate;
use clap::Args;

/// Enqueue objects to be scored, behind live uploads: all under an S3 prefix, or all in Postgres
///
/// Stopped at any point, the same command goes on where it was. Exit codes: 0 all enqueued, 3 another
/// run of the same backfill was noticed, 2 usage or configuration, 69 Kafka, S3 or Postgres does not
/// answer.
#[derive(Args, Clone, Debug)]
pub struct BackfillArgs {
    /// Every object whose key begins like this
    #[arg(
        long,
        value_name = "s3://BUCKET/PREFIX",
        required_unless_present = "stored",
        conflicts_with_all = ["stored", "not_version"]
    )]
    pub prefix: Option<String>,

    /// Every object in Postgres that has no row of the model version in `model.checkpoint`
    #[arg(long)]
    pub stored: bool,

    /// With `--stored`: of this model version instead, as `models` and rows name it
    #[arg(long, value_name = "VERSION", requires = "stored")]
    pub not_version: Option<String>,

    /// How many objects are enqueued, such as `50/s` or `600/min`
    #[arg(long, value_name = "N/s")]
    pub rate: Rate,

    /// Where to, instead of `kafka.backfill_topic`
    #[arg(long)]
    pub topic: Option<String>,

    /// Begin anew, though an earlier run has got further or has ended
    #[arg(long)]
    pub restart: bool,
}
