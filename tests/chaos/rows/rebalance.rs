//! Rows 5 to 7: partitions that move while work is under way.

use crate::proxy::bodies::{self, code};
use crate::proxy::frames::{Act, api};
use crate::row::{Broker, Row};
use crate::run::{INPUT_PARTITIONS, Run, START};
use crate::worker::Worker;
use anyhow::{Context, Result};
use roc4mllm::failpoint::Rule;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const ITEMS: usize = 500;
const MEMBERS: usize = 4;
const STORM: Duration = Duration::from_secs(60);
const BETWEEN: Duration = Duration::from_secs(3);
const SESSION: Duration = Duration::from_secs(6);
/// `kafka.revoke_drain_ms`, and the heartbeat by which a member learns of a rebalance.
const REVOCATION_S: f64 = 8.0 + 1.0;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(5, "rebalance storm", Broker::Apache, storm).notices(Rule::Revoke),
        Row::new(6, "revocation during a hang", Broker::Apache, hang).short(&[1]).notices(Rule::Revoke),
        Row::new(7, "partitions return with old work alive", Broker::Proxy, come_back)
            .short(&[1])
            .notices(Rule::Epoch),
    ]
}

/// Four workers, of which one leaves and another one joins every three seconds.
fn storm(run: &mut Run) -> Result<()> {
    // Whenever a partition moves, some of its items are with the model.
    run.stand_in(json!({"batch_ms": 300}))?;
    let mut members: Vec<Worker> = Vec::new();
    for number in 0..MEMBERS {
        let setup = run.worker(&format!("w{number}"));
        members.push(run.spawn(setup)?);
    }
    for member in &members {
        member.wait_ready(START)?;
    }
    let flow = run.loader.flow(STORM.as_secs() as usize * 40, run.seed, 40.0);
    run.tail.wait_items(run.at_item, START)?;
    let (begun, mut failed, mut name) = (Instant::now(), 0, MEMBERS);
    let mut leaving: Vec<Worker> = Vec::new();
    while begun.elapsed() < STORM {
        // One that has just been started would be killed rather than leave.
        let first = run.random.below(members.len());
        members.rotate_left(first);
        let ready = members.iter().position(Worker::is_ready).context("no member is ready")?;
        let gone = members.remove(ready);
        gone.signal(libc::SIGTERM)?;
        leaving.push(gone);
        let setup = run.worker(&format!("w{name}"));
        members.push(run.spawn(setup)?);
        name += 1;
        run.fired(2);
        thread::sleep(BETWEEN);
    }
    let ended = Instant::now();
    flow.join()?;
    run.heal();
    for worker in &leaving {
        failed += usize::from(worker.wait_exit(START)? != Some(0));
    }
    run.equal("members that left with another exit code than 0", failed, 0);
    run.settle()?;
    let idle = longest_idle(run, begun, ended);
    run.at_most("seconds that a partition was idle", idle.as_secs_f64(), 2.0 * SESSION.as_secs_f64());
    Ok(())
}

/// The longest time between two outputs of one input partition.
fn longest_idle(run: &Run, begun: Instant, ended: Instant) -> Duration {
    let mut last: BTreeMap<i32, Instant> = (0..INPUT_PARTITIONS).map(|number| (number, begun)).collect();
    let mut longest = Duration::ZERO;
    let seen = run.tail.seen();
    let turns = seen.iter().filter(|seen| seen.at >= begun && seen.at < ended);
    for (partition, at) in turns.map(|seen| (seen.source.partition, seen.at)) {
        if let Some(before) = last.insert(partition, at) {
            longest = longest.max(at - before);
        }
    }
    last.values().map(|&at| ended.saturating_duration_since(at)).fold(longest, Duration::max)
}

/// The model hangs, and a second worker joins: the revocation must not wait for the model.
fn hang(run: &mut Run) -> Result<()> {
    let script = run.script("first", json!({}))?;
    let setup = run.worker("a").env("ROC4MLLM_STAND_IN", script);
    let first = run.spawn(setup)?;
    first.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, 150.0);
    run.tail.wait_items(run.at_item, START)?;
    run.script("first", json!({"hang": true}))?;
    flow.join()?;
    let before = run.tail.items();
    thread::sleep(Duration::from_secs(1));
    run.equal("outputs in a second of the hang", run.tail.items() - before, 0);
    run.fired(1);
    let setup = run.worker("b");
    let second = run.spawn(setup)?;
    first.wait_until("without half of its partitions", START, |worker| {
        Ok(worker.log_count(r#""message":"partitions revoked""#) > 0)
    })?;
    let joined = logged(&second, r#""message":"consuming""#)?;
    let revoked = logged(&first, r#""message":"partitions revoked""#)?;
    run.at_most("seconds from the second worker's join to the revocation", revoked - joined, REVOCATION_S);
    let replayed = run.tail.wait_items(before + 1, START)? - before;
    run.at_least("items that the new owner finished during the hang", replayed as f64, 1.0);
    run.script("first", json!({}))?;
    run.heal();
    Ok(())
}

/// When the first line with these words was logged, in seconds.
fn logged(worker: &Worker, words: &str) -> Result<f64> {
    let log = worker.log();
    let line = log.lines().find(|line| line.contains(words)).with_context(|| format!("no line {words}"))?;
    let line: serde_json::Value = serde_json::from_str(line)?;
    let moment = line["timestamp"].as_str().context("a timestamp")?;
    let moment = OffsetDateTime::parse(moment, &Rfc3339)?;
    Ok(moment.unix_timestamp_nanos() as f64 / 1e9)
}

/// The group expels a slow worker and takes it in again, while the work begun before goes on.
fn come_back(run: &mut Run) -> Result<()> {
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    run.loader.load(ITEMS, run.seed, None)?;
    run.tail.wait_items(run.at_item, START)?;
    // Some ten seconds of work for what is then in flight: more than it takes to come back.
    run.stand_in(json!({"batch_ms": 350}))?;
    run.loader.load(ITEMS / 2, run.seed << 32, None)?;
    let busy =
        |worker: &Worker| Ok(worker.metric("roc4mllm_items_in_flight").is_some_and(|items| items >= 100.0));
    worker.wait_until("busy with 100 items", START, busy)?;
    let armed = Arc::new(AtomicBool::new(true));
    run.site.proxy.set_rule({
        let armed = Arc::clone(&armed);
        move |request| {
            let refusal = bodies::refusal(request, code::UNKNOWN_MEMBER_ID);
            match refusal.filter(|_| request.api == api::HEARTBEAT && armed.swap(false, Ordering::Relaxed)) {
                Some(body) => Act::Reply(body),
                None => Act::Forward,
            }
        }
    });
    let lost = |worker: &Worker| Ok(worker.log_count(r#""message":"partitions lost""#) > 0);
    worker.wait_until("expelled", START, lost)?;
    run.fired(run.site.proxy.fired());
    let returned = |worker: &Worker| Ok(worker.log_count(r#""message":"partitions assigned""#) > 1);
    worker.wait_until("taken in again", START, returned)?;
    run.heal();
    run.settle()?;
    let ignored = worker.log_count("belongs to another worker now");
    run.at_least("old completions that were ignored", ignored as f64, 1.0);
    Ok(())
}
