//! One run of one row: its topics, bucket, database, workers and claims.

use crate::dump;
use crate::kafka::{self, Offsets};
use crate::load::Loader;
use crate::oracle::{Evidence, Moment, Verdict};
use crate::random::Random;
use crate::report::{Claim, RunReport};
use crate::row::{Broker, Row};
use crate::site::Site;
use crate::tail::Tail;
use crate::watch::{Peaks, Watch};
use crate::worker::{Worker, WorkerSetup};
use anyhow::{Context, Result, anyhow, bail};
use roc4mllm::dev::S3Server;
use roc4mllm::failpoint::Rule;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use url::Url;
use uuid::Uuid;

pub const INPUT_PARTITIONS: i32 = 12;
const OUTPUT_PARTITIONS: i32 = 3;
const BUCKET: &str = "photos";
/// How long a worker may take to start on a busy machine.
pub const START: Duration = Duration::from_secs(60);
/// How long the group may lag after the fault has ended.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long markers of a finished transaction may take to reach the output's readers.
const MARKERS: Duration = Duration::from_secs(15);
/// Far above what a worker with a small model needs, and far below a leak.
const RESIDENT_LIMIT_MIB: u64 = 1_000;
const ITEMS_LIMIT: u64 = 512;
/// Fewer would leave too much to luck.
const LEAST_ITEMS: f64 = 500.0;
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
        let database = runtime.block_on(create_database(&site.postgres(), &name.replace('-', "_")))?;
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

    fn workers_bootstrap(&self) -> String {
        match self.row.broker {
            Broker::Proxy => self.site.proxy.address().to_string(),
            Broker::Apache => self.bootstrap(),
        }
    }

    /// A worker to be started. Workers of one name have one transactional id, so give the name of a
    /// dead one to its successor, as Kubernetes does when it restarts a container.
    pub fn worker(&self, name: &str) -> WorkerSetup {
        let settings: [(&str, toml::Value); 25] = [
            ("kafka.brokers", self.workers_bootstrap().into()),
            ("kafka.group", self.group.as_str().into()),
            ("kafka.input_topics", vec![self.topics.input.clone()].into()),
            ("kafka.output_topic", self.topics.output.as_str().into()),
            ("kafka.dead_letter_topic", self.topics.dead_letters.as_str().into()),
            ("kafka.transactional_id", format!("{}-{name}", self.group).into()),
            ("kafka.session_timeout_ms", 6_000.into()),
            ("kafka.heartbeat_interval_ms", 1_000.into()),
            ("kafka.transaction_timeout_ms", 10_000.into()),
            ("kafka.message_timeout_ms", 8_000.into()),
            ("kafka.socket_timeout_ms", 5_000.into()),
            ("kafka.commit_interval_ms", 100.into()),
            ("kafka.commit_outputs", 25.into()),
            ("kafka.lag_interval_ms", 1_000.into()),
            ("s3.endpoint", self.s3_endpoint.as_str().into()),
            ("s3.buckets", vec![BUCKET.to_owned()].into()),
            ("s3.region", S3Server::REGION.into()),
            ("s3.missing_grace_ms", 4_000.into()),
            ("postgres.url", self.postgres_url.as_str().into()),
            ("postgres.migrate_at_start", true.into()),
            ("model.checkpoint", checkpoint().display().to_string().into()),
            ("model.threads", 1.into()),
            ("inference.decode_threads", 1.into()),
            ("pipeline.max_items", (ITEMS_LIMIT as i64).into()),
            ("retry.max_ms", 3_000.into()),
        ];
        let variables = [
            ("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY.to_owned()),
            ("ROC4MLLM_STAND_IN", self.stand_in_file().display().to_string()),
        ];
        WorkerSetup {
            settings: settings.map(|(key, value)| (key.to_owned(), value)).into(),
            failpoints: self.rule.iter().map(|rule| format!("{}=return", rule.failpoint())).collect(),
            variables: variables.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    /// Starts a worker; the run kills it at its end at the latest.
    pub fn spawn(&mut self, setup: WorkerSetup) -> Result<Worker> {
        let worker = setup.spawn(&self.folder, self.workers.len() + 1)?;
        self.watch.add(worker.clone());
        self.workers.push(worker.clone());
        Ok(worker)
    }

    fn stand_in_file(&self) -> PathBuf {
        self.folder.join("stand-in.json")
    }

    /// A script for those workers alone that get the returned path as `ROC4MLLM_STAND_IN`.
    pub fn script(&self, name: &str, behaviour: Value) -> Result<String> {
        let file = self.folder.join(format!("stand-in-{name}.json"));
        write_script(&file, behaviour)?;
        Ok(file.display().to_string())
    }

    /// What the workers' scorer does from its next batch on: the keys of `ROC4MLLM_STAND_IN`'s file.
    pub fn stand_in(&self, behaviour: Value) -> Result<()> {
        write_script(&self.stand_in_file(), behaviour)
    }

    /// The fault took effect so many times more.
    pub fn fired(&mut self, times: usize) {
        self.fired += times;
    }

    /// The fault is over: recovery counts from here.
    pub fn heal(&mut self) {
        self.healed = Some(Instant::now());
    }

    pub fn at_most(&mut self, claim: &str, observed: f64, limit: f64) {
        self.claim(format!("{claim}, at most"), json!(round(observed)), json!(limit), observed <= limit);
    }

    pub fn at_least(&mut self, claim: &str, observed: f64, limit: f64) {
        self.claim(format!("{claim}, at least"), json!(round(observed)), json!(limit), observed >= limit);
    }

    pub fn equal(&mut self, claim: &str, observed: impl Into<Value>, limit: impl Into<Value>) {
        let (observed, limit) = (observed.into(), limit.into());
        let holds = observed == limit;
        self.claim(format!("{claim}, exactly"), observed, limit, holds);
    }

    fn claim(&mut self, claim: String, observed: Value, limit: Value, holds: bool) {
        self.claims.push(Claim { claim, observed, limit, holds });
    }

    /// The most that any worker held so far.
    pub fn peaks(&self) -> Peaks {
        self.watch.peaks()
    }

    /// Committed offsets of the input.
    pub fn offsets(&self) -> Result<Offsets> {
        Offsets::new(&self.bootstrap(), &self.group, &self.topics.input)
    }

    /// The oracle's look at things while nothing moves: what is covered by now must be there, and
    /// nothing beyond. `name` is the folder that keeps what it saw.
    pub fn inspect(&mut self, name: &str) -> Result<Evidence> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder)?;
        std::fs::copy(self.folder.join("inputs.jsonl"), folder.join("inputs.jsonl"))?;
        let deadline = Instant::now() + MARKERS;
        let (evidence, complaint) = loop {
            // Coordinators write a finished transaction's markers a moment after they say so.
            self.dump(&folder)?;
            let evidence = Evidence::read(&folder)?;
            let verdict = evidence.judge(Moment::Interrupted);
            if verdict.is_clean() || Instant::now() > deadline {
                break (evidence, verdict.complaint());
            }
            thread::sleep(Duration::from_millis(200));
        };
        self.equal("the oracle's complaint in the middle", complaint, "");
        Ok(evidence)
    }

    fn dump(&self, folder: &Path) -> Result<()> {
        let (kafka, topics) = (self.bootstrap(), &self.topics);
        // Offsets first: what they cover has to be in what is read after them.
        dump::offsets(&self.offsets()?, &folder.join("offsets.json"))?;
        dump::topic(&kafka, &topics.output, OUTPUT_PARTITIONS, &folder.join("outputs.jsonl"))?;
        dump::topic(&kafka, &topics.dead_letters, 1, &folder.join("dead_letters.jsonl"))?;
        self.runtime.block_on(dump::scores(&self.database, &folder.join("scores.jsonl")))
    }

    /// Waits until the group has no lag, ends the workers and dumps everything. Rows that claim
    /// something about the end call it themselves; it happens once.
    pub fn settle(&mut self) -> Result<Evidence> {
        if self.recovery.is_none() {
            let since = *self.healed.get_or_insert_with(Instant::now);
            let lag = self.wait_for_no_lag(since);
            self.recovery = Some(since.elapsed());
            let items = self.loader.items();
            // The oracle judges what is missing.
            let _ = self.tail.wait_items(items, if lag.is_ok() { MARKERS } else { Duration::ZERO });
            for worker in &self.workers {
                worker.kill()?;
            }
            self.dump(&self.folder)?;
            lag?;
        }
        Evidence::read(&self.folder)
    }

    /// Ends the workers and dumps everything while there is more to do: what is there by then is
    /// judged, and what is not there yet is no complaint.
    pub fn leave(&mut self) -> Result<()> {
        for worker in &self.workers {
            worker.kill()?;
        }
        // A transaction that nobody ends any more runs into its time limit.
        thread::sleep(MARKERS);
        self.dump(&self.folder)?;
        (self.moment, self.recovery) = (Moment::Interrupted, Some(Duration::ZERO));
        Ok(())
    }

    /// Waits until the group has no lag, and leaves the workers running, for claims about them.
    pub fn settle_running(&mut self) -> Result<()> {
        let since = *self.healed.get_or_insert_with(Instant::now);
        self.wait_for_no_lag(since)
    }

    fn wait_for_no_lag(&self, since: Instant) -> Result<()> {
        let offsets = self.offsets()?;
        loop {
            let lag = offsets.lag()?;
            if lag == 0 {
                return Ok(());
            }
            let running = self.workers.iter().map(Worker::is_running).collect::<Result<Vec<_>>>()?;
            if !running.contains(&true) {
                bail!("no worker runs any more, and the group lags by {lag}");
            }
            if since.elapsed() > RECOVERY {
                bail!("the group still lags by {lag}");
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The run's end, whatever became of it.
    pub fn finish(mut self, result: Result<()>) -> RunReport {
        let mut verdict = Verdict::default();
        let moment = self.moment;
        let judged = result.and_then(|()| self.settle()).map(|evidence| evidence.judge(moment));
        match judged {
            Ok(found) => verdict = found,
            Err(error) => {
                let error = format!("{error:#}");
                // What there is by now may say more.
                let left = self.dump(&self.folder).and_then(|()| Evidence::read(&self.folder));
                if let Ok(evidence) = left {
                    verdict = evidence.judge(moment);
                }
                self.claim("the run's error".into(), error.into(), "".into(), false);
            }
        }
        let recovery = self.recovery.unwrap_or_default();
        self.at_most(
            "seconds from the fault's end to no lag",
            recovery.as_secs_f64(),
            RECOVERY.as_secs_f64(),
        );
        let peaks = self.watch.peaks();
        self.at_most("resident MiB of a worker", peaks.resident_mib as f64, RESIDENT_LIMIT_MIB as f64);
        self.at_most("items in flight in a worker", peaks.items_in_flight as f64, ITEMS_LIMIT as f64);
        let fired = self.fired;
        self.at_least("injected faults that took effect", fired as f64, 1.0);
        self.at_least("items", verdict.items as f64, LEAST_ITEMS);
        self.complaints.extend((!verdict.is_clean()).then(|| verdict.complaint()));
        for claim in self.claims.iter().filter(|claim| !claim.holds) {
            self.complaints.push(format!("{}: {}, not {}", claim.claim, claim.observed, claim.limit));
        }
        self.clean_up();
        RunReport {
            row: self.row.number,
            fault: self.fault,
            seed: self.seed,
            items: verdict.items,
            lost: verdict.lost.len(),
            doubled: verdict.doubled.len(),
            mismatched: verdict.mismatched.len(),
            recovery_s: round(recovery.as_secs_f64()),
            broker: self.row.broker.as_str(),
            fired,
            at_item: self.at_item,
            expected: self.claims,
            complaints: self.complaints,
            family: self.row.fault,
        }
    }

    /// Topics and databases of a hundred runs would slow down the servers.
    fn clean_up(&self) {
        for worker in &self.workers {
            let _ = worker.kill();
        }
        let topics = [&self.topics.input, &self.topics.output, &self.topics.dead_letters];
        let topics = topics.map(String::as_str);
        let _ = self.runtime.block_on(kafka::delete_topics(self.site.kafka(), &topics));
        let name = self.database.rsplit('/').next().unwrap_or_default();
        let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        let _ = self.runtime.block_on(execute(&self.site.postgres(), statement));
    }

    /// Has the run use another server than the one all runs share; before the first worker.
    pub fn use_database(&mut self, server: &str) -> Result<()> {
        let name = self.database.rsplit('/').next().unwrap_or_default().to_owned();
        self.database = self.runtime.block_on(create_database(server, &name))?;
        self.postgres_url.clone_from(&self.database);
        Ok(())
    }

    /// Whether `rule` is taken away from the run's workers.
    pub fn breaks(&self, rule: Rule) -> bool {
        self.rule == Some(rule)
    }

    /// Claims that there are as many rows as ids that outputs speak of; the oracle compares the two one
    /// by one.
    pub fn rows_are_ids(&mut self) -> Result<()> {
        let evidence = self.settle()?;
        self.equal("rows", evidence.scores.len(), evidence.output_ids().len());
        Ok(())
    }

    /// Dead letters of one class, once the run is settled.
    pub fn dead_letters_of(&self, class: &str) -> Result<usize> {
        let letters = Evidence::read(&self.folder)?.dead_letters;
        let of_class = |letter: &&crate::oracle::Committed| {
            letter.headers.get("dlq-class").cloned().flatten().as_deref() == Some(class)
        };
        Ok(letters.iter().filter(of_class).count())
    }

    /// Runs a statement in the run's database.
    pub fn sql(&self, statement: impl Into<String>) -> Result<()> {
        self.runtime.block_on(execute(&self.database, statement.into()))
    }
}

/// A report on a run that could not even begin.
pub fn stillborn(row: &Row, seed: u64, error: &anyhow::Error) -> RunReport {
    RunReport {
        row: row.number,
        fault: row.fault.to_owned(),
        seed,
        items: 0,
        lost: 0,
        doubled: 0,
        mismatched: 0,
        recovery_s: 0.0,
        broker: row.broker.as_str(),
        fired: 0,
        at_item: 0,
        expected: Vec::new(),
        complaints: vec![format!("it could not begin: {error:#}")],
        family: row.fault,
    }
}

fn write_script(file: &Path, behaviour: Value) -> Result<()> {
    let mut whole = json!({"image_size": IMAGE_SIZE});
    if let (Some(whole), Value::Object(behaviour)) = (whole.as_object_mut(), behaviour) {
        whole.extend(behaviour);
    }
    // In one step: workers read it at any time.
    let staged = file.with_extension("new");
    std::fs::write(&staged, whole.to_string())?;
    Ok(std::fs::rename(staged, file)?)
}

async fn create_database(server: &str, name: &str) -> Result<String> {
    execute(server, format!("CREATE DATABASE {name}")).await?;
    let mut url = Url::parse(server)?;
    url.set_path(name);
    Ok(url.into())
}

async fn execute(url: &str, statement: String) -> Result<()> {
    let mut connection = PgConnection::connect(url).await.context("Postgres")?;
    sqlx::raw_sql(AssertSqlSafe(statement.clone()))
        .execute(&mut connection)
        .await
        .map_err(|error| anyhow!("{statement}: {error}"))?;
    Ok(())
}

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/ckpt_safetensors")
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
