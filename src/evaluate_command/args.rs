//! The command line of `roc4mllm evaluate`.

use crate::{evaluate::BootstrapSettings, registry::CheckpointSource, score_command::args::ScoringArgs};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Say how well a checkpoint predicts labels, and whether better than another one
///
/// Every metric comes with its bootstrap interval; with --against, so does the difference on the photos that
/// both scored. A quantised model (--quantize) is also held against itself at full precision: score error and
/// rank correlation. Exit codes: 0 all scored, 3 some photos or labels rejected, 2 usage, configuration or no
/// label found, 1 anything else.
#[derive(Args, Clone, Debug)]
pub struct EvaluateArgs {
    /// Checkpoint in Hugging Face layout: a folder, or s3://bucket/prefix
    #[arg(long, value_name = "DIR|S3")]
    pub checkpoint: CheckpointSource,

    /// Labels: CSV with a header, or JSON as the reference trains on it
    #[arg(long, value_name = "FILE")]
    pub labels: PathBuf,

    /// Where the labels' photos are; by default beside the file of labels, or in S3 where labels name buckets
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,

    /// The champion: a checkpoint to compare with on the same photos
    #[arg(long, value_name = "DIR|S3")]
    pub against: Option<CheckpointSource>,

    #[command(flatten)]
    pub scoring: ScoringArgs,

    /// How results are written to standard output
    #[arg(long, value_enum, default_value_t)]
    pub format: EvaluateFormat,

    /// Also write a self-contained HTML page with charts and the worst mistakes
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,

    /// Draws of the bootstrap; 0 leaves intervals out
    #[arg(long, value_name = "N", default_value_t = BootstrapSettings::default().resamples, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub resamples: u32,

    /// How often an interval is to hold the true value
    #[arg(long, value_name = "SHARE", default_value_t = BootstrapSettings::default().confidence, value_parser = confidence)]
    pub confidence: f64,

    /// Which draws of the bootstrap
    #[arg(long, value_name = "N", default_value_t = BootstrapSettings::default().seed)]
    pub seed: u64,
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EvaluateFormat {
    /// Aligned columns for people
    #[default]
    Table,
    /// One JSON object with everything, each photo included
    Json,
}

impl EvaluateArgs {
    pub fn bootstrap(&self) -> BootstrapSettings {
        BootstrapSettings { resamples: self.resamples, confidence: self.confidence, seed: self.seed }
    }
}

fn confidence(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.5..1.0).contains(&share) => Ok(share),
        _ => Err("give a share from 0.5 to below 1, such as 0.95".into()),
    }
}
