//! Commands, and what each exit code means.

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use roc4mllm::{
    backfill::{self, BackfillArgs},
    config::{self, Config, ConfigError},
    evaluate_command,
    labels_command::{self, LabelsCommandError},
    model::checkpoint,
    models_command::{self, ModelsCommand},
    plan::{self, PlanArgs},
    recovery::{self, RecoveryError, RedriveArgs, RepublishArgs, RestoreRowsArgs},
    retrain::{self, Finish},
    score_command, store,
    telemetry::{self, TelemetrySettings, logs::LogFormat},
    train::{self, TrainArgs},
    worker,
};
use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Usage, configuration, or nothing to work on.
const USAGE: u8 = 2;

/// Of `retrain --exit-code`, and the first of `models publish --gate`.
const REJECTED: u8 = 10;
const NOTHING_TO_DO: u8 = 11;

/// Aesthetic scores for every photo: a Kafka-driven ROC4MLLM worker and a one-command scorer.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines look; they go to standard error
    #[arg(long, global = true, value_enum)]
    log_format: Option<LogFormat>,
    /// Which log lines are written: a level, or `target=level` pairs
    #[arg(long, global = true, value_name = "FILTER")]
    log_level: Option<String>,
}

#[derive(Subcommand)]
enum Command {
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
struct ConfigArgs {
    /// Configuration file (TOML)
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override one key, as `section.key=value`; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    overrides: Vec<(String, String)>,
}

#[derive(Subcommand)]
enum LabelsCommand {
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
enum CheckpointCommand {
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
enum DemoModelCommand {
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

/// A command's failure: one line for people, one number for scripts.
pub struct Failure {
    error: anyhow::Error,
    /// The process's exit status.
    pub exit_code: u8,
}

impl Failure {
    /// The error with those of its causes that it does not name itself, on one line.
    pub fn message(&self) -> String {
        let mut message = String::new();
        for cause in self.error.chain().map(ToString::to_string) {
            if message.is_empty() {
                message = cause;
            } else if !message.contains(&cause) {
                message = format!("{message}: {cause}");
            }
        }
        message.replace('\n', " ")
    }

    fn new(exit_code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), exit_code }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(1, error)
    }
}

/// Runs one command to its end; `Ok` holds the exit status.
pub fn run(cli: Cli) -> Result<u8, Failure> {
    let overrides = LogOverrides { format: cli.log_format, level: cli.log_level };
    match cli.command {
        Command::Score(args) => {
            // Progress is a bar on a terminal, and log lines elsewhere.
            let log_level = "warn,roc4mllm::score_command=info".into();
            overrides.install(TelemetrySettings { log_level, ..Default::default() })?;
            let mut out = std::io::stdout().lock();
            block_on(score_command::run(&args, &mut out))?
                .map(|summary| summary.exit_code())
                .map_err(|error| Failure::new(error.exit_code(), error))
        }
        Command::Evaluate(args) => {
            let log_level = "warn,roc4mllm::score_command=info".into();
            overrides.install(TelemetrySettings { log_level, ..Default::default() })?;
            let mut out = std::io::stdout().lock();
            block_on(evaluate_command::run(&args, &mut out))?
                .map(|summary| summary.exit_code())
                .map_err(|error| Failure::new(error.exit_code(), error))
        }
        Command::Worker(args) => {
            let config = args.load_for_worker()?;
            config.check().map_err(usage)?;
            overrides.install(config.telemetry.clone())?;
            block_on(worker::run(config, termination()))?
                .map(|()| 0)
                .map_err(|error| Failure::new(error.exit_code(), error))
        }
        Command::QuarantineChild => {
            let conversation = worker::quarantined::Conversation::begin()
                .context("only a worker can start this command, and it talks to it in its own way")
                .map_err(|error| Failure::new(USAGE, error))?;
            overrides.install(conversation.hello().telemetry.clone())?;
            block_on(worker::quarantined::run(conversation))?
                .map(|()| 0)
                .map_err(|error| Failure::new(error.exit_code(), error))
        }
        #[cfg(feature = "dev")]
        Command::Demo(args) => {
            // Of the worker's own lines only trouble is news beside the progress.
            let progress = "roc4mllm::score_command::progress=info,roc4mllm::train::progress=info";
            let log_level = format!("warn,librdkafka=error,{progress}");
            overrides.install(TelemetrySettings {
                log_level,
                log_format: LogFormat::Human,
                ..Default::default()
            })?;
            block_on(roc4mllm::dev::demo::run(&args, &mut std::io::stdout(), termination()))?
                .map(|()| 0)
                .map_err(|error| Failure::new(error.exit_code(), error))
        }
        #[cfg(feature = "dev")]
        Command::DemoModel(DemoModelCommand::Sources(args)) => {
            print!("{}", roc4mllm::dev::demo_model::divide_sources(&args)?);
            Ok(0)
        }
        #[cfg(feature = "dev")]
        Command::DemoModel(DemoModelCommand::Photos(args)) => {
            print!("{}", roc4mllm::dev::demo_model::write_photos(&args)?);
            Ok(0)
        }
        #[cfg(feature = "dev")]
        Command::DemoModel(DemoModelCommand::Untrained(args)) => {
            roc4mllm::dev::demo_model::write_untrained(&args)?;
            Ok(0)
        }
        #[cfg(feature = "dev")]
        Command::DemoModel(DemoModelCommand::Baseline(args)) => {
            match roc4mllm::dev::demo_model::file_size_srcc(&args)? {
                Some(srcc) => println!("SRCC of file size alone: {srcc:.3}"),
                None => println!("SRCC of file size alone: none, all files or all labels are alike"),
            }
            Ok(0)
        }
        Command::Backfill { config, args } => {
            let config = overrides.load(&config)?;
            let summary = block_on(async move { backfill::run(&config, &args).await })?
                .map_err(|error| Failure::new(error.exit_code(), error))?;
            print!("{summary}");
            Ok(0)
        }
        Command::BackfillPg { config, args } => {
            let config = overrides.load(&config)?;
            reported(block_on(async move { recovery::restore_rows::run(&config, &args).await })?)
        }
        Command::Republish { config, args } => {
            let config = overrides.load(&config)?;
            reported(block_on(async move { recovery::republish::run(&config, &args).await })?)
        }
        Command::Redrive { config, args } => {
            let config = overrides.load(&config)?;
            reported(recovery::redrive::run(&config.kafka, &args))
        }
        Command::Train(args) => {
            let log_level = "warn,roc4mllm::train=info".into();
            overrides.install(TelemetrySettings { log_level, ..Default::default() })?;
            train_until_told_to_stop(args)
        }
        Command::Retrain { config, exit_code } => {
            let config = overrides.load(&config)?;
            let finish = block_on(async move { retrain::run(&config, termination()).await })?
                .map_err(|error| Failure::new(error.exit_code(), error))?;
            println!("{finish}");
            Ok(match finish {
                Finish::Rejected { .. } if exit_code => REJECTED,
                Finish::NothingToDo { .. } | Finish::Held(_) if exit_code => NOTHING_TO_DO,
                _ => 0,
            })
        }
        Command::Labels(command) => labels(command, overrides),
        Command::Migrate(args) => {
            let config = args.load()?;
            overrides.install(config.telemetry.clone())?;
            block_on(async move {
                let store = store::Store::connect(&config.postgres).await?;
                store.migrate().await
            })?
            .map_err(|error| Failure::new(worker::UNAVAILABLE, error))?;
            println!("the schema is up to date");
            Ok(0)
        }
        Command::CheckConfig { config, probe } => {
            let config = config.load()?;
            overrides.install(config.telemetry.clone())?;
            check_config(config, probe)
        }
        Command::Models { config, command } => {
            let config = overrides.load(&config)?;
            block_on(async move { models_command::run(&config, &command, &mut std::io::stdout()).await })?
                .map(|done| if done == models_command::Done::Rejected { REJECTED } else { 0 })
                .map_err(|error| Failure::new(error.exit_code(), error))
        }
        Command::Plan(args) => {
            let mut out = std::io::stdout().lock();
            plan::run(&args, &mut out).map(|()| 0).map_err(|error| Failure::new(error.exit_code(), error))
        }
        Command::Checkpoint(CheckpointCommand::Inspect { folder }) => {
            overrides.install(TelemetrySettings::default())?;
            let inspection = checkpoint::inspect(&folder).map_err(|error| Failure::new(USAGE, error))?;
            print!("{inspection}");
            Ok(0)
        }
        Command::Checkpoint(CheckpointCommand::Verify { expect, folder }) => {
            overrides.install(TelemetrySettings::default())?;
            let version = checkpoint::verify(&folder, &expect).map_err(|error| Failure::new(USAGE, error))?;
            println!("{}: {version}", folder.display());
            Ok(0)
        }
        Command::Checkpoint(CheckpointCommand::Convert(args)) => {
            overrides.install(TelemetrySettings::default())?;
            checkpoint::convert(&args).map_err(|error| Failure::new(USAGE, error))?;
            Ok(0)
        }
    }
}

fn labels(command: LabelsCommand, overrides: LogOverrides) -> Result<u8, Failure> {
    let failed = |error: LabelsCommandError| Failure::new(error.exit_code(), error);
    let report = match command {
        LabelsCommand::Import { config, args } => {
            let config = overrides.load(&config)?;
            block_on(async move { labels_command::import(&config, &args).await })?.map_err(failed)?
        }
        LabelsCommand::Export { config, args } => {
            let config = overrides.load(&config)?;
            block_on(async move { labels_command::export(&config, &args).await })?.map_err(failed)?
        }
        LabelsCommand::Suggest { config, args } => {
            let config = overrides.load(&config)?;
            let mut out = std::io::stdout().lock();
            block_on(labels_command::suggest(&config, &args, &mut out))?.map_err(failed)?;
            return Ok(0);
        }
    };
    print!("{report}");
    Ok(report.exit_code())
}

impl ConfigArgs {
    fn load(&self) -> Result<Config, Failure> {
        config::load(self.config.as_deref(), &self.overrides).map_err(usage)
    }

    /// As [`load`](Self::load); a worker that is told to use a stand-in needs no checkpoint.
    fn load_for_worker(&self) -> Result<Config, Failure> {
        let config = self.load()?;
        #[cfg(feature = "dev")]
        if roc4mllm::inference::stand_in::configured().is_some() {
            let model = roc4mllm::model::ModelSettings { checkpoint: "stand-in".into(), ..config.model };
            return Ok(Config { model, ..config });
        }
        Ok(config)
    }
}

struct LogOverrides {
    format: Option<LogFormat>,
    level: Option<String>,
}

impl LogOverrides {
    /// Loads a command's configuration, and logs as it says.
    fn load(self, args: &ConfigArgs) -> Result<Config, Failure> {
        let config = args.load()?;
        self.install(config.telemetry.clone())?;
        Ok(config)
    }

    fn install(self, mut settings: TelemetrySettings) -> Result<(), Failure> {
        settings.log_format = self.format.unwrap_or(settings.log_format);
        settings.log_level = self.level.unwrap_or(settings.log_level);
        telemetry::logs::install(&settings).map_err(|error| Failure::new(USAGE, error))
    }
}

/// Trains on a thread of its own, which SIGTERM and SIGINT end after the step that it is at.
fn train_until_told_to_stop(args: TrainArgs) -> Result<u8, Failure> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let seen = cancelled.clone();
    let trained = block_on(async move {
        let mut training = tokio::task::spawn_blocking(move || train::run(&args, &seen));
        tokio::select! {
            trained = &mut training => trained,
            () = termination() => {
                cancelled.store(true, Ordering::Relaxed);
                training.await
            }
        }
    })?
    .context("the training thread ended early")?;
    trained.map(|_| 0).map_err(|error| Failure::new(error.exit_code(), error))
}

/// Prints what a recovery command did; its exit code says whether something was refused.
fn reported(outcome: Result<recovery::Report, RecoveryError>) -> Result<u8, Failure> {
    let report = outcome.map_err(|error| Failure::new(error.exit_code(), error))?;
    print!("{report}");
    Ok(report.exit_code())
}

fn usage(error: ConfigError) -> Failure {
    Failure::new(USAGE, error)
}

fn check_config(config: Config, probe: bool) -> Result<u8, Failure> {
    print!("{}", config::render(&config).context("the configuration could not be printed")?);
    config.check().map_err(usage)?;
    println!("\n# would connect to");
    for target in worker::targets(&config) {
        println!("# {target}");
    }
    if !probe {
        return Ok(0);
    }
    let mut failed = false;
    for (target, result) in block_on(worker::probe(&config))? {
        match result {
            Ok(()) => println!("# {target}: ok"),
            Err(reason) => {
                failed = true;
                println!("# {target}: {reason}");
            }
        }
    }
    Ok(if failed { worker::UNAVAILABLE } else { 0 })
}

/// Resolves on SIGTERM or SIGINT.
async fn termination() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be received; only SIGKILL stops this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the async runtime could not start")?;
    let output = runtime.block_on(future);
    // Blocking calls into C libraries cannot be cancelled; the process is about to end.
    runtime.shutdown_background();
    Ok(output)
}
