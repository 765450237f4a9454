//! Rows 8 to 12: transactions whose replies get lost, come late or say no, and brokers that are away.

use crate::proxy::Mode;
use crate::proxy::bodies::{self, code};
use crate::proxy::frames::{Act, Request, api};
use crate::row::{Broker, Row};
use crate::run::{Run, START};
use crate::worker::Worker;
use anyhow::{Result, bail};
use roc4mllm::failpoint::Rule;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const ITEMS: usize = 500;
const PER_SECOND: f64 = 150.0;
const OUTAGE: Duration = Duration::from_secs(60);

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(8, "commit reply lost", Broker::Proxy, lost_reply)
            .variants(2)
            .short(&[1])
            // With its connection broken, the client asks again and is told.
            .notices_in(0, Rule::Compare),
        Row::new(9, "late EndTxn", Broker::Proxy, late_end).short(&[1]),
        Row::new(10, "coordinator moves", Broker::Proxy, coordinator_moves).variants(3),
        Row::new(11, "client fatal", Broker::Proxy, fatal).variants(2).short(&[2]),
        Row::new(12, "brokers down", Broker::Proxy, outage).variants(2),
    ]
}

/// A ready worker under load with as many outputs as the seed says. The rest of the load is on its way.
fn busy_worker(run: &mut Run) -> Result<(Worker, crate::load::Flow)> {
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    Ok((worker, flow))
}

fn wait_fired(run: &Run, times: usize) -> Result<()> {
    let deadline = Instant::now() + START;
    while run.site.proxy.fired() < times {
        if Instant::now() > deadline {
            bail!("the fault fired {} times of {times}", run.site.proxy.fired());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn replacements(worker: &Worker) -> f64 {
    worker.metric("roc4mllm_producer_replacements_total").unwrap_or(0.0)
}

/// The broker commits and the worker is never told; every other seed breaks the connection too.
fn lost_reply(run: &mut Run) -> Result<()> {
    let cut = run.variant() == 1;
    run.describe(if cut { "commit reply lost with its connection" } else { "commit reply lost" });
    let (worker, flow) = busy_worker(run)?;
    let mut left = 2;
    run.site.proxy.set_rule(move |request| {
        if left == 0 || !bodies::is_commit(request) {
            return Act::Forward;
        }
        left -= 1;
        if cut { Act::DropReplyAndCut } else { Act::DropReply }
    });
    wait_fired(run, 2)?;
    let replaced = |worker: &Worker| Ok(replacements(worker) >= 1.0);
    worker.wait_until("rid of its producer", START, replaced)?;
    run.fired(run.site.proxy.fired());
    run.heal();
    flow.join()?;
    run.at_least("producers replaced", replacements(&worker), 1.0);
    run.equal("the worker runs on", worker.is_running()?, true);
    Ok(())
}

/// A commit request gets lost, and arrives in the middle of the next producer's transaction.
fn late_end(run: &mut Run) -> Result<()> {
    let (worker, flow) = busy_worker(run)?;
    let delayed = Arc::new(AtomicUsize::new(0));
    run.site.proxy.set_rule({
        let delayed = Arc::clone(&delayed);
        let (mut held, mut next_producer) = (false, false);
        move |request| {
            next_producer |= held && request.api == api::INIT_PRODUCER_ID;
            if !held && bodies::is_commit(request) {
                held = true;
                return Act::Hold;
            }
            if next_producer && bodies::is_commit(request) && delayed.load(Ordering::Relaxed) == 0 {
                delayed.store(1, Ordering::Relaxed);
                return Act::Delay(Duration::from_millis(1_500));
            }
            Act::Forward
        }
    });
    let deadline = Instant::now() + START;
    while delayed.load(Ordering::Relaxed) == 0 {
        if Instant::now() > deadline {
            bail!("no producer followed the one whose commit was held");
        }
        thread::sleep(Duration::from_millis(5));
    }
    let replies = run.site.proxy.release()?;
    run.fired(replies.len());
    run.heal();
    flow.join()?;
    let codes: Vec<_> = replies.iter().filter_map(|reply| bodies::end_txn_code(reply)).collect();
    let refused =
        codes.iter().filter(|code| [code::INVALID_PRODUCER_EPOCH, code::PRODUCER_FENCED].contains(code));
    let refused = refused.count();
    run.equal("late requests refused by producer epoch", refused, replies.len());
    run.at_least("producers replaced", replacements(&worker), 1.0);
    run.equal("the worker runs on", worker.is_running()?, true);
    Ok(())
}

/// What coordinators say while they move, or while the group does.
fn coordinator_moves(run: &mut Run) -> Result<()> {
    let (name, code, apis): (_, _, &[i16]) = [
        ("NOT_COORDINATOR", code::NOT_COORDINATOR, [api::ADD_OFFSETS_TO_TXN, api::END_TXN].as_slice()),
        ("CONCURRENT_TRANSACTIONS", code::CONCURRENT_TRANSACTIONS, [api::ADD_OFFSETS_TO_TXN].as_slice()),
        ("ILLEGAL_GENERATION", code::ILLEGAL_GENERATION, [api::TXN_OFFSET_COMMIT].as_slice()),
    ][run.variant() as usize];
    run.describe(format!("coordinator moves: {name}"));
    let (worker, flow) = busy_worker(run)?;
    let times = 3 + run.random.below(5);
    let mut left = times;
    let apis = apis.to_vec();
    run.site.proxy.set_rule(move |request: &Request| {
        if left == 0 || !apis.contains(&request.api) {
            return Act::Forward;
        }
        left -= 1;
        match bodies::refusal(request, code) {
            Some(body) => Act::Reply(body),
            // Offsets that the broker took go away again with the transaction that the worker aborts.
            None => Act::Rewrite(Box::new(move |body| bodies::refuse_offsets(body, code))),
        }
    });
    wait_fired(run, times)?;
    run.fired(run.site.proxy.fired());
    run.heal();
    flow.join()?;
    run.settle_running()?;
    run.equal("the worker runs on", worker.is_running()?, true);
    if code == code::ILLEGAL_GENERATION {
        let aborts = worker.metric("roc4mllm_commit_aborts_total").unwrap_or(0.0);
        run.at_least("commits aborted", aborts, times as f64);
    }
    Ok(())
}

/// A producer that is fenced, or a consumer that is.
fn fatal(run: &mut Run) -> Result<()> {
    if run.variant() == 1 {
        return fenced_consumer(run);
    }
    run.describe("client fatal: INVALID_PRODUCER_EPOCH");
    let (worker, flow) = busy_worker(run)?;
    let target = if run.random.one_in(2) { api::END_TXN } else { api::ADD_OFFSETS_TO_TXN };
    let mut left = 2;
    run.site.proxy.set_rule(move |request| {
        match bodies::refusal(request, code::INVALID_PRODUCER_EPOCH)
            .filter(|_| left > 0 && request.api == target)
        {
            Some(body) => {
                left -= 1;
                Act::Reply(body)
            }
            None => Act::Forward,
        }
    });
    wait_fired(run, 1)?;
    worker.wait_until("rid of its producer", START, |worker| Ok(replacements(worker) >= 1.0))?;
    run.fired(run.site.proxy.fired());
    run.heal();
    flow.join()?;
    run.at_least("producers replaced", replacements(&worker), 1.0);
    run.equal("the worker runs on", worker.is_running()?, true);
    Ok(())
}

fn fenced_consumer(run: &mut Run) -> Result<()> {
    run.describe("client fatal: FENCED_INSTANCE_ID");
    let (worker, flow) = busy_worker(run)?;
    run.site.proxy.set_rule(|request| {
        match bodies::refusal(request, code::FENCED_INSTANCE_ID).filter(|_| request.api == api::HEARTBEAT) {
            Some(body) => Act::Reply(body),
            None => Act::Forward,
        }
    });
    wait_fired(run, 1)?;
    let fenced = Instant::now();
    let code = worker.wait_exit(START)?;
    run.at_most("seconds from the refusal to the exit", fenced.elapsed().as_secs_f64(), 5.0);
    run.equal("exit code", code, json!(72));
    run.fired(run.site.proxy.fired());
    run.site.proxy.clear_rule();
    let setup = run.worker("a");
    run.spawn(setup)?;
    run.heal();
    flow.join()
}

/// No broker for a minute: connections refused, or without a sound.
fn outage(run: &mut Run) -> Result<()> {
    let silent = run.variant() == 1;
    run.describe(if silent { "brokers silent for 60 s" } else { "brokers down for 60 s" });
    let (worker, flow) = busy_worker(run)?;
    run.site.proxy.set_mode(if silent { Mode::Silent } else { Mode::Refusing });
    run.fired(1);
    let begun = Instant::now();
    let (mut dead, mut unready) = (0, 0);
    while begun.elapsed() < OUTAGE {
        dead += usize::from(!worker.is_alive());
        unready += usize::from(!worker.is_ready());
        thread::sleep(Duration::from_secs(1));
    }
    run.equal("seconds without a sign of life", dead, 0);
    run.at_least("seconds not ready", unready as f64, 10.0);
    run.site.proxy.set_mode(Mode::Open);
    run.heal();
    flow.join()?;
    run.settle_running()?;
    run.equal("the worker runs on", worker.is_running()?, true);
    run.equal("the worker is ready again", worker.is_ready(), true);
    Ok(())
}
