//! Rows 17, 18, 20 and 21: objects that come in pieces, late, changed, or not at all.

use crate::envelopes::{Envelope, Upload};
use crate::load::{announced, picture};
use crate::oracle::finished_beyond;
use crate::outcome::{outcomes, seen_by_scorer};
use crate::proxy::tcp::TcpProxy;
use crate::row::{Broker, Row};
use crate::run::{Run, START};
use anyhow::{Context, Result};
use roc4mllm::dev::Fault;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const ITEMS: usize = 500;
const PER_SECOND: f64 = 120.0;
/// Envelopes of one item that say which content they mean.
const PINNING: [Envelope; 6] = [
    Envelope::Aws,
    Envelope::Minio,
    Envelope::Sns,
    Envelope::EventBridge,
    Envelope::CloudEventsStructured,
    Envelope::PlainWithEtag,
];
/// Those of them that say its length too.
const SIZED: &[Envelope] = PINNING.split_at(5).0;
/// Envelopes that only name the object.
const NAMING: [Envelope; 2] = [Envelope::Plain, Envelope::CloudEventsBinary];
/// How long the one object of row 17 cannot be read, and when in it the worker dies.
const FAILING: Duration = Duration::from_secs(60);
const KILLED_AFTER: Duration = Duration::from_secs(25);
const NEIGHBOUR_EVERY: Duration = Duration::from_millis(40);
/// How soon its neighbours' outputs have to come, in seconds.
const NEIGHBOUR_DELAY: f64 = 2.0;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(17, "one object failing", Broker::Apache, one_object),
        Row::new(18, "broken body", Broker::Apache, broken_body).variants(4).short(&[1]),
        Row::new(20, "event before its object", Broker::Apache, missing).short(&[1]),
        Row::new(21, "overwritten after the event", Broker::Apache, overwritten),
    ]
}

/// A neighbour of the stuck object: its place, and when it was sent.
struct Neighbour {
    place: (i32, i64),
    sent: Instant,
}

/// Sends one neighbour after the other until `end`.
fn neighbours(run: &mut Run, sent: &mut Vec<Neighbour>, end: Instant) -> Result<()> {
    while Instant::now() < end {
        let number = sent.len();
        let upload = run.loader.put(&format!("neighbour/{number}.png"), &picture(&mut run.random)?)?;
        let begun = Instant::now();
        let place = run.loader.announce(&upload, Envelope::ALL[number % Envelope::ALL.len()], None)?;
        sent.push(Neighbour { place, sent: begun });
        thread::sleep(NEIGHBOUR_EVERY.saturating_sub(begun.elapsed()));
    }
    Ok(())
}

/// 503 for one key for a minute; in the middle of it the worker is killed and comes back.
fn one_object(run: &mut Run) -> Result<()> {
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let refused = Arc::new(AtomicUsize::new(0));
    run.s3.set_faults({
        let refused = Arc::clone(&refused);
        move |request| {
            let stuck = request.uri.path().ends_with("/stuck.png");
            refused.fetch_add(usize::from(stuck), Ordering::Relaxed);
            stuck.then_some(Fault::Refuse { status: 503, code: "ServiceUnavailable" })
        }
    });
    let mut first = Vec::new();
    let lead = NEIGHBOUR_EVERY * run.at_item as u32;
    neighbours(run, &mut first, Instant::now() + lead)?;
    let stuck = run.loader.put("stuck.png", &picture(&mut run.random)?)?;
    let partition = run.random.below(run.loader.partitions as usize) as i32;
    let failing = Instant::now();
    let (_, offset) = run.loader.announce(&stuck, Envelope::Aws, Some(partition))?;
    neighbours(run, &mut first, failing + KILLED_AFTER)?;
    worker.kill()?;
    let killed = Instant::now();
    run.fired(refused.load(Ordering::Relaxed) + 1);

    let left = run.offsets()?.read()?.into_iter().find(|one| one.partition == partition);
    let left = left.context("the stuck object's partition")?;
    run.equal("the offset committed for the stuck object's partition", left.committed, offset);
    let ahead = finished_beyond(&left.metadata).len();
    run.at_least("records that the commit's metadata names as done beyond it", ahead as f64, 10.0);
    run.inspect("killed")?;

    let setup = run.worker("a");
    let successor = run.spawn(setup)?;
    successor.wait_ready(START)?;
    let mut second = Vec::new();
    neighbours(run, &mut second, (failing + FAILING).max(Instant::now() + KILLED_AFTER))?;
    run.equal("outputs of the object that cannot be read", count_of(run, "stuck.png"), 0);
    run.tail.wait_items(run.loader.items() - 1, START)?;
    let passed = successor.metric("roc4mllm_records_already_done_total").unwrap_or(0.0);
    run.at_least("records that the successor passed over as done", passed, ahead as f64);
    let alive = u8::from(successor.is_ready() && successor.is_alive());
    run.equal("the successor is ready and alive meanwhile", alive, 1);
    run.s3.clear_faults();
    run.heal();
    let evidence = run.settle()?;
    let ends: Vec<String> = outcomes(&evidence, "stuck.png").into_iter().map(|end| end.status).collect();
    run.equal("how the stuck object ended", ends, vec!["scored"]);
    // What the dead worker had not finished waits for its successor.
    first.retain(|one| one.sent + Duration::from_secs_f64(NEIGHBOUR_DELAY) < killed);
    for (name, sent) in [("before the kill", first), ("after it", second)] {
        run.at_least(&format!("neighbours timed {name}"), sent.len() as f64, 300.0);
        let worst = longest_wait(run, &sent)?;
        run.at_most(&format!("seconds to a neighbour's output {name}"), worst, NEIGHBOUR_DELAY);
    }
    Ok(())
}

fn count_of(run: &Run, key: &str) -> usize {
    run.tail.seen().iter().filter(|seen| seen.key.as_deref() == Some(key)).count()
}

/// The longest time from sending a record to seeing all of its outputs, in seconds.
fn longest_wait(run: &Run, sent: &[Neighbour]) -> Result<f64> {
    let mut seen = HashMap::new();
    for one in run.tail.seen() {
        seen.insert((one.source.partition, one.source.offset), one.at);
    }
    let mut worst = 0.0_f64;
    for one in sent {
        let at = seen.get(&one.place).context("a neighbour without an output")?;
        worst = worst.max(at.saturating_duration_since(one.sent).as_secs_f64());
    }
    Ok(worst)
}

/// Objects that a row sends beside the load, each with its content.
struct Victims(Vec<(Upload, Vec<u8>)>);

impl Victims {
    /// Uploads `count` pictures as `prefix/N.png`.
    fn put(run: &mut Run, prefix: &str, count: usize) -> Result<Self> {
        let uploads = (0..count).map(|number| {
            let content = picture(&mut run.random)?;
            Ok((run.loader.put(&format!("{prefix}/{number}.png"), &content)?, content))
        });
        Ok(Self(uploads.collect::<Result<_>>()?))
    }

    fn announce(&self, run: &Run, envelopes: &[Envelope], status: &'static str) -> Result<()> {
        for (number, (upload, _)) in self.0.iter().enumerate() {
            let record = envelopes[number % envelopes.len()].record(&[upload]);
            run.loader.send(&record, None, &[announced(upload, status)])?;
        }
        Ok(())
    }
}

/// How many of the outputs below `prefix` carry the score of the whole content that was put.
fn scored_whole<'a>(
    run: &mut Run,
    prefix: &str,
    contents: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<usize> {
    let evidence = run.settle()?;
    let mut expected = HashMap::new();
    for (key, content) in contents {
        expected.insert(key.to_owned(), seen_by_scorer(content)?.answer.score());
    }
    let ends = outcomes(&evidence, prefix);
    let whole = ends.iter().filter(|end| {
        let wanted = end.key.as_ref().and_then(|key| expected.get(key));
        end.score.is_some() && end.score.as_ref() == wanted
    });
    Ok(whole.count())
}

/// Bodies that end, stall or shrink at some byte, or whose connection is cut there.
fn broken_body(run: &mut Run) -> Result<()> {
    const VICTIMS: usize = 120;
    /// How often each victim's body breaks, which the number of attempts allows.
    const TIMES: usize = 2;
    let variant = run.variant();
    let (name, envelopes): (_, &[Envelope]) = match variant {
        0 => ("the body stalls", &PINNING),
        1 => ("the connection ends within the body", &NAMING),
        // Without a length in the event, a body that ends where its header says cannot be told from a
        // whole one.
        2 => ("the body and its announced length are short", SIZED),
        _ => ("connections are cut after so many bytes", &PINNING),
    };
    run.describe(format!("broken body: {name}"));
    let proxy = TcpProxy::start(run.s3.endpoint().trim_start_matches("http://").parse()?)?;
    if variant == 3 {
        run.s3_endpoint = format!("http://{}", proxy.address());
    }
    let setup = run.worker("a").set("s3.stall_timeout_ms", 400);
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;

    let victims = Victims::put(run, "broken", VICTIMS)?;
    let breaks: HashMap<String, usize> = victims
        .0
        .iter()
        .map(|(upload, content)| (format!("/photos/{}", upload.key), run.random.below(content.len())))
        .collect();
    let reads: Mutex<HashMap<String, usize>> = Mutex::default();
    let (fired, resumed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    run.s3.set_faults({
        let (fired, resumed) = (Arc::clone(&fired), Arc::clone(&resumed));
        move |request| {
            resumed.fetch_add(usize::from(request.headers.contains_key("range")), Ordering::Relaxed);
            let path = request.uri.path();
            let at = *breaks.get(path).filter(|_| variant < 3)?;
            let mut reads = reads.lock().unwrap_or_else(PoisonError::into_inner);
            let read = reads.entry(path.to_owned()).or_default();
            *read += 1;
            if *read > TIMES {
                return None;
            }
            fired.fetch_add(1, Ordering::Relaxed);
            Some(match variant {
                0 => Fault::Stall { after: at / *read },
                1 => Fault::Cut { after: at / *read },
                _ => Fault::Shorten { to: at },
            })
        }
    });
    if variant == 3 {
        proxy.cut_after(Some(1_000 + run.random.below(1_500)));
        proxy.cut();
    }
    victims.announce(run, envelopes, "scored")?;
    flow.join()?;
    run.tail.wait_items(run.loader.items(), START)?;
    run.fired(fired.load(Ordering::Relaxed) + proxy.fired());
    run.at_least("bodies that broke", (fired.load(Ordering::Relaxed) + proxy.fired()) as f64, 60.0);
    if variant != 2 {
        run.at_least("bodies resumed where they broke", resumed.load(Ordering::Relaxed) as f64, 30.0);
    }
    proxy.cut_after(None);
    run.s3.clear_faults();
    run.heal();
    let contents = victims.0.iter().map(|(upload, content)| (upload.key.as_str(), content.as_slice()));
    let whole = scored_whole(run, "broken/", contents)?;
    run.equal("victims with the score of their whole body", whole, VICTIMS);
    Ok(())
}

/// 404 for three seconds, and for ever.
fn missing(run: &mut Run) -> Result<()> {
    const LATE: usize = 40;
    const NEVER: usize = 20;
    let late_for = Duration::from_secs(3);
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    let asked: Mutex<HashMap<String, Instant>> = Mutex::default();
    let refused = Arc::new(AtomicUsize::new(0));
    run.s3.set_faults({
        let refused = Arc::clone(&refused);
        move |request| {
            let path = request.uri.path();
            let never = path.starts_with("/photos/never/");
            if !never && !path.starts_with("/photos/late/") {
                return None;
            }
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            let since = asked.entry(path.to_owned()).or_insert_with(Instant::now);
            let missing = never || since.elapsed() < late_for;
            refused.fetch_add(usize::from(missing), Ordering::Relaxed);
            missing.then_some(Fault::Refuse { status: 404, code: "NoSuchKey" })
        }
    });
    let envelopes: Vec<Envelope> = PINNING.into_iter().chain(NAMING).collect();
    let late = Victims::put(run, "late", LATE)?;
    late.announce(run, &envelopes, "scored")?;
    let never = Victims::put(run, "never", NEVER)?;
    never.announce(run, &envelopes, "gone")?;
    flow.join()?;
    run.tail.wait_items(run.loader.items(), START)?;
    run.fired(refused.load(Ordering::Relaxed));
    run.heal();
    let contents = late.0.iter().map(|(upload, content)| (upload.key.as_str(), content.as_slice()));
    let scored = scored_whole(run, "late/", contents)?;
    run.equal("late objects scored", scored, LATE);
    let evidence = run.settle()?;
    let gone = outcomes(&evidence, "never/");
    let gone = gone.iter().filter(|end| end.status == "gone" && end.code() == "object_missing").count();
    run.equal("objects that never came, gone as missing", gone, NEVER);
    Ok(())
}

/// New content under the old key: before the worker reads it, and while it does.
fn overwritten(run: &mut Run) -> Result<()> {
    const EACH: usize = 30;
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;

    // Before: the old event's content is gone, and the new event's is scored.
    let old = Victims::put(run, "before", EACH)?;
    let new = Victims::put(run, "before", EACH)?;
    old.announce(run, &PINNING, "gone")?;
    new.announce(run, &PINNING, "scored")?;
    run.fired(EACH);

    // While it is read: the first half of the old content, and then the new one is there.
    let pinned = Victims::put(run, "pinned", EACH)?;
    let loose = Victims::put(run, "loose", EACH)?;
    let mut next = HashMap::new();
    for (upload, content) in pinned.0.iter().chain(&loose.0) {
        let path = format!("/photos/{}", upload.key);
        next.insert(path, (upload.clone(), content.len() / 2, picture(&mut run.random)?));
    }
    let contents: Vec<(String, Vec<u8>)> = loose
        .0
        .iter()
        .map(|(upload, _)| upload.key.clone())
        .map(|key| {
            let content = next.get(&format!("/photos/{key}")).map(|(_, _, content)| content.clone());
            (key, content.unwrap_or_default())
        })
        .collect();
    let next = Mutex::new(next);
    let (server, loader) = (Arc::downgrade(&run.s3), run.loader.bucket.clone());
    let replaced = Arc::new(AtomicUsize::new(0));
    run.s3.set_faults({
        let replaced = Arc::clone(&replaced);
        move |request| {
            let path = request.uri.path();
            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
            if !request.headers.contains_key("range") {
                return next.get(path).map(|(_, half, _)| Fault::Cut { after: *half });
            }
            let (upload, _, content) = next.remove(path)?;
            server.upgrade()?.put(&loader, &upload.key, &content).ok()?;
            replaced.fetch_add(1, Ordering::Relaxed);
            None
        }
    });
    pinned.announce(run, &PINNING, "gone")?;
    loose.announce(run, &NAMING, "scored")?;
    flow.join()?;
    run.tail.wait_items(run.loader.items(), START)?;
    let replaced = replaced.load(Ordering::Relaxed);
    run.fired(replaced);
    run.equal("objects overwritten while they were read", replaced, 2 * EACH);
    run.s3.clear_faults();
    run.heal();

    let evidence = run.settle()?;
    for (prefix, expected) in [("before/", EACH), ("pinned/", EACH)] {
        let ends = outcomes(&evidence, prefix);
        let superseded = ends.iter().filter(|end| end.status == "gone" && end.code() == "superseded");
        let said = superseded.filter(|end| end.message().contains("superseded")).count();
        run.equal(&format!("events superseded below {prefix}"), said, expected);
    }
    let fresh = new.0.iter().map(|(upload, content)| (upload.key.as_str(), content.as_slice()));
    let scored = scored_whole(run, "before/", fresh)?;
    run.equal("new contents scored for the event that names them", scored, EACH);
    let contents = contents.iter().map(|(key, content)| (key.as_str(), content.as_slice()));
    let scored = scored_whole(run, "loose/", contents)?;
    run.equal("new contents scored for events that name only a key", scored, EACH);
    Ok(())
}
