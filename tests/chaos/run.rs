//! One run of one row: its topics, bucket, database, workers and claims.

mod claims;
mod database;
mod ending;
mod workers;

pub use ending::stillborn;

use crate::kafka::{self, Offsets};
use crate::load::Loader;
use crate::oracle::Moment;
use crate::random::Random;
use crate::report::Claim;
use crate::row::Row;
use crate::site::Site;
use crate::tail::Tail;
use crate::watch::Watch;
use crate::worker::Worker;
use anyhow::Result;
use roc4mllm::dev::S3Server;
use roc4mllm::failpoint::Rule;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

pub const INPUT_PARTITIONS: i32 = 12;
const OUTPUT_PARTITIONS: i32 = 3;
const BUCKET: &str = "photos";
/// How long a worker may take to start on a busy machine.
pub const START: Duration = Duration::from_secs(60);
/// The most items that a worker is allowed to have in flight.
const ITEMS_LIMIT: u64 = 512;
/// Edge of what the workers' scorer sees, in pixels.
pub const IMAGE_SIZE: usize = 32;

pub struct Topics {
    pub input: String,
    pub output: String,
    pub dead_letters: String,
}

pub struct Run {
    pub row: Row,
    /// Counted from 1.
    pub seed: u64,
    pub random: Random,
    /// Around which item the fault is to strike: another one for every seed.
    pub at_item: usize,
    pub site: Arc<Site>,
    /// Where everything about the run is kept.
    pub folder: PathBuf,
    pub topics: Topics,
    pub group: String,
    /// Sends input.
    pub loader: Loader,
    /// Reads outputs as they are committed.
    pub tail: Tail,
    pub s3: Arc<S3Server>,
    /// The run's database, without a proxy.
    pub database: String,
    pub runtime: Arc<Runtime>,
    /// What workers get as `postgres.url` and `s3.endpoint`, for rows that put a proxy there.
    pub postgres_url: String,
    pub s3_endpoint: String,
    rule: Option<Rule>,
    fault: String,
    watch: Watch,
    workers: Vec<Worker>,
    claims: Vec<Claim>,
    complaints: Vec<String>,
    fired: usize,
    healed: Option<Instant>,
    recovery: Option<Duration>,
    moment: Moment,
    _objects: TempDir,
}

impl Run {
    pub fn new(site: &Arc<Site>, row: &Row, seed: u64, rule: Option<Rule>) -> Result<Self> {
        let folder = site.folder.join(format!("{}-{seed}", row.number));
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let name = format!("c{}-{seed}-{}", row.number, &Uuid::new_v4().simple().to_string()[..8]);
        let topics = Topics {
            input: format!("{name}-uploads"),
            output: format!("{name}-scores"),
            dead_letters: format!("{name}-dead-letters"),
        };
        let new = [
            (topics.input.as_str(), INPUT_PARTITIONS),
            (topics.output.as_str(), OUTPUT_PARTITIONS),
            (topics.dead_letters.as_str(), 1),
        ];
        let bootstrap = site.kafka().to_owned();
        runtime.block_on(kafka::create_topics(&bootstrap, &new))?;
        let database = runtime.block_on(database::create(&site.postgres(), &name.replace('-', "_")))?;
        let objects = tempfile::tempdir()?;
        let s3 = S3Server::start(objects.path())?;
        s3.create_bucket(BUCKET)?;
        let s3 = Arc::new(s3);
        let runtime = Arc::new(runtime);
        let loader = Loader::new(
            &bootstrap,
            (&topics.input, INPUT_PARTITIONS),
            (Arc::clone(&s3), BUCKET),
            Arc::clone(&runtime),
            &folder.join("inputs.jsonl"),
        )?;
        let tail = Tail::start(&bootstrap, &topics.output, OUTPUT_PARTITIONS)?;
        let run = Self {
            row: row.clone(),
            seed,
            random: Random::new(seed << 8 | u64::from(row.number)),
            at_item: 60 + (seed as usize * 97 + row.number as usize * 13) % 300,
            site: Arc::clone(site),
            folder,
            group: format!("{name}-group"),
            topics,
            loader,
            tail,
            s3_endpoint: s3.endpoint(),
            s3,
            postgres_url: database.clone(),
            database,
            runtime,
            rule,
            fault: row.fault.to_owned(),
            watch: Watch::start(),
            workers: Vec::new(),
            claims: Vec::new(),
            complaints: Vec::new(),
            fired: 0,
            healed: None,
            recovery: None,
            moment: Moment::Settled,
            _objects: objects,
        };
        run.stand_in(json!({}))?;
        Ok(run)
    }

    /// Which of the row's variants this is, from 0.
    pub fn variant(&self) -> u64 {
        self.row.variant(self.seed)
    }

    /// Says more about the fault than the row's name does.
    pub fn describe(&mut self, fault: impl Into<String>) {
        self.fault = fault.into();
    }

    /// The broker without a proxy in between.
    pub fn bootstrap(&self) -> String {
        self.site.kafka().to_owned()
    }

    /// Committed offsets of the input.
    pub fn offsets(&self) -> Result<Offsets> {
        Offsets::new(&self.bootstrap(), &self.group, &self.topics.input)
    }

    /// Whether `rule` is taken away from the run's workers.
    pub fn breaks(&self, rule: Rule) -> bool {
        self.rule == Some(rule)
    }
}
