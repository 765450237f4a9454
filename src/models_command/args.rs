//! The command line of `roc4mllm models`.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// What to do with versions of the model. A VERSION is what `list` shows, what a score's
/// `model_version` says, or the first digits of either.
#[derive(Clone, Debug, Subcommand)]
pub enum ModelsCommand {
    /// Every registered version, the champion first
    List(Shown),
    /// One version: where it comes from, its files and its metrics
    Show {
        #[arg(value_name = "VERSION")]
        named: String,
        #[command(flatten)]
        shown: Shown,
    },
    /// Upload a checkpoint folder to `registry.publish_to` and register it
    ///
    /// Stopped at any point, the same command goes on where it was.
    Publish(PublishArgs),
    /// Make a version the champion, which workers switch to
    Promote {
        #[arg(value_name = "VERSION")]
        named: String,
        /// Also if it was rejected
        #[arg(long)]
        force: bool,
    },
    /// Return to the champion before the present one
    Rollback,
    /// Note that a version is not good enough, and end its trials
    Reject {
        #[arg(value_name = "VERSION")]
        named: String,
    },
    /// Have a candidate score a share of the keys in the champion's place
    Canary {
        #[arg(value_name = "VERSION")]
        named: String,
        /// From 0 to 1; 0 ends it
        #[arg(value_name = "SHARE")]
        share: f64,
    },
    /// Have a candidate score a share of the items beside the champion, without publishing
    Shadow {
        #[arg(value_name = "VERSION")]
        named: String,
        /// From 0 to 1; 0 ends it
        #[arg(value_name = "SHARE")]
        share: f64,
    },
}

/// How versions are shown.
#[derive(Args, Clone, Copy, Debug)]
pub struct Shown {
    /// How they are written to standard output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// How versions are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people
    #[default]
    Table,
    /// One JSON document
    Json,
}

/// What is published, and what is said of it.
#[derive(Args, Clone, Debug)]
pub struct PublishArgs {
    /// Checkpoint folder in Hugging Face layout
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    /// Make it the champion as well; with --gate, only if it is accepted
    #[arg(long)]
    pub promote: bool,

    /// Judge it against the champion first, by the photos and the gate of `retrain`: it is registered as
    /// rejected, or as a candidate. Whether it has learned from these photos nobody checks
    #[arg(long)]
    pub gate: bool,

    /// It was trained on the labels that are in Postgres now: `retrain` takes only later ones for new to it
    #[arg(long)]
    pub trained_on_labels: bool,

    /// The version that it was trained from
    #[arg(long, value_name = "VERSION")]
    pub parent: Option<String>,

    /// A file with a JSON object: what was measured of it
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
}
