//! Rows 23 to 25: a device without memory, images that the model cannot bear, runs that hang or
//! compute nonsense.

use crate::envelopes::{Envelope, Upload};
use crate::load::{announced, picture};
use crate::outcome::{letters, outcomes, rejects, seen_by_scorer};
use crate::row::{Broker, Row};
use crate::run::{Run, START};
use crate::worker::Worker;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::thread;
use std::time::{Duration, Instant};

const ITEMS: usize = 500;
const PER_SECOND: f64 = 150.0;
/// `inference.batch_size` of these rows' workers.
const BATCH: usize = 8;
const HANG_TIMEOUT_MS: i64 = 3_000;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(23, "device out of memory", Broker::Apache, out_of_memory).variants(2),
        Row::new(24, "poison image", Broker::Apache, poison).variants(2).short(&[2]),
        Row::new(25, "kernel hang, scores that are no numbers", Broker::Apache, nonsense)
            .variants(3)
            .short(&[3]),
    ]
}

fn metric(worker: &Worker, name: &str) -> Result<f64> {
    worker.metric(name).with_context(|| format!("{name} is not among the worker's metrics"))
}

/// Batches above some size do not fit; or none does.
fn out_of_memory(run: &mut Run) -> Result<()> {
    let setup = run.worker("a").set("inference.batch_size", BATCH as i64);
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    run.equal(
        "images in a batch at first, at most",
        metric(&worker, "roc4mllm_model_batch_cap")?,
        BATCH as f64,
    );
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    if run.variant() == 0 {
        let fits = [4, 2, 1][run.random.below(3)];
        run.describe(format!("device out of memory above {fits} images"));
        run.stand_in(json!({"out_of_memory_above": fits, "batch_ms": 20}))?;
        flow.join()?;
        run.tail.wait_items(run.loader.items(), START)?;
        let halved = metric(&worker, "roc4mllm_model_out_of_memory_total")?;
        run.fired(halved as usize);
        run.at_least("batches halved", halved, 1.0);
        // A batch halves down to what fits, and no larger one is tried.
        run.at_most("batches halved", halved, 8.0);
        run.equal(
            "images in a batch since then, at most",
            metric(&worker, "roc4mllm_model_batch_cap")?,
            f64::from(fits),
        );
        run.heal();
    } else {
        run.describe("device out of memory with one image");
        run.stand_in(json!({"out_of_memory_above": 0}))?;
        let code = worker.wait_exit(START)?;
        run.equal("exit code", code, 75);
        run.fired(1);
        run.inspect("out-of-memory")?;
        flow.join()?;
        run.stand_in(json!({}))?;
        let setup = run.worker("a");
        run.spawn(setup)?;
        run.heal();
    }
    let evidence = run.settle()?;
    run.equal("dead letters beside those of the load", evidence.dead_letters.len(), rejects(&evidence));
    Ok(())
}

/// A picture below `prefix` and what the scorer calls it; not announced yet.
fn special(run: &mut Run, key: &str) -> Result<(Upload, String)> {
    let content = picture(&mut run.random)?;
    let digest = seen_by_scorer(&content)?.digest;
    Ok((run.loader.put(key, &content)?, digest))
}

fn poison(run: &mut Run) -> Result<()> {
    match run.variant() {
        0 => failing(run),
        _ => deadly(run),
    }
}

/// An image that ends every process that scores it, restarted as Kubernetes does.
fn deadly(run: &mut Run) -> Result<()> {
    run.describe("image that kills the process");
    let (upload, digest) = special(run, "poison/deadly.png")?;
    run.stand_in(json!({"abort": [digest]}))?;
    run.loader.load(run.at_item, run.seed, None)?;
    run.loader.send(&Envelope::Aws.record(&[&upload]), None, &[announced(&upload, "rejected")])?;
    run.loader.load(ITEMS.saturating_sub(run.at_item), run.seed << 20, None)?;
    let (items, deadline) = (run.loader.items(), Instant::now() + 3 * START);
    let mut starts = 0;
    while run.tail.items() < items {
        let setup = run.worker("a");
        let worker = run.spawn(setup)?;
        starts += 1;
        while worker.is_running()? && run.tail.items() < items {
            ensure!(Instant::now() < deadline, "{} of {items} items after {starts} starts", run.tail.items());
            thread::sleep(Duration::from_millis(100));
        }
    }
    run.fired(starts - 1);
    run.at_least("processes that it killed", (starts - 1) as f64, 1.0);
    run.at_most("starts until everything has its outcome", starts as f64, 4.0);
    run.heal();
    let evidence = run.settle()?;
    run.equal("dead letters with class poison", letters(&evidence, "poison"), 1);
    let ends = outcomes(&evidence, "poison/");
    let named = ends.iter().filter(|end| end.status == "rejected" && end.code() == "poison").count();
    run.equal("deadly images rejected as poison", named, 1);
    run.equal("dead letters beside those of the load", evidence.dead_letters.len(), rejects(&evidence));
    Ok(())
}

/// A batch with one of these images fails as a whole.
fn failing(run: &mut Run) -> Result<()> {
    run.describe("image that fails its batch");
    const POISONS: usize = 4;
    let mut poisons = Vec::new();
    for number in 0..POISONS {
        poisons.push(special(run, &format!("poison/{number}.png"))?);
    }
    let digests: Vec<&String> = poisons.iter().map(|(_, digest)| digest).collect();
    run.stand_in(json!({"fail": digests, "batch_ms": 20}))?;
    // A long linger: what arrives together is scored together.
    let setup = run.worker("a").set("inference.batch_size", BATCH as i64).set("inference.linger_ms", 1_500);
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    let announce = |run: &Run, upload: &Upload| {
        let record = Envelope::Aws.record(&[upload]);
        run.loader.send(&record, None, &[announced(upload, "rejected")])
    };
    for (upload, _) in &poisons[1..] {
        announce(run, upload)?;
    }
    flow.join()?;
    run.tail.wait_items(run.loader.items(), START)?;
    let levels = BATCH.ilog2() as usize;
    let split = metric(&worker, "roc4mllm_model_bisections_total")?;
    run.at_most("batches split for three such images", split, (3 * levels) as f64);

    // One batch with one of them in the middle, and nothing else to score.
    let before = metric(&worker, "roc4mllm_model_batches_total")?;
    for number in 1..BATCH {
        let (good, _) = special(run, &format!("beside/{number}.png"))?;
        run.loader.announce(&good, Envelope::Aws, None)?;
        if number == BATCH / 2 {
            announce(run, &poisons[0].0)?;
        }
    }
    run.tail.wait_items(run.loader.items(), START)?;
    let runs = metric(&worker, "roc4mllm_model_batches_total")? - before;
    run.at_least("runs beside the first for a batch of 8 with one such image", runs - 1.0, 1.0);
    run.at_most(
        "runs beside the first for a batch of 8 with one such image",
        runs - 1.0,
        (2 * levels) as f64,
    );
    run.fired(POISONS);
    run.heal();

    let evidence = run.settle()?;
    let ends = outcomes(&evidence, "poison/");
    let named = ends.iter().filter(|end| end.status == "rejected" && end.code() == "poison").count();
    run.equal("such images rejected as poison", named, POISONS);
    run.equal("dead letters beside those of the load", evidence.dead_letters.len(), rejects(&evidence));
    Ok(())
}

/// A run that never ends, and scores that are no numbers.
fn nonsense(run: &mut Run) -> Result<()> {
    match run.variant() {
        0 => hang(run),
        1 => not_finite(run),
        _ => mostly_not_finite(run),
    }
}

fn hang(run: &mut Run) -> Result<()> {
    run.describe("kernel hang");
    let setup = run.worker("a").set("inference.hang_timeout_ms", HANG_TIMEOUT_MS);
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    run.stand_in(json!({"hang": true}))?;
    let since = Instant::now();
    let code = worker.wait_exit(START)?;
    run.equal("exit code", code, 71);
    run.fired(1);
    let longest = Duration::from_millis(HANG_TIMEOUT_MS as u64) + Duration::from_secs(10);
    run.at_most("seconds from the hang to the exit", since.elapsed().as_secs_f64(), longest.as_secs_f64());
    run.inspect("hung")?;
    flow.join()?;
    run.stand_in(json!({}))?;
    let setup = run.worker("a");
    run.spawn(setup)?;
    run.heal();
    let evidence = run.settle()?;
    run.equal("dead letters beside those of the load", evidence.dead_letters.len(), rejects(&evidence));
    run.equal("dead letters with class poison", letters(&evidence, "poison"), 0);
    Ok(())
}

/// So few that they are the images' own matter.
fn not_finite(run: &mut Run) -> Result<()> {
    const SUCH: usize = 5;
    run.describe("a few scores that are no numbers");
    let mut such = Vec::new();
    for number in 0..SUCH {
        such.push(special(run, &format!("nan/{number}.png"))?);
    }
    let digests: Vec<&String> = such.iter().map(|(_, digest)| digest).collect();
    run.stand_in(json!({"not_finite": digests}))?;
    // Where the machine is slow, they may come in a row and open the breaker; then the built-in picture decides.
    let setup = run.worker("a").set("inference.golden_interval_ms", 1_000);
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    for (number, (upload, _)) in such.iter().enumerate() {
        run.tail.wait_items(run.at_item + number * 20, START)?;
        let record = Envelope::Aws.record(&[upload]);
        run.loader.send(&record, None, &[announced(upload, "rejected")])?;
    }
    flow.join()?;
    run.tail.wait_items(run.loader.items(), START)?;
    run.fired(SUCH);
    run.equal("the worker is ready meanwhile", u8::from(worker.is_ready()), 1);
    run.heal();
    let evidence = run.settle()?;
    let ends = outcomes(&evidence, "nan/");
    let named =
        ends.iter().filter(|end| end.status == "rejected" && end.code() == "non_finite_score").count();
    run.equal("images rejected for their score", named, SUCH);
    run.equal("dead letters beside those of the load", evidence.dead_letters.len(), rejects(&evidence));
    Ok(())
}

/// So many that the model is to blame: nothing is rejected for it while the breaker is open.
fn mostly_not_finite(run: &mut Run) -> Result<()> {
    const SUCH: usize = 80;
    /// The breaker opens at the latest when over 5% of the last results are such: all of them may be among those.
    const BEFORE: usize = (ITEMS + SUCH) / 20 + 1;
    run.describe("many scores that are no numbers");
    let mut such = Vec::new();
    for number in 0..SUCH {
        such.push(special(run, &format!("nan/{number}.png"))?);
    }
    let digests: Vec<&String> = such.iter().map(|(_, digest)| digest).collect();
    // The built-in picture, which this stand-in always gets right, must not come in between.
    let setup = run.worker("a").set("inference.golden_interval_ms", 3_600_000);
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    run.stand_in(json!({"not_finite": digests}))?;
    for (upload, _) in &such {
        let items = [announced(upload, "scored|rejected")];
        run.loader.send(&Envelope::Aws.record(&[upload]), None, &items)?;
    }
    let open = |worker: &Worker| {
        let breaker = worker.metric(r#"roc4mllm_breaker_open{dependency="model"}"#);
        Ok(breaker.is_some_and(|open| open > 0.0))
    };
    worker.wait_until("held for its model", START, open)?;
    run.equal("ready while the model is held", worker.is_ready(), false);
    run.equal("alive while the model is held", worker.is_alive(), true);
    flow.join()?;
    let again = worker.metric(r#"roc4mllm_retries_total{stage="infer"}"#).unwrap_or(0.0) as usize;
    run.stand_in(json!({}))?;
    run.heal();
    run.tail.wait_items(run.loader.items(), START)?;
    run.equal("ready again", worker.is_ready(), true);
    let evidence = run.settle()?;
    let rejected = outcomes(&evidence, "nan/").iter().filter(|end| end.status == "rejected").count();
    run.fired(rejected + again);
    run.at_most("images rejected before the breaker opened", rejected as f64, BEFORE as f64);
    let expected = rejects(&evidence) + rejected;
    run.equal("dead letters beside those of the load", evidence.dead_letters.len(), expected);
    Ok(())
}
