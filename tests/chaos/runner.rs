//! Runs rows: two at a time where they don't share the proxy, each to its report.

use crate::report::{self, RunReport};
use crate::row::{Broker, Row};
use crate::run::{self, Run};
use crate::site::Site;
use anyhow::{Result, anyhow};
use roc4mllm::failpoint::Rule;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// One row with one seed, from its servers to its verdict.
pub fn execute(site: &Arc<Site>, row: &Row, seed: u64, rule: Option<Rule>) -> RunReport {
    let _proxy = (row.broker == Broker::Proxy).then(|| site.take_proxy());
    match Run::new(site, row, seed, rule) {
        Err(error) => run::stillborn(row, seed, &error),
        Ok(mut run) => {
            let result = catch_unwind(AssertUnwindSafe(|| (row.run)(&mut run)));
            run.finish(result.unwrap_or_else(|panic| Err(anyhow!("the row panicked: {}", words(&*panic)))))
        }
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no words".to_owned())
}

struct Queue {
    jobs: VecDeque<(Row, u64)>,
    proxy_in_use: bool,
    reports: Vec<RunReport>,
}

/// Runs everything, `lanes` runs at a time, prints the table, and writes the report file. The
/// complaints of the runs that are not clean.
pub fn execute_all(
    site: &Arc<Site>,
    jobs: Vec<(Row, u64)>,
    rule: Option<Rule>,
    lanes: usize,
) -> Result<Vec<String>> {
    let total = jobs.len();
    let queue = Mutex::new(Queue { jobs: jobs.into(), proxy_in_use: false, reports: Vec::new() });
    thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| lane(site, &queue, rule, total));
        }
    });
    let mut reports = queue.into_inner().unwrap_or_else(PoisonError::into_inner).reports;
    reports.sort_by_key(|run| (run.row, run.seed));
    let file = site.folder.join("report.json");
    std::fs::write(&file, serde_json::to_string_pretty(&reports)?)?;
    println!("\n{}\n{} has every run", report::table(&reports), file.display());
    Ok(reports.iter().filter(|run| !run.is_clean()).map(RunReport::complaint).collect())
}

fn lane(site: &Arc<Site>, queue: &Mutex<Queue>, rule: Option<Rule>, total: usize) {
    let lock = || -> MutexGuard<'_, Queue> { queue.lock().unwrap_or_else(PoisonError::into_inner) };
    loop {
        let (row, seed) = {
            let mut queue = lock();
            let busy = queue.proxy_in_use;
            let free = queue.jobs.iter().position(|(row, _)| !(busy && row.broker == Broker::Proxy));
            let Some(job) = free.and_then(|next| queue.jobs.remove(next)) else {
                // Only proxied rows are left, and another lane is at them.
                return;
            };
            queue.proxy_in_use |= job.0.broker == Broker::Proxy;
            job
        };
        let begun = Instant::now();
        let report = execute(site, &row, seed, rule);
        let mut queue = lock();
        if row.broker == Broker::Proxy {
            queue.proxy_in_use = false;
        }
        let done = queue.reports.len() + 1;
        println!(
            "[{done}/{total}] row {:>2} seed {:>2} {}: {} items, recovery {:.1} s, {:.0} s in all; {}",
            report.row,
            report.seed,
            report.fault,
            report.items,
            report.recovery_s,
            begun.elapsed().as_secs_f64(),
            match rule.filter(|rule| row.must_notice(*rule, seed)) {
                _ if !report.is_clean() => report.complaints.join("; "),
                Some(rule) => format!("clean, and {rule:?} is gone: NOT NOTICED"),
                None => "clean".to_owned(),
            },
        );
        queue.reports.push(report);
    }
}
