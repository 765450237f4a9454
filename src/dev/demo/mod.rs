//! `roc4mllm demo`: the worker's whole job on a folder of photos, with every server it needs embedded.
//!
//! The photos are uploaded and announced, a worker of the same code as `roc4mllm worker` scores them,
//! and then what Postgres holds is held against what the output topic says. Then raters come to like something
//! else, and the model is retrained, judged, switched to and has everything scored again.

mod agreement;
mod conclusion;
mod error;
mod outputs;
mod photos;
mod raters;
mod results;
mod retraining;
mod scoring;
mod servers;

pub use error::DemoError;

use crate::{
    config::Config,
    dev::scratch,
    model::{
        config::ModelConfig,
        device::{Device, Dtype},
    },
    score_command::progress::Progress,
    store::{PostgresSettings, ScoreRow, Store},
    worker,
};
use clap::{Args, ValueEnum};
use outputs::OutputReader;
use photos::{Found, Photo};
use scoring::Scoring;
use servers::Servers;
use std::{
    collections::BTreeSet,
    future::Future,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::{Pin, pin},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

const DEFAULT_CHECKPOINT: &str = "tests/fixtures/demo-model";
const DEFAULT_PHOTOS: &str = ".deps/photos";

/// Score a folder of photos through Kafka, S3 and Postgres, all of them embedded
///
/// Exit codes: 0 rows and outputs agree (rejected photos included), 2 usage or no image found, 130
/// interrupted, 1 anything else, or the worker's own code where it failed.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// The photos; left out, the demo's own
    #[arg(long, value_name = "DIR")]
    pub photos: Option<PathBuf>,

    /// Checkpoint folder in Hugging Face layout; left out, a small one that only knows how degraded a photo is
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,

    /// Where to compute: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value_t)]
    pub device: Device,

    /// Number type to compute in: `auto`, `f32`, `bf16` or `f16`
    #[arg(long, default_value_t)]
    pub dtype: Dtype,

    /// Leave out the retraining that follows; with --checkpoint it is left out in any case
    #[arg(long)]
    pub no_retrain: bool,

    /// Which Kafka the records go through
    #[arg(long, value_enum, default_value_t)]
    pub kafka: DemoKafka,

    /// Where the HTML gallery is written
    #[arg(long, value_name = "FILE.html", default_value = "target/demo/report.html")]
    pub report: PathBuf,

    /// Keep everything running until interrupted, with votes and the scoring API switched on
    #[arg(long)]
    pub serve: bool,

    /// Upload at most this many photos a second, so that there is something to watch
    #[arg(long, value_name = "NUMBER", value_parser = pace)]
    pub pace: Option<f64>,

    /// Where the worker's page and metrics are served; left out, at a free port of this machine
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,

    /// Also write the rows read back from Postgres, one JSON object a line
    #[arg(long, value_name = "FILE.jsonl")]
    pub rows: Option<PathBuf>,

    /// Also write what the worker's /metrics says once everything is scored
    #[arg(long, value_name = "FILE.txt")]
    pub metrics: Option<PathBuf>,
}

/// Which Kafka the demo runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DemoKafka {
    /// The mock inside the client library: starts at once, keeps records in memory only
    #[default]
    Embedded,
    /// An Apache Kafka broker as a child process
    Apache,
}

/// Runs the demo and tells its story on `out`; `interrupted` ends it early and cleanly.
///
/// # Errors
/// [`DemoError`], also when a row and its output disagree.
pub async fn run(
    args: &DemoArgs,
    out: &mut dyn Write,
    interrupted: impl Future<Output = ()>,
) -> Result<(), DemoError> {
    let mut interrupted = pin!(interrupted);
    let folder = photo_folder(args)?;
    let found = photos::find(&folder)?;
    let checkpoint = checkpoint_folder(args)?;
    let model = ModelConfig::read(&checkpoint)?;
    // Without a score head the worker refuses the checkpoint, and no range is shown.
    let range = model.score.map_or((0.0, 1.0), |head| (head.min_score, head.max_score));
    let files = [
        ("--report", Some(&args.report)),
        ("--rows", args.rows.as_ref()),
        ("--metrics", args.metrics.as_ref()),
    ];
    for (option, path) in files {
        if let Some(path) = path {
            error::writable(option, path)?;
        }
    }
    say(out, &format!("{} in {}", count(found.photos.len(), "image"), folder.display()))?;
    let servers = {
        let mut starting = pin!(Servers::start(args.kafka, args.listen));
        tokio::select! {
            servers = &mut starting => servers?,
            () = &mut interrupted => {
                // Half-started servers can only be stopped once they have started.
                if let Ok(servers) = starting.await {
                    servers.stop().await?;
                }
                return Err(DemoError::Interrupted);
            }
        }
    };
    let demo = Demo { args, folder: &folder, checkpoint: &checkpoint, range, servers: &servers };
    let result = demo.run(found, out, interrupted).await;
    servers.stop().await?;
    result
}

/// How far the story has come while the worker ran.
enum Told {
    /// The photos are scored; whether rows and outputs agree is found out once the worker has gone.
    Scored(Scoring, OutputReader),
    /// That is told, of these photos.
    Compared(Vec<Photo>),
}

/// What the demo is about, once the servers run.
struct Demo<'a> {
    args: &'a DemoArgs,
    folder: &'a Path,
    checkpoint: &'a Path,
    range: (f64, f64),
    servers: &'a Servers,
}

impl Demo<'_> {
    async fn run(
        &self,
        found: Found,
        out: &mut dyn Write,
        mut interrupted: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), DemoError> {
        let mut config = self.servers.config(self.args, self.checkpoint);
        let folder = scratch::folder("models")?;
        let retrains = self.args.checkpoint.is_none() && !self.args.no_retrain;
        self.introduce(out)?;
        if self.args.serve {
            self.invite(&config, out)?;
        }
        if retrains {
            servers::with_registry(&mut config, folder.path());
            let store = Store::connect(&config.postgres).await?;
            store.migrate().await?;
            store.close().await;
            retraining::publish_first(&config, self.checkpoint, false).await?;
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let mut worker = pin!(worker::run(config.clone(), async {
            // The demo's own end is a reason to stop, too.
            let _ = stopped.await;
        }));
        let asked = CancellationToken::new();
        let mut story = Box::pin(self.tell(found, &config, retrains, &asked, out));
        let told = tokio::select! {
            told = &mut story => told,
            ended = &mut worker => {
                asked.cancel();
                return Err(ended.err().map_or(DemoError::WorkerGone, DemoError::Worker));
            }
            () = interrupted.as_mut() => {
                // A training thread would go on: it saves its state and ends.
                asked.cancel();
                story.as_mut().await.and(Err(DemoError::Interrupted))
            }
        };
        drop(story);
        if self.args.serve && told.is_ok() {
            say(out, "\nEverything runs on until Ctrl-C, and is gone then.")?;
            tokio::select! {
                ended = &mut worker => {
                    return Err(ended.err().map_or(DemoError::WorkerGone, DemoError::Worker));
                }
                () = interrupted => {}
            }
        }
        drop(stop);
        let stopped = worker.await;
        let told = told?;
        stopped?;
        match told {
            Told::Scored(scoring, reader) => self.compare(scoring, reader, &config.postgres, out).await,
            Told::Compared(_) if self.args.serve => Ok(()),
            Told::Compared(photos) => self.compare_again(&photos, &config.postgres, out).await,
        }
    }

    /// What happens while the worker runs. `asked` ends it early.
    async fn tell(
        &self,
        found: Found,
        config: &Config,
        retrains: bool,
        asked: &CancellationToken,
        out: &mut dyn Write,
    ) -> Result<Told, DemoError> {
        let mut reader = OutputReader::start(self.servers.bootstrap())?;
        let mut progress = Progress::new(found.photos.len());
        progress.stage("the worker starts");
        let scoring = self.score_and_scrape(found, &config.postgres, &mut reader, &mut progress);
        let scoring = unless_asked(asked, scoring).await?;
        progress.finish();
        if !(retrains || self.args.serve) {
            return Ok(Told::Scored(scoring, reader));
        }
        let photos = scoring.found.photos.clone();
        unless_asked(asked, self.compare(scoring, reader, &config.postgres, out)).await?;
        if retrains {
            self.go_round(config, &photos, asked, out).await?;
        }
        Ok(Told::Compared(photos))
    }

    /// Reads what is left of the outputs and all rows, and says whether they agree.
    async fn compare(
        &self,
        mut scoring: Scoring,
        reader: OutputReader,
        postgres: &PostgresSettings,
        out: &mut dyn Write,
    ) -> Result<(), DemoError> {
        scoring.outputs.extend(reader.finish().await?);
        let rows = rows(postgres).await?;
        self.conclude(scoring, rows, out).await
    }

    /// Holds everything against everything once the worker has gone: each version's rows and outputs.
    async fn compare_again(
        &self,
        photos: &[Photo],
        postgres: &PostgresSettings,
        out: &mut dyn Write,
    ) -> Result<(), DemoError> {
        let outputs = OutputReader::start(self.servers.bootstrap())?.finish().await?;
        let rows = rows(postgres).await?;
        let versions: BTreeSet<&str> = rows.iter().map(|row| row.model_version.as_str()).collect();
        for version in versions {
            let rows: Vec<_> = rows.iter().filter(|row| row.model_version == version).cloned().collect();
            let outputs: Vec<_> =
                outputs.iter().filter(|output| output.model_version == version).cloned().collect();
            agreement::compare(photos.iter(), &rows, &outputs, self.servers.delivery()).check(out)?;
        }
        Ok(())
    }

    fn introduce(&self, out: &mut dyn Write) -> Result<(), DemoError> {
        let kafka = match self.args.kafka {
            DemoKafka::Embedded => {
                "the mock broker inside the client library. It keeps records in memory only and has no \
                 real transactions, so the worker runs with kafka.delivery = \"at_least_once\"; \
                 --kafka apache (make demo KAFKA=apache) runs a real one"
            }
            DemoKafka::Apache => "one Apache Kafka broker, with kafka.delivery = \"transactional\"",
        };
        let servers = self.servers;
        say(out, &format!("Kafka at {}: {kafka}", servers.bootstrap()))?;
        say(out, "S3 over a temporary folder, and a throwaway Postgres")?;
        let http = servers.http();
        say(
            out,
            &format!(
                "The worker's page at http://{http}/ and metrics at http://{http}/metrics while it runs\n"
            ),
        )
    }

    /// What else there is to try while it runs.
    fn invite(&self, config: &Config, out: &mut dyn Write) -> Result<(), DemoError> {
        let (http, token) = (self.servers.http(), config.http.page.label_token.expose());
        say(out, &format!("Vote at http://{http}/label with the token {token}"))?;
        say(
            out,
            &format!(
                "Score a photo: curl --data-binary @PHOTO -H 'Content-Type: image/jpeg' \
                 -H 'Authorization: Bearer {token}' http://{http}/v1/score"
            ),
        )?;
        say(out, &format!("Look into Postgres: psql '{}'\n", config.postgres.url.expose()))
    }
}

async fn rows(postgres: &PostgresSettings) -> Result<Vec<ScoreRow>, DemoError> {
    let store = Store::connect(postgres).await?;
    let rows = store.list(u32::MAX).await?.into_iter().map(|stored| stored.row).collect();
    store.close().await;
    Ok(rows)
}

async fn unless_asked<T>(
    asked: &CancellationToken,
    work: impl Future<Output = Result<T, DemoError>>,
) -> Result<T, DemoError> {
    tokio::select! {
        biased;
        () = asked.cancelled() => Err(DemoError::Interrupted),
        done = work => done,
    }
}

fn pace(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(pace) if (0.01..=10_000.0).contains(&pace) => Ok(pace),
        _ => Err("give photos a second, 0.01 to 10000".into()),
    }
}

fn photo_folder(args: &DemoArgs) -> Result<PathBuf, DemoError> {
    if let Some(folder) = &args.photos {
        return Ok(folder.clone());
    }
    let folder = in_sources(DEFAULT_PHOTOS);
    if folder.is_dir() { Ok(folder) } else { Err(DemoError::NoPhotographs(folder)) }
}

fn checkpoint_folder(args: &DemoArgs) -> Result<PathBuf, DemoError> {
    let folder = args.checkpoint.clone().unwrap_or_else(|| in_sources(DEFAULT_CHECKPOINT));
    if folder.is_dir() { Ok(folder) } else { Err(DemoError::NoCheckpoint(folder)) }
}

/// `path` in the source tree that this was built from, else in the current folder.
fn in_sources(path: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if built.exists() { built } else { path.into() }
}

fn say(out: &mut dyn Write, line: &str) -> Result<(), DemoError> {
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(DemoError::Print)
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
