//! A run's end: everything dumped, and the verdict on it.

use super::claims::round;
use super::{ITEMS_LIMIT, OUTPUT_PARTITIONS, Run, database};
use crate::dump;
use crate::kafka;
use crate::oracle::{Evidence, Moment, Verdict};
use crate::report::RunReport;
use crate::row::Row;
use crate::worker::Worker;
use anyhow::{Result, bail};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long the group may lag after the fault has ended.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long markers of a finished transaction may take to reach the output's readers.
const MARKERS: Duration = Duration::from_secs(15);
/// Far above what a worker with a small model needs, and far below a leak.
const RESIDENT_LIMIT_MIB: u64 = 1_000;
/// Fewer would leave too much to luck.
const LEAST_ITEMS: f64 = 500.0;

impl Run {
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
        let _ = self.runtime.block_on(database::execute(&self.site.postgres(), statement));
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
