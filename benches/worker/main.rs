//! The whole worker as a process, beside a plain Python worker on the same servers: records a second, processor
//! time a record, latency, and how both grow with partitions, workers and the backlog.
//!
//! Both read the same records, fetch the same objects, make the same pixel values, score with the same scorer
//! that costs nothing, write to the same Postgres and produce in transactions. Servers and contenders share the
//! machine. After each run every record must have one output, one row, and one score in both.
//!
//! `ROC4MLLM_BENCH_ONLY` names the parts to run, separated by commas: `speed`, `latency`, `scaling`, `backlog`.
//! `ROC4MLLM_BENCH_RECORDS` is the number of records of a run, and of the long backlog, where they are to be fewer:
//! then nothing is written down.

mod oracle;
mod process;
mod servers;
mod stages;
mod support;

use process::{Contender, Place, Process, Taken, in_role, settings};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use roc4mllm::{
    dev::TestDatabase,
    secret::Secret,
    store::{PostgresSettings, Store},
};
use servers::{Servers, Uploads, number_in};
use stages::Stages;
use std::{
    env,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use support::{
    photo::photo,
    results::{Entry, record},
    topics::{Anything, PATIENCE, Reader, produce, producer_config},
};

const RUNS: usize = 3;
const PARTITIONS: i32 = 6;
/// Records of one run, beside those that a contender takes before the clock starts: by then it has joined its
/// group, and its connections are open.
const RECORDS: usize = 4_000;
const FIRST_RECORDS: usize = 200;
/// How long records come at half the rate, in seconds.
const PACED_S: f64 = 20.0;
const BACKLOGS: [usize; 2] = [1_000, 100_000];
/// Records of a run with a short backlog, which is filled up all the while: of a thousand records alone, most are
/// worked off before the first commit shows that anything was.
const SHORT_RECORDS: usize = 20_000;
/// By how many records a short backlog is filled up at once.
const FILLING: usize = 250;

fn main() -> Result<(), Anything> {
    // As the binary does, whose part processes of this program play.
    roc4mllm::heap::settle();
    measure()
}

#[tokio::main]
async fn measure() -> Result<(), Anything> {
    match env::var(process::ROLE).as_deref() {
        Ok("worker") => return process::work().await,
        Ok("stages") => return stages::measure().await,
        _ => {}
    }
    let only = env::var("ROC4MLLM_BENCH_ONLY").unwrap_or_default();
    let wanted = |part: &str| only.is_empty() || only.split(',').any(|one| one == part);
    let fewer: Option<usize> =
        env::var("ROC4MLLM_BENCH_RECORDS").ok().map(|count| count.parse()).transpose()?;
    let records = fewer.unwrap_or(RECORDS);
    let bench = Bench { servers: Servers::start().await?, fewer };
    let uploads = bench.servers.upload("uploads", FIRST_RECORDS + records, &photo(480, 320))?;
    if wanted("speed") || wanted("latency") {
        bench.speed(&uploads, wanted("latency")).await?;
    }
    if wanted("scaling") {
        bench.scaling(&uploads).await?;
    }
    if wanted("backlog") {
        bench.backlog().await?;
    }
    Ok(())
}

struct Bench {
    servers: Servers,
    /// So many records instead of as many as are worth writing down.
    fewer: Option<usize>,
}

/// What a run came to.
struct Run {
    /// Records a second.
    rate: f64,
    /// Processor seconds a record, of all workers together.
    cpu_s: f64,
    peak_bytes: u64,
}

impl Bench {
    fn record(&self, entries: &[Entry<'_>]) {
        if self.fewer.is_none() {
            record(entries);
        }
    }

    fn bootstrap(&self) -> &str {
        self.servers.kafka.bootstrap()
    }

    /// Topics, group and schema of one run.
    async fn place(&self, partitions: i32) -> Result<(Place, TestDatabase), Anything> {
        let kafka = &self.servers.kafka;
        let database = TestDatabase::create().await?;
        let postgres = PostgresSettings { url: Secret::from(database.url()), ..PostgresSettings::default() };
        let store = Store::connect(&postgres).await?;
        store.migrate().await?;
        store.close().await;
        let input = kafka.create_topic("uploads", partitions).await?;
        let place = Place {
            group: format!("{input}-group"),
            output: kafka.create_topic("scores", partitions).await?,
            dead_letters: kafka.create_topic("dead-letters", partitions).await?,
            database: database.url().to_owned(),
            input,
        };
        Ok((place, database))
    }

    /// Both contenders in turns, and the stages of ours.
    async fn speed(&self, uploads: &Uploads, with_latency: bool) -> Result<(), Anything> {
        let (mut ours, mut python, mut stages) = (Vec::new(), Vec::new(), Vec::new());
        for run in 1..=RUNS {
            ours.push(self.run(Contender::Ours, uploads, PARTITIONS, 1).await?);
            python.push(self.run(Contender::Python, uploads, PARTITIONS, 1).await?);
            stages.push(self.stages(uploads).await?);
            let (ours, python) = (&ours[run - 1], &python[run - 1]);
            println!(
                "run {run}: {:.0} records/s at {:.3} ms of processor each, Python {:.0} at {:.3}; stages {:.3?}",
                ours.rate,
                ours.cpu_s * 1e3,
                python.rate,
                python.cpu_s * 1e3,
                stages[run - 1]
            );
        }
        let of = |runs: &[Run], read: fn(&Run) -> f64| median(runs.iter().map(read).collect());
        let (rate, python_rate) = (of(&ours, |run| run.rate), of(&python, |run| run.rate));
        let (cpu, python_cpu) = (of(&ours, |run| run.cpu_s), of(&python, |run| run.cpu_s));
        let sum = median(stages.iter().map(Stages::sum).collect());
        println!(
            "{rate:.0} records/s of {:.0} kB each, {python_rate:.0} by the Python worker: {:.2} times; {:.3} ms of \
             processor a record, {:.2} times the sum of its stages; the Python worker's {:.3} ms",
            uploads.object_bytes as f64 / 1e3,
            rate / python_rate,
            cpu * 1e3,
            cpu / sum,
            python_cpu * 1e3
        );
        self.record(&[
            Entry {
                name: "pipeline_speedup",
                value: rate,
                unit: "records/s",
                against: "a plain Python worker with 16 fetch threads on the same servers",
                against_value: python_rate,
                ratio: rate / python_rate,
                runs: RUNS,
            },
            Entry {
                name: "pipeline_cpu_cost",
                value: cpu,
                unit: "s/record",
                against: "the sum of the stages' own",
                against_value: sum,
                ratio: cpu / sum,
                runs: RUNS,
            },
            Entry {
                name: "pipeline_cpu_vs_python",
                value: cpu,
                unit: "s/record",
                against: "a plain Python worker",
                against_value: python_cpu,
                ratio: cpu / python_cpu,
                runs: RUNS,
            },
        ]);
        if with_latency {
            let ours = self.latency(Contender::Ours, uploads, rate / 2.0).await?;
            let python = self.latency(Contender::Python, uploads, python_rate / 2.0).await?;
            println!(
                "at half the load, 99% of outputs are committed within {ours:.0} ms of their event; the Python \
                 worker's, at half of its own, within {python:.0} ms"
            );
            self.record(&[Entry {
                name: "latency_p99_ms",
                value: ours,
                unit: "ms",
                against: "a plain Python worker at half of its own load",
                against_value: python,
                ratio: ours / python,
                runs: 1,
            }]);
        }
        Ok(())
    }

    /// One run: `workers` processes of a contender, from the records' arrival to the last committed output.
    async fn run(
        &self,
        contender: Contender,
        uploads: &Uploads,
        partitions: i32,
        workers: usize,
    ) -> Result<Run, Anything> {
        let (place, _database) = self.place(partitions).await?;
        let mut processes = self.start(contender, &place, workers).await?;
        let (first, timed) = uploads.records.split_at(FIRST_RECORDS);
        let reader = Reader::open(self.bootstrap(), &place.output, partitions)?;
        produce(self.bootstrap(), &place.input, partitions, first.iter())?;
        let reader = reader.take(first.len()).await?;
        let before = taken(&mut processes)?;
        let start = Instant::now();
        produce(self.bootstrap(), &place.input, partitions, timed.iter())?;
        reader.take(timed.len()).await?;
        let seconds = start.elapsed().as_secs_f64();
        let after = taken(&mut processes)?;
        for process in processes {
            process.stop()?;
        }
        oracle::check(self.bootstrap(), &place, partitions, uploads.records.len()).await?;
        Ok(Run {
            rate: timed.len() as f64 / seconds,
            cpu_s: (after.cpu_s - before.cpu_s) / timed.len() as f64,
            peak_bytes: after.peak_bytes,
        })
    }

    /// Starts workers and waits until each has its partitions.
    async fn start(
        &self,
        contender: Contender,
        place: &Place,
        workers: usize,
    ) -> Result<Vec<Process>, Anything> {
        let processes: Vec<_> = (0..workers)
            .map(|_| Process::start(contender, &self.servers, place))
            .collect::<Result<_, _>>()?;
        let (bootstrap, group) = (self.bootstrap().to_owned(), place.group.clone());
        tokio::task::spawn_blocking(move || assigned(&bootstrap, &group, workers)).await??;
        Ok(processes)
    }

    async fn stages(&self, uploads: &Uploads) -> Result<Stages, Anything> {
        let (place, _database) = self.place(PARTITIONS).await?;
        produce(self.bootstrap(), &place.input, PARTITIONS, uploads.records.iter())?;
        let mut command = in_role("stages", &settings(&self.servers, &place))?;
        command.env(stages::RECORDS, uploads.records.len().to_string());
        command.stderr(std::process::Stdio::inherit());
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        if !output.status.success() {
            return Err(format!("the stages ended with {}", output.status).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The 99th percentile of milliseconds from sending an event to reading its committed output, while events
    /// come at `rate`.
    async fn latency(&self, contender: Contender, uploads: &Uploads, rate: f64) -> Result<f64, Anything> {
        let (place, _database) = self.place(PARTITIONS).await?;
        let processes = self.start(contender, &place, 1).await?;
        let (first, paced) = uploads.records.split_at(FIRST_RECORDS);
        let paced = &paced[..paced.len().min((rate * PACED_S) as usize)];
        let reader = Reader::open(self.bootstrap(), &place.output, PARTITIONS)?;
        produce(self.bootstrap(), &place.input, PARTITIONS, first.iter())?;
        let reader = reader.take(first.len()).await?;
        let sent: Arc<Mutex<Vec<Option<Instant>>>> = Arc::new(Mutex::new(vec![None; uploads.records.len()]));
        let latencies: Arc<Mutex<Vec<f64>>> = Arc::default();
        let see = {
            let (sent, latencies) = (Arc::clone(&sent), Arc::clone(&latencies));
            move |payload: &[u8]| {
                let now = Instant::now();
                let output: serde_json::Value = serde_json::from_slice(payload)?;
                let number = output["key"].as_str().and_then(number_in).ok_or("an output without its key")?;
                let sent = sent.lock().unwrap_or_else(PoisonError::into_inner)[number];
                let latency = now - sent.ok_or("an output before its event")?;
                latencies.lock().unwrap_or_else(PoisonError::into_inner).push(latency.as_secs_f64() * 1e3);
                Ok(())
            }
        };
        let reading = tokio::spawn(reader.see(paced.len(), see));
        let producer: ThreadedProducer<DefaultProducerContext> =
            producer_config(self.bootstrap()).set("linger.ms", "0").create()?;
        let begun = Instant::now();
        for (number, payload) in paced.iter().enumerate() {
            let due = begun + Duration::from_secs_f64(number as f64 / rate);
            tokio::time::sleep_until(due.into()).await;
            sent.lock().unwrap_or_else(PoisonError::into_inner)[FIRST_RECORDS + number] =
                Some(Instant::now());
            let message = BaseRecord::<(), _>::to(&place.input).partition(number as i32 % PARTITIONS);
            producer.send(message.payload(payload)).map_err(|(error, _)| error)?;
        }
        tokio::task::block_in_place(|| producer.flush(PATIENCE))?;
        reading.await??;
        for process in processes {
            process.stop()?;
        }
        let mut latencies = std::mem::take(&mut *latencies.lock().unwrap_or_else(PoisonError::into_inner));
        latencies.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
        println!(
            "{contender:?} at {rate:.0} records/s: {:.0} ms median, {:.0} ms 90%, {:.0} ms 99%, {:.0} ms at most",
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        );
        Ok(at(0.99))
    }

    /// As many workers as partitions.
    async fn scaling(&self, uploads: &Uploads) -> Result<(), Anything> {
        const WORKERS: [usize; 3] = [1, 2, 4];
        let mut rates = [const { Vec::new() }; WORKERS.len()];
        for _ in 0..RUNS {
            for (workers, rates) in WORKERS.into_iter().zip(&mut rates) {
                let run = self.run(Contender::Ours, uploads, workers as i32, workers).await?;
                println!("{workers} workers and partitions: {:.0} records/s", run.rate);
                rates.push(run.rate);
            }
        }
        let rates = rates.map(median);
        for (workers, rate) in WORKERS.into_iter().zip(rates).skip(1) {
            let name = format!("scaling_{workers}");
            self.record(&[Entry {
                name: &name,
                value: rate,
                unit: "records/s",
                against: "one worker and one partition",
                against_value: rates[0],
                ratio: rate / rates[0],
                runs: RUNS,
            }]);
        }
        Ok(())
    }

    /// A short backlog and a long one, there before the worker is.
    async fn backlog(&self) -> Result<(), Anything> {
        let [short, long] = BACKLOGS;
        let long = self.fewer.unwrap_or(long).max(2 * short);
        let uploads = self.servers.upload("backlog", long, &photo(64, 48))?;
        let mut short_runs = Vec::new();
        for _ in 0..RUNS {
            let records = &uploads.records[..long.min(SHORT_RECORDS)];
            short_runs.push(self.of_backlog(records, short).await?);
        }
        let long_run = self.of_backlog(&uploads.records, long).await?;
        let cpu = median(short_runs.iter().map(|run| run.cpu_s).collect());
        let time = median(short_runs.iter().map(|run| 1.0 / run.rate).collect());
        let peak = median(short_runs.iter().map(|run| run.peak_bytes as f64 / 1e6).collect());
        let long_peak = long_run.peak_bytes as f64 / 1e6;
        println!(
            "a backlog of {long}: {:.3} ms of processor a record, {:.3} ms of time and {long_peak:.0} MB at most; one \
             of {short}: {:.3} ms, {:.3} ms and {peak:.0} MB",
            long_run.cpu_s * 1e3,
            1e3 / long_run.rate,
            cpu * 1e3,
            time * 1e3
        );
        let entry = |name, value, unit, against_value| Entry {
            name,
            value,
            unit,
            against: "a backlog of 1,000",
            against_value,
            ratio: value / against_value,
            runs: 1,
        };
        self.record(&[
            entry("backlog_cost", long_run.cpu_s, "s of processor/record", cpu),
            entry("backlog_time", 1.0 / long_run.rate, "s/record", time),
            entry("backlog_memory", long_peak, "MB", peak),
        ]);
        Ok(())
    }

    /// One worker over `records`, of which `waiting` are there before it and, as far as they last, all the while.
    async fn of_backlog(&self, records: &[Vec<u8>], waiting: usize) -> Result<Run, Anything> {
        let (place, _database) = self.place(PARTITIONS).await?;
        let (first, mut later) = records.split_at(waiting.min(records.len()));
        produce(self.bootstrap(), &place.input, PARTITIONS, first.iter())?;
        let reader = Reader::open(self.bootstrap(), &place.output, PARTITIONS)?;
        let mut processes = vec![Process::start(Contender::Ours, &self.servers, &place)?];
        // The first outputs come when all is started.
        let mut reader = reader.take(FIRST_RECORDS).await?;
        let (before, start) = (taken(&mut processes)?, Instant::now());
        let mut rest = records.len() - FIRST_RECORDS;
        while !later.is_empty() {
            let next;
            (next, later) = later.split_at(FILLING.min(later.len()));
            produce(self.bootstrap(), &place.input, PARTITIONS, next.iter())?;
            reader = reader.take(next.len()).await?;
            rest -= next.len();
        }
        reader.take(rest).await?;
        let (after, seconds) = (taken(&mut processes)?, start.elapsed().as_secs_f64());
        for process in processes {
            process.stop()?;
        }
        oracle::check(self.bootstrap(), &place, PARTITIONS, records.len()).await?;
        let taken = (records.len() - FIRST_RECORDS) as f64;
        Ok(Run {
            rate: taken / seconds,
            cpu_s: (after.cpu_s - before.cpu_s) / taken,
            peak_bytes: after.peak_bytes,
        })
    }
}

/// What all processes have taken: processor time together, and the highest peak.
fn taken(processes: &mut [Process]) -> Result<Taken, Anything> {
    let mut total = Taken { cpu_s: 0.0, peak_bytes: 0 };
    for process in processes {
        let taken = process.taken()?;
        total.cpu_s += taken.cpu_s;
        total.peak_bytes = total.peak_bytes.max(taken.peak_bytes);
    }
    Ok(total)
}

/// Waits until the group is at rest with so many members, each of which has partitions.
fn assigned(bootstrap: &str, group: &str, members: usize) -> Result<(), Anything> {
    /// Cooperative members rebalance twice.
    const AT_REST: Duration = Duration::from_secs(2);
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", bootstrap).create()?;
    let deadline = Instant::now() + PATIENCE;
    let mut since: Option<Instant> = None;
    while Instant::now() < deadline {
        // An error is a coordinator that is not there yet.
        let groups = consumer.fetch_group_list(Some(group), PATIENCE).ok();
        let at_rest = groups.iter().flat_map(|groups| groups.groups()).any(|group| {
            group.state() == "Stable"
                && group.members().len() == members
                && group
                    .members()
                    .iter()
                    .all(|member| member.assignment().is_some_and(|bytes| bytes.len() > 10))
        });
        match (at_rest, since) {
            (false, _) => since = None,
            (true, None) => since = Some(Instant::now()),
            (true, Some(since)) if since.elapsed() >= AT_REST => return Ok(()),
            (true, Some(_)) => {}
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(format!("{group} has not come to rest with {members} members").into())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
