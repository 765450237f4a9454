//! The command lines of `labels import`, `export` and `suggest`.

use crate::recovery::Since;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// How a file of labels is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LabelFormat {
    /// The reference's training samples: an array, or one object a line
    Json,
    /// A header that names the columns, and a vote a line
    Csv,
}

/// How suggestions are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SuggestionFormat {
    /// One JSON object a line
    Jsonl,
    /// A sheet to fill in, which `labels import` reads
    Csv,
}

/// Store the labels of a file as votes
///
/// Reads the reference's JSON of training samples, or CSV whose header names `bucket`, `key`, `etag`,
/// `rater`, `labelled_at` and `score` or `votes` (raters counted by bin). Of a file with errors nothing is
/// imported unless `--skip-invalid` is given; each is named with its line. The same file may be imported
/// again: a vote that is already there changes nothing. Exit codes: 0 done, 3 some labels were refused, 2
/// usage or configuration, 69 Postgres does not answer.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// The file
    pub file: PathBuf,

    /// Left out, it is told by the file's name
    #[arg(long, value_enum)]
    pub format: Option<LabelFormat>,

    /// Check the file, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Import what is right, and pass over the rest
    #[arg(long)]
    pub skip_invalid: bool,

    /// The bucket of images that are named by a path
    #[arg(long)]
    pub bucket: Option<String>,

    /// What the keys of such images begin with
    #[arg(long, default_value = "", requires = "bucket")]
    pub prefix: String,

    /// Who rated, where the file doesn't say
    #[arg(long, default_value = "import")]
    pub rater: String,

    /// When, where the file doesn't say: `2026-11-23`, `2026-11-23T05:44:00Z`, or `90m`, `6h`, `7d` ago. Left out,
    /// it is when the file was changed last
    #[arg(long, value_name = "TIME")]
    pub labelled_at: Option<Since>,
}

/// Write the labels in Postgres as the reference's JSON of training samples
///
/// The image of a sample is `bucket/key`, a path below a folder that holds the buckets. A field `label`, which
/// the reference does not read, keeps every vote, so that `labels import` restores exactly what was exported.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// The file to write; an existing one is replaced once all is written
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// Only labels with a vote since: `2026-11-23`, `2026-11-23T05:44:00Z`, or `90m`, `6h`, `7d` ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<Since>,

    /// Leave the votes and their raters' names out: just how many raters there were
    #[arg(long)]
    pub anonymous: bool,
}

/// Say which photos to label next
///
/// Of the scored photos that nobody has rated, those where the model is least sure, where model versions
/// disagree most and whose scores are rarest, by turns, and every tenth drawn at random.
#[derive(Args, Clone, Debug)]
pub struct SuggestArgs {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,

    /// How they are written
    #[arg(long, value_enum, default_value = "jsonl")]
    pub format: SuggestionFormat,

    /// Decides what is drawn at random
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}
