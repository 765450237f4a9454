//! Rows 16 and 19: an S3 that asks for patience, and one that refuses everything.

use crate::outcome::rejects;
use crate::row::{Broker, Row};
use crate::run::{Run, START};
use crate::worker::Worker;
use anyhow::{Context, Result};
use roc4mllm::dev::Fault;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const ITEMS: usize = 700;
const PER_SECOND: f64 = 30.0;
const SLOW_FOR: Duration = Duration::from_secs(60);
const REFUSED_FOR: Duration = Duration::from_secs(15);
const RECOVERED: Duration = Duration::from_secs(60);
const PARALLELISM: i64 = 16;
const LIMIT: &str = "roc4mllm_s3_concurrency_limit";
const OPEN: &str = r#"roc4mllm_breaker_open{dependency="s3"}"#;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(16, "S3 asks to slow down", Broker::Apache, slow_down),
        Row::new(19, "credentials expire", Broker::Apache, refused),
    ]
}

fn metric(worker: &Worker, name: &str) -> Result<f64> {
    worker.metric(name).with_context(|| format!("{name} is not among the worker's metrics"))
}

/// Every other request is answered with 503.
fn slow_down(run: &mut Run) -> Result<()> {
    let setup = run.worker("a").set("s3.parallelism", PARALLELISM);
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    run.equal("objects fetched at once at first", metric(&worker, LIMIT)?, PARALLELISM as f64);
    let items = run.at_item + (SLOW_FOR.as_secs_f64() * PER_SECOND) as usize;
    let flow = run.loader.flow(items, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    let begun = Instant::now();
    let (asked, refused) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    run.s3.set_faults({
        let refused = Arc::clone(&refused);
        move |_| {
            let slow = asked.fetch_add(1, Ordering::Relaxed) % 2 == 0;
            refused.fetch_add(usize::from(slow), Ordering::Relaxed);
            slow.then_some(Fault::Refuse { status: 503, code: "SlowDown" })
        }
    });
    let half = |worker: &Worker| Ok(metric(worker, LIMIT)? <= PARALLELISM as f64 / 2.0);
    worker.wait_until("fetching half as many objects at once", SLOW_FOR, half)?;
    thread::sleep(SLOW_FOR.saturating_sub(begun.elapsed()));
    run.equal("the worker is alive meanwhile", u8::from(worker.is_alive()), 1);
    run.fired(refused.load(Ordering::Relaxed));
    run.s3.clear_faults();
    run.heal();
    flow.join()?;
    run.tail.wait_items(run.loader.items(), START)?;
    // Successes raise the limit: a few more than were left may be needed.
    run.loader.load(200, run.seed << 32, None)?;
    let whole = |worker: &Worker| Ok(metric(worker, LIMIT)? == PARALLELISM as f64);
    worker.wait_until("fetching as many objects at once as before", RECOVERED, whole)?;
    let evidence = run.settle()?;
    run.equal("dead letters beside those of the load", evidence.dead_letters.len(), rejects(&evidence));
    Ok(())
}

/// 403 for everything, for longer than an item would be retried.
fn refused(run: &mut Run) -> Result<()> {
    let setup = run.worker("a").set("retry.deadline_ms", 8_000);
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND * 2.0);
    run.tail.wait_items(run.at_item, START)?;
    let refused = Arc::new(AtomicUsize::new(0));
    run.s3.set_faults({
        let refused = Arc::clone(&refused);
        move |_| {
            refused.fetch_add(1, Ordering::Relaxed);
            Some(Fault::Refuse { status: 403, code: "ExpiredToken" })
        }
    });
    let open = |worker: &Worker| Ok(metric(worker, OPEN)? == 1.0);
    worker.wait_until("holding what needs S3", START, open)?;
    thread::sleep(REFUSED_FOR);
    run.equal("the breaker is open still", metric(&worker, OPEN)?, 1.0);
    run.equal("the worker is ready meanwhile", u8::from(worker.is_ready()), 0);
    run.equal("the worker is alive meanwhile", u8::from(worker.is_alive()), 1);
    run.fired(refused.load(Ordering::Relaxed));
    run.s3.clear_faults();
    run.heal();
    flow.join()?;
    run.tail.wait_items(run.loader.items(), START)?;
    worker.wait_ready(START)?;
    run.equal("the same process runs on", worker.is_running()?, true);
    run.equal("the breaker is open at the end", metric(&worker, OPEN)?, 0.0);
    let evidence = run.settle()?;
    run.equal("dead letters beside those of the load", evidence.dead_letters.len(), rejects(&evidence));
    Ok(())
}
