//! `roc4mllm demo`: the worker's whole job on a folder of photos, with every server it needs embedded.
//!
//! The photos are uploaded and announced, a worker of the same code as `roc4mllm worker` scores them,
//! and then what Postgres holds is held against what the output topic says.

mod agreement;
mod error;
mod outputs;
mod photos;
mod results;
mod servers;

pub use error::DemoError;

use crate::{
    image::PREPROCESS_REVISION,
    kafka::Delivery,
    model::{
        config::ModelConfig,
        device::{Device, Dtype},
    },
    record::output::OutputRecord,
    report::{self, ReportMeta},
    score::{ItemStatus, ModelVersion},
    score_command::progress::Progress,
    store::Store,
    worker,
};
use clap::{Args, ValueEnum};
use futures_util::{StreamExt, stream};
use outputs::OutputReader;
use photos::Found;
use results::Outcome;
use servers::{INPUT_TOPIC, Servers};
use std::{
    collections::HashSet,
    future::Future,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    time::{Duration, Instant},
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, oneshot},
};

/// Notifications that wait for an output, so that the mock drops none: it keeps 5 MiB a partition.
const OUTSTANDING: usize = 256;
/// Files read and uploaded at once.
const UPLOADS: usize = 8;
/// Once every row is stored, outputs that take longer than this have been lost.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(30);
/// Differences that are printed.
const SHOWN_DIFFERENCES: usize = 20;
const DEFAULT_CHECKPOINT: &str = "tests/fixtures/golden/ckpt_safetensors";
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

    /// Checkpoint folder in Hugging Face layout; left out, a tiny one whose scores mean nothing
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,

    /// Where to compute: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value_t)]
    pub device: Device,

    /// Number type to compute in: `auto`, `f32`, `bf16` or `f16`
    #[arg(long, default_value_t)]
    pub dtype: Dtype,

    /// Which Kafka the records go through
    #[arg(long, value_enum, default_value_t)]
    pub kafka: DemoKafka,

    /// Where the HTML gallery is written
    #[arg(long, value_name = "FILE.html", default_value = "target/demo/report.html")]
    pub report: PathBuf,

    /// Also write the rows read back from Postgres, one JSON object a line
    #[arg(long, value_name = "FILE.jsonl")]
    pub rows: Option<PathBuf>,
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

/// What scoring came to.
struct Scoring {
    found: Found,
    outputs: Vec<OutputRecord>,
    elapsed: Duration,
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
    for (option, path) in [("--report", Some(&args.report)), ("--rows", args.rows.as_ref())] {
        if let Some(path) = path {
            error::writable(option, path)?;
        }
    }
    say(out, &format!("{} in {}", count(found.photos.len(), "image"), folder.display()))?;
    let servers = {
        let mut starting = pin!(Servers::start(args.kafka));
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
        interrupted: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), DemoError> {
        let config = self.servers.config(self.args, self.checkpoint);
        let postgres = config.postgres.clone();
        self.introduce(out)?;
        let mut progress = Progress::new(found.photos.len());
        progress.stage("the worker starts");
        let (stop, stopped) = oneshot::channel::<()>();
        let mut worker = pin!(worker::run(config, async {
            // The demo's own end is a reason to stop, too.
            let _ = stopped.await;
        }));
        let mut reader = OutputReader::start(self.servers.bootstrap())?;
        let scored = tokio::select! {
            scored = self.score(found, &postgres, &mut reader, &mut progress) => scored,
            ended = &mut worker => {
                progress.finish();
                return Err(ended.err().map_or(DemoError::WorkerGone, DemoError::Worker));
            }
            () = interrupted => Err(DemoError::Interrupted),
        };
        progress.finish();
        drop(stop);
        let stopped = worker.await;
        let mut scoring = scored?;
        stopped?;
        scoring.outputs.extend(reader.finish().await?);
        let store = Store::connect(&postgres).await?;
        let rows: Vec<_> = store.list(u32::MAX).await?.into_iter().map(|stored| stored.row).collect();
        store.close().await;
        self.conclude(scoring, rows, out).await
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
        say(out, &format!("Metrics at http://{}/metrics while it runs\n", servers.http()))
    }

    /// Uploads and announces the photos, and waits for an output for each.
    async fn score(
        &self,
        found: Found,
        postgres: &crate::store::PostgresSettings,
        reader: &mut OutputReader,
        progress: &mut Progress,
    ) -> Result<Scoring, DemoError> {
        wait_until_ready(self.servers.http()).await;
        let store = Store::connect(postgres).await?;
        progress.begin();
        let permits = Semaphore::new(OUTSTANDING);
        let mut uploading = pin!(self.upload(found, &permits));
        let mut uploaded: Option<Found> = None;
        let (mut seen, mut outputs) = (HashSet::new(), Vec::new());
        let mut last = Instant::now();
        let found = loop {
            if let Some(found) = uploaded.take_if(|found| seen.len() >= found.photos.len()) {
                break found;
            }
            tokio::select! {
                done = &mut uploading, if uploaded.is_none() => uploaded = Some(done?),
                output = reader.next() => {
                    // Without one the reader has failed, and says why when it is finished.
                    let Some(output) = output else { break uploaded.take().unwrap_or_default() };
                    last = Instant::now();
                    if seen.insert(output.id) {
                        permits.add_permits(1);
                        progress.advance(output.status == ItemStatus::Scored);
                    }
                    outputs.push(output);
                }
                () = tokio::time::sleep(Duration::from_secs(5)) => {
                    let Some(found) = &uploaded else { continue };
                    let rows: u64 = store.count().await?.values().sum();
                    if rows >= found.photos.len() as u64 && last.elapsed() >= OUTPUT_PATIENCE {
                        break uploaded.take().unwrap_or_default();
                    }
                }
            }
        };
        store.close().await;
        Ok(Scoring { found, outputs, elapsed: progress.elapsed() })
    }

    /// Uploads and announces what can be read; the rest joins what is unreadable.
    async fn upload(&self, found: Found, permits: &Semaphore) -> Result<Found, DemoError> {
        let client = self.servers.s3_client();
        let producer = self.servers.producer()?;
        let (client, producer) = (&client, &producer);
        let Found { photos, unreadable } = found;
        let mut uploaded = Found { photos: Vec::with_capacity(photos.len()), unreadable };
        let mut uploads = stream::iter(photos.into_iter().zip(1_u64..))
            .map(|(photo, sequence)| async move {
                // Given back by the output. It is only ever closed with this future.
                if let Ok(permit) = permits.acquire().await {
                    permit.forget();
                }
                match photos::upload(client, &photo, sequence).await? {
                    Ok(notification) => {
                        photos::announce(producer, INPUT_TOPIC, &photo, &notification).await?;
                        Ok::<_, DemoError>(Ok(photo))
                    }
                    Err(reason) => {
                        permits.add_permits(1);
                        Ok(Err((photo.image, reason)))
                    }
                }
            })
            .buffered(UPLOADS);
        while let Some(upload) = uploads.next().await {
            match upload? {
                Ok(photo) => uploaded.photos.push(photo),
                Err(unreadable) => uploaded.unreadable.push(unreadable),
            }
        }
        Ok(uploaded)
    }

    /// Prints and writes the results, and says whether they agree.
    async fn conclude(
        &self,
        scoring: Scoring,
        rows: Vec<crate::store::ScoreRow>,
        out: &mut dyn Write,
    ) -> Result<(), DemoError> {
        let Scoring { found: Found { photos, unreadable }, outputs, elapsed } = scoring;
        if photos.is_empty() {
            return Err(DemoError::NothingReadable(self.folder.to_owned()));
        }
        let agreement = agreement::compare(photos.iter(), &rows, &outputs, self.servers.delivery());
        let total = photos.len();
        let outcomes = Outcome::pair(photos, rows, &outputs);
        results::print(out, &outcomes).map_err(DemoError::Print)?;
        for (image, reason) in &unreadable {
            say(out, &format!("not uploaded: {image} ({reason})"))?;
        }
        let scored = outcomes.iter().filter(|outcome| outcome.row.status == ItemStatus::Scored).count();
        let seconds = elapsed.as_secs_f64();
        say(
            out,
            &format!(
                "\n{scored} of {} scored in {seconds:.1} s ({:.1} a second); the rest says why not.",
                count(total, "image"),
                total as f64 / seconds.max(1e-9)
            ),
        )?;
        if let Some(path) = &self.args.rows {
            results::write_rows(path, &outcomes).map_err(|source| DemoError::Unwritable {
                option: "--rows",
                path: path.clone(),
                source,
            })?;
        }
        self.write_report(outcomes, elapsed, out).await?;
        for difference in agreement.differences.iter().take(SHOWN_DIFFERENCES) {
            say(out, difference)?;
        }
        if let [first, ..] = &agreement.differences[..] {
            return Err(DemoError::Disagreement { count: agreement.differences.len(), first: first.clone() });
        }
        let repeated = match (self.servers.delivery(), agreement.repeated) {
            (Delivery::Transactional, _) | (_, 0) => "each exactly once".to_owned(),
            (Delivery::AtLeastOnce, repeated) => {
                format!("{repeated} of them repeated, as at_least_once allows")
            }
        };
        say(
            out,
            &format!("All {total} rows of Postgres equal the outputs in the topic, id by id; {repeated}."),
        )?;
        self.explain(out)
    }

    async fn write_report(
        &self,
        outcomes: Vec<Outcome>,
        elapsed: Duration,
        out: &mut dyn Write,
    ) -> Result<(), DemoError> {
        let Some(first) = outcomes.first() else { return Ok(()) };
        let row = &first.row;
        let model = ModelVersion {
            model: row.model.clone(),
            version: row.model_version.clone(),
            preprocess_revision: PREPROCESS_REVISION,
        };
        let kafka = match self.args.kafka {
            DemoKafka::Embedded => "embedded mock, at_least_once",
            DemoKafka::Apache => "Apache Kafka, transactional",
        };
        let settings = [
            ("checkpoint", self.checkpoint.display().to_string()),
            ("device", self.args.device.to_string()),
            ("dtype", self.args.dtype.to_string()),
            ("photos", self.folder.display().to_string()),
            ("kafka", kafka.to_owned()),
        ];
        let meta = ReportMeta {
            title: "Aesthetic scores: the demo".into(),
            model,
            score_range: self.range,
            settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
            note: self.args.checkpoint.is_none().then(|| {
                "These scores mean nothing: the demo's checkpoint is tiny and untrained. They show that \
                 the way from upload to score works."
                    .into()
            }),
            written_at: OffsetDateTime::now_utc(),
            elapsed: Some(elapsed),
        };
        let entries = results::entries(outcomes, self.range).await;
        let path = &self.args.report;
        report::write(path, &meta, entries).map_err(|source| DemoError::Unwritable {
            option: "--report",
            path: path.clone(),
            source,
        })?;
        let shown = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        say(out, &format!("Gallery: {}", shown.display()))
    }

    fn explain(&self, out: &mut dyn Write) -> Result<(), DemoError> {
        if self.args.checkpoint.is_some() {
            return Ok(());
        }
        say(
            out,
            "\nThe scores mean nothing: the demo's checkpoint is tiny and untrained, and only shows that \
             everything works.\nFor scores that mean something, download the published weights (README.md, \
             \"The model and its weights\")\nand run: make demo ARGS=\"--checkpoint DIR\"",
        )
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

/// Until `/readyz` says so. A worker that will never be ready ends by itself.
async fn wait_until_ready(address: SocketAddr) {
    while !is_ready(address).await.unwrap_or(false) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn is_ready(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split(' ').nth(1) == Some("200"))
}

fn say(out: &mut dyn Write, line: &str) -> Result<(), DemoError> {
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(DemoError::Print)
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
