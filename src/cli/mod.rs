//! Commands, and what each exit code means.

mod args;
mod failure;

pub use args::Cli;
pub use failure::Failure;

use anyhow::Context;
use args::{CheckpointCommand, Command, ConfigArgs, LabelsCommand};
use roc4mllm::{
    backfill,
    config::{self, Config},
    evaluate_command,
    labels_command::{self, LabelsCommandError},
    model::checkpoint,
    models_command, plan,
    recovery::{self, RecoveryError},
    retrain::{self, Finish},
    score_command, store,
    telemetry::{self, TelemetrySettings, logs::LogFormat},
    train::{self, TrainArgs},
    worker,
};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Of `retrain --exit-code`, and the first of `models publish --gate`.
const REJECTED: u8 = 10;
const NOTHING_TO_DO: u8 = 11;

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
            config.check().map_err(Failure::usage)?;
            overrides.install(config.telemetry.clone())?;
            block_on(worker::run(config, termination()))?
                .map(|()| 0)
                .map_err(|error| Failure::new(error.exit_code(), error))
        }
        Command::QuarantineChild => {
            let conversation = worker::quarantined::Conversation::begin()
                .context("only a worker can start this command, and it talks to it in its own way")
                .map_err(Failure::usage)?;
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
        Command::DemoModel(args::DemoModelCommand::Sources(args)) => {
            print!("{}", roc4mllm::dev::demo_model::divide_sources(&args)?);
            Ok(0)
        }
        #[cfg(feature = "dev")]
        Command::DemoModel(args::DemoModelCommand::Photos(args)) => {
            print!("{}", roc4mllm::dev::demo_model::write_photos(&args)?);
            Ok(0)
        }
        #[cfg(feature = "dev")]
        Command::DemoModel(args::DemoModelCommand::Untrained(args)) => {
            roc4mllm::dev::demo_model::write_untrained(&args)?;
            Ok(0)
        }
        #[cfg(feature = "dev")]
        Command::DemoModel(args::DemoModelCommand::Baseline(args)) => {
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
            let inspection = checkpoint::inspect(&folder).map_err(Failure::usage)?;
            print!("{inspection}");
            Ok(0)
        }
        Command::Checkpoint(CheckpointCommand::Verify { expect, folder }) => {
            overrides.install(TelemetrySettings::default())?;
            let version = checkpoint::verify(&folder, &expect).map_err(Failure::usage)?;
            println!("{}: {version}", folder.display());
            Ok(0)
        }
        Command::Checkpoint(CheckpointCommand::Convert(args)) => {
            overrides.install(TelemetrySettings::default())?;
            checkpoint::convert(&args).map_err(Failure::usage)?;
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
        telemetry::logs::install(&settings).map_err(Failure::usage)
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

fn check_config(config: Config, probe: bool) -> Result<u8, Failure> {
    print!("{}", config::render(&config).context("the configuration could not be printed")?);
    config.check().map_err(Failure::usage)?;
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
