//! Rows 1 to 4: processes that die, leave, or sleep too long.

use crate::oracle::Moment;
use crate::proxy::{Mode, frames::Act, frames::api};
use crate::row::{Broker, Row};
use crate::run::{Run, START};
use crate::worker::Worker;
use anyhow::Result;
use roc4mllm::failpoint::{CRASHES, Rule};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const ITEMS: usize = 500;
const PER_SECOND: f64 = 200.0;
/// What a deployment gives a process to leave (`terminationGracePeriodSeconds` is above it).
const LEAVING: Duration = Duration::from_secs(25);
/// What a full pipeline holds.
const IN_FLIGHT: f64 = 500.0;
/// Twice the session timeout, and a little.
const LONG_SLEEP: Duration = Duration::from_millis(12_500);

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(1, "crash at any step", Broker::Apache, crash)
            .variants(CRASHES.len() as u64)
            .short(&[8, 12])
            .notices(Rule::Reemit),
        Row::new(2, "rolling deploy", Broker::Proxy, rolling_deploy).short(&[1]),
        Row::new(3, "deploy with Kafka down", Broker::Proxy, deploy_without_kafka),
        Row::new(4, "zombie", Broker::Apache, zombie).short(&[1]).notices(Rule::Epoch),
    ]
}

/// SIGKILL where a crash leaves another state behind each time; the successor replays.
fn crash(run: &mut Run) -> Result<()> {
    let place = CRASHES[run.variant() as usize];
    run.describe(format!("crash at {place}"));
    let setup = run.worker("a").failpoint(format!("{place}={}*off->1*return", run.at_item));
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    let code = worker.wait_exit(START)?;
    run.equal("exit code after SIGKILL", code, json!(null));
    let died = worker.log_count(&format!("failpoint {place}: "));
    run.equal("deaths at the failpoint", died, 1);
    run.fired(died);
    flow.join()?;
    run.inspect("crashed")?;
    let setup = run.worker("a");
    run.spawn(setup)?;
    run.heal();
    run.settle()?;
    let reused = run.tail.seen().iter().filter(|seen| seen.reused && seen.status == "scored").count();
    let step = CRASHES.iter().position(|name| *name == place).unwrap_or_default();
    let durable = CRASHES.iter().position(|name| *name == "row-durable").unwrap_or_default();
    if (durable..CRASHES.len() - 1).contains(&step) {
        run.at_least("outputs made from rows that the dead process had written", reused as f64, 1.0);
    }
    Ok(())
}

/// SIGTERM with a full pipeline.
fn rolling_deploy(run: &mut Run) -> Result<()> {
    let left = Arc::new(AtomicUsize::new(0));
    run.site.proxy.set_rule({
        let left = Arc::clone(&left);
        move |request| {
            left.fetch_add(usize::from(request.api == api::LEAVE_GROUP), Ordering::Relaxed);
            Act::Forward
        }
    });
    run.stand_in(json!({"batch_ms": 60}))?;
    run.loader.load(ITEMS + 300 + run.at_item, run.seed, None)?;
    let setup = run.worker("a").set("pipeline.max_items", 512);
    let worker = run.spawn(setup)?;
    run.tail.wait_items(run.at_item, START)?;
    let in_flight = |worker: &Worker| worker.metric("roc4mllm_items_in_flight").unwrap_or(0.0);
    worker.wait_until("busy with 500 items", START, |worker| Ok(in_flight(worker) >= IN_FLIGHT))?;
    run.at_least("items in flight at the SIGTERM", in_flight(&worker), IN_FLIGHT);
    let asked = Instant::now();
    worker.signal(libc::SIGTERM)?;
    run.fired(1);
    let code = worker.wait_exit(LEAVING * 2)?;
    run.equal("exit code", code, 0);
    run.at_most("seconds from SIGTERM to the exit", asked.elapsed().as_secs_f64(), LEAVING.as_secs_f64());
    run.at_least("LeaveGroup requests", left.load(Ordering::Relaxed) as f64, 1.0);
    let clean = worker.log_count(r#""unfinished":0,"uncommitted":0"#);
    run.equal("drains that left nothing to be done again", clean, 1);
    let drained = run.inspect("drained")?;
    run.equal("rows whose output its successor has to write", drained.rows_without_output(), 0);
    run.stand_in(json!({}))?;
    let setup = run.worker("b");
    run.spawn(setup)?;
    run.heal();
    Ok(())
}

/// SIGTERM while no broker answers: the process must not hang in its farewell.
fn deploy_without_kafka(run: &mut Run) -> Result<()> {
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    run.site.proxy.set_mode(Mode::Silent);
    thread::sleep(Duration::from_millis(300 + run.random.below(2_000) as u64));
    let asked = Instant::now();
    worker.signal(libc::SIGTERM)?;
    run.fired(1);
    worker.wait_exit(LEAVING * 2)?;
    run.at_most("seconds from SIGTERM to the exit", asked.elapsed().as_secs_f64(), LEAVING.as_secs_f64());
    flow.join()?;
    run.site.proxy.set_mode(Mode::Open);
    let setup = run.worker("b");
    run.spawn(setup)?;
    run.heal();
    Ok(())
}

/// SIGSTOP for longer than the session: the sleeper's partitions move, and then it wakes.
fn zombie(run: &mut Run) -> Result<()> {
    run.stand_in(json!({"batch_ms": 40}))?;
    let setup = run.worker("a");
    let sleeper = run.spawn(setup)?;
    sleeper.wait_ready(START)?;
    run.loader.load(ITEMS, run.seed, None)?;
    run.tail.wait_items(run.at_item, START)?;
    sleeper.signal(libc::SIGSTOP)?;
    run.fired(1);
    let before = run.tail.items();
    let setup = run.worker("b");
    run.spawn(setup)?;
    thread::sleep(LONG_SLEEP);
    let meanwhile = run.tail.items() - before;
    run.at_least("items that the other worker finished meanwhile", meanwhile as f64, 1.0);
    sleeper.signal(libc::SIGCONT)?;
    run.heal();
    run.loader.load(100, run.seed << 32, None)?;
    let evidence = run.settle()?;
    let copies = evidence.judge(Moment::Settled).doubled.len();
    run.equal("items with more than one committed copy", copies, 0);
    let noticed = sleeper.log_count("partitions lost") + sleeper.log_count("a commit was refused");
    run.at_least("lost partitions and refused commits of the sleeper", noticed as f64, 1.0);
    Ok(())
}
