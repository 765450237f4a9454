//! What can be typed: the commands and their options.

use super::failure::Failure;
use clap::{Args, Parser, Subcommand};
use roc4mllm::{
    backfill::BackfillArgs,
    config::{self, Config},
    evaluate_command, labels_command,
    model::checkpoint,
    models_command::ModelsCommand,
    plan::PlanArgs,
    recovery::{RedriveArgs, RepublishArgs, RestoreRowsArgs},
    score_command,
    telemetry::logs::LogFormat,
    train::TrainArgs,
};
use std::path::PathBuf;

/// Aesthetic scores for every photo: a Kafka-driven ROC4MLLM worker and a one-command scorer.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// How log lines look; they go to standard error
    #[arg(long, global = true, value_enum)]
    pub log_format: Option<LogFormat>,
    /// Which log lines are written: a level, or `target=level` pairs
    #[arg(long, global = true, value_name = "FILTER")]
    pub log_level: Option<String>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Score photos, folders and s3:// prefixes, with no service needed
    Score(score_command::ScoreArgs),
    /// Say how well a checkpoint predicts labels, and whether better than another one
    Evaluate(evaluate_command::EvaluateArgs),
    /// Score what Kafka announces: fetch from S3, write to the output topic and to Postgres
    Worker(ConfigArgs),
    /// Decode and score what a worker suspects; started by the worker alone
    #[command(hide = true)]
    QuarantineChild,
    #[cfg(feature = "dev")]
    Demo(roc4mllm::dev::demo::DemoArgs),
    /// Enqueue objects to be scored, behind live uploads: all under an S3 prefix, or all in Postgres
    Backfill {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        args: BackfillArgs,
    },
    /// Write the rows that the output topic has and Postgres lacks
    BackfillPg {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        args: RestoreRowsArgs,
    },
    /// Write the outputs that rows in Postgres have and the output topic lacks
    Republish {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        args: RepublishArgs,
    },
    /// Put dead letters back to the topic they came from, at most three times each
    Redrive {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        args: RedriveArgs,
    },
    Train(TrainArgs),
    /// Train a challenger on new labels, and have it follow the champion if it is better
    ///
    /// Stopped at any point, the same command goes on where it was. Exit codes: 0 accepted, rejected or nothing
    /// to do, 2 usage or configuration, 69 S3 or Postgres does not answer, 75 stopped or overtaken by another
    /// process: to be started again, 1 anything else.
    Retrain {
        #[command(flatten)]
        config: ConfigArgs,
        /// Exit with 10 if the challenger was rejected, and with 11 if there was nothing to do
        #[arg(long)]
        exit_code: bool,
    },
    /// Import and export what people said of photos, and say what to label next
    #[command(subcommand)]
    Labels(LabelsCommand),
    /// Bring the Postgres schema up to date
    Migrate(ConfigArgs),
    /// Print the effective configuration, secrets redacted, and what it would connect to
    CheckConfig {
        #[command(flatten)]
        config: ConfigArgs,
        /// Try every connection
        #[arg(long)]
        probe: bool,
    },
    /// Make what the demo's own model is trained on, and what it starts from
    #[cfg(feature = "dev")]
    #[command(subcommand, hide = true)]
    DemoModel(DemoModelCommand),
    /// Publish, show, promote and roll back versions of the model
    ///
    /// Exit codes: 0 done, 10 rejected by the gate, 2 usage, configuration, or a version that cannot be what
    /// was asked, 69 S3 or Postgres does not answer, 1 anything else.
    Models {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(subcommand)]
        command: ModelsCommand,
    },
    Plan(PlanArgs),
    /// Look at a checkpoint folder, or rewrite it in another format
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
}

#[derive(Args)]
pub struct ConfigArgs {
    /// Configuration file (TOML)
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override one key, as `section.key=value`; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    overrides: Vec<(String, String)>,
}

#[derive(Subcommand)]
pub enum LabelsCommand {
    /// Store the labels of a file as votes
    Import {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        args: labels_command::ImportArgs,
    },
    /// Write the labels in Postgres as the reference's JSON of training samples
    Export {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        args: labels_command::ExportArgs,
    },
    /// Say which photos to label next
    Suggest {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        args: labels_command::SuggestArgs,
    },
}

#[derive(Subcommand)]
pub enum CheckpointCommand {
    /// Print layout, dimensions, score range, digest, and what loading it costs in memory
    Inspect {
        /// Checkpoint folder in Hugging Face layout
        folder: PathBuf,
    },
    /// Compare a checkpoint's version, a digest of its files, with the one it should have
    ///
    /// Exit codes: 0 it is that one, 2 it is another one, or no checkpoint.
    Verify {
        /// The version as `inspect` prints it, or its beginning: `sha256:` and 12 digits or more
        #[arg(long, value_name = "VERSION")]
        expect: String,
        /// Checkpoint folder in Hugging Face layout
        folder: PathBuf,
    },
    /// Rewrite a checkpoint as safetensors or .bin, in one file or several, in another dtype
    Convert(checkpoint::ConvertArgs),
}

#[cfg(feature = "dev")]
#[derive(Subcommand)]
pub enum DemoModelCommand {
    Sources(roc4mllm::dev::demo_model::SourcesArgs),
    Photos(roc4mllm::dev::demo_model::PhotosArgs),
    Untrained(roc4mllm::dev::demo_model::UntrainedArgs),
    Baseline(roc4mllm::dev::demo_model::BaselineArgs),
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if key.contains('.') => Ok((key.trim().into(), value.trim().into())),
        _ => Err("write it as section.key=value, for example kafka.group=scores".into()),
    }
}

impl ConfigArgs {
    pub fn load(&self) -> Result<Config, Failure> {
        config::load(self.config.as_deref(), &self.overrides).map_err(Failure::usage)
    }

    /// As [`load`](Self::load); a worker that is told to use a stand-in needs no checkpoint.
    pub fn load_for_worker(&self) -> Result<Config, Failure> {
        let config = self.load()?;
        #[cfg(feature = "dev")]
        if roc4mllm::inference::stand_in::configured().is_some() {
            let model = roc4mllm::model::ModelSettings { checkpoint: "stand-in".into(), ..config.model };
            return Ok(Config { model, ..config });
        }
        Ok(config)
    }
}
