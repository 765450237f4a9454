//! Rows 13 to 15: logs with holes, logs that were cut, and topics that take nothing.

use crate::envelopes::{Envelope, Record, Upload};
use crate::kafka::{self, admin, options};
use crate::load::{Announced, announced, picture};
use crate::oracle::Evidence;
use crate::outcome::{outcomes, seen_by_scorer};
use crate::proxy::bodies::{code, refuse_produce};
use crate::proxy::frames::{Act, api};
use crate::row::{Broker, Row};
use crate::run::{INPUT_PARTITIONS, Run, START};
use crate::tail::Seen;
use anyhow::{Context, Result, ensure};
use rdkafka::admin::{AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::consumer::Consumer;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use roc4mllm::object::{ObjectRef, ScoreId};
use roc4mllm::record::{Position, output::OutputRecord, trace::TraceContext};
use roc4mllm::score::{ItemStatus, ModelVersion};
use serde_json::json;
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};
use time::OffsetDateTime;

const ITEMS: usize = 500;
/// Objects announced before the log is cut and again after it.
const KNOWN: usize = 20;
/// Outputs whose detail has to go; `max.message.bytes` of the topics; and what a batch takes of that.
const TRIMMED: usize = 20;
/// Small enough that a key of at most 1,024 bytes fills it.
const TOPIC_LIMIT: usize = 3_584;
const BATCH_OVERHEAD: usize = 128;
/// How long the log cleaner may take to get to a topic.
const CLEANING: Duration = Duration::from_secs(60);
const TRANSACTION: Duration = Duration::from_secs(10);
const NOTICED: Duration = Duration::from_secs(20);

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(13, "offset gaps", Broker::Apache, gaps).short(&[1]),
        Row::new(14, "log truncated, partitions added", Broker::Apache, truncated).short(&[1]),
        Row::new(15, "topic refuses records", Broker::Proxy, refused).variants(3),
    ]
}

/// Aborted transactions, markers at the very end, and compaction: offsets that nobody will ever see.
fn gaps(run: &mut Run) -> Result<()> {
    let mut records = Vec::new();
    for number in 0..ITEMS {
        let partition = number as i32 % INPUT_PARTITIONS;
        let upload = run.loader.put(&format!("{number}.png"), &picture(&mut run.random)?)?;
        let record = Envelope::PlainWithEtag.record(&[&upload]);
        records.push((format!("photo {number}"), partition, record, vec![announced(&upload, "scored")]));
        if number == run.at_item {
            // All of one key: compaction leaves the last of each partition.
            let replaced =
                |index: i32| ("test".to_owned(), index % INPUT_PARTITIONS, test_event(), Vec::new());
            records.extend((0..40 * INPUT_PARTITIONS).map(replaced));
        }
    }
    run.loader.send_keyed(&records)?;
    compact(run)?;
    let aborted = leave_transactions(run)?;
    let offsets = run.offsets()?.read()?;
    let end: i64 = offsets.iter().map(|partition| partition.end).sum();
    let seen = visible(run)?.len() as i64;
    run.at_least("offsets that no reader sees", (end - seen) as f64, 400.0);
    run.fired(usize::try_from(end - seen)?);
    let setup = run.worker("a");
    run.spawn(setup)?;
    run.heal();
    run.settle()?;
    for partition in run.offsets()?.read()? {
        let claim = format!("committed offset of partition {}", partition.partition);
        run.equal(&claim, partition.committed, partition.end);
    }
    run.equal("aborted records that were processed", strangers(run, &aborted)?, 0);
    Ok(())
}

fn test_event() -> Record {
    Record::plain(json!({"Service": "Amazon S3", "Event": "s3:TestEvent"}).to_string())
}

/// Has the input topic compacted as it stands, and waits until the cleaner has been there.
fn compact(run: &Run) -> Result<()> {
    let before = visible(run)?.len();
    let config = AlterConfig::new(ResourceSpecifier::Topic(&run.topics.input))
        .set("cleanup.policy", "compact")
        .set("segment.ms", "100")
        .set("min.cleanable.dirty.ratio", "0.01")
        .set("max.compaction.lag.ms", "100");
    alter(run, &config)?;
    thread::sleep(Duration::from_millis(300));
    // A segment is rolled, and so becomes cleanable, when the next record comes.
    let rolling: Vec<_> = (0..INPUT_PARTITIONS)
        .map(|partition| ("roll".to_owned(), partition, test_event(), Vec::new()))
        .collect();
    run.loader.send_keyed(&rolling)?;
    let deadline = Instant::now() + CLEANING;
    while visible(run)?.len() > before - 20 * INPUT_PARTITIONS as usize {
        ensure!(Instant::now() < deadline, "the log cleaner has not come by in {CLEANING:?}");
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

fn alter(run: &Run, config: &AlterConfig<'_>) -> Result<()> {
    let admin = admin(&run.bootstrap())?;
    let results = run.runtime.block_on(admin.alter_configs([config], &options()))?;
    let refused = results.into_iter().find_map(Result::err);
    ensure!(refused.is_none(), "the topic's configuration: {refused:?}");
    Ok(())
}

/// One aborted and one empty transaction over every partition, whose markers end the log. Where the
/// aborted records are.
fn leave_transactions(run: &Run) -> Result<BTreeSet<(i32, i64)>> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", run.bootstrap())
        .set("transactional.id", format!("{}-uploader", run.group))
        .set("log_level", "0")
        .create()?;
    producer.init_transactions(TRANSACTION)?;
    let ends: Vec<i64> = run.offsets()?.read()?.iter().map(|partition| partition.end).collect();
    let mut aborted = BTreeSet::new();
    producer.begin_transaction()?;
    for number in 0..4 * i64::from(INPUT_PARTITIONS) {
        let partition = (number % i64::from(INPUT_PARTITIONS)) as i32;
        let payload =
            json!({"bucket": run.loader.bucket, "key": format!("aborted/{number}.png")}).to_string();
        let record = BaseRecord::to(&run.topics.input).partition(partition).key("aborted").payload(&payload);
        producer.send(record).map_err(|(error, _)| error)?;
        aborted.insert((partition, ends[partition as usize] + number / i64::from(INPUT_PARTITIONS)));
    }
    producer.flush(TRANSACTION)?;
    producer.abort_transaction(TRANSACTION)?;
    Ok(aborted)
}

/// Offsets of the input topic that a `read_committed` reader sees.
fn visible(run: &Run) -> Result<BTreeSet<(i32, i64)>> {
    let reader = kafka::reader(&run.bootstrap(), &run.topics.input, INPUT_PARTITIONS)?;
    let mut seen = BTreeSet::new();
    let mut ended = BTreeSet::new();
    let deadline = Instant::now() + kafka::TIMEOUT;
    while ended.len() < INPUT_PARTITIONS as usize {
        ensure!(Instant::now() < deadline, "the input topic has no end");
        match reader.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                use rdkafka::Message;
                seen.insert((message.partition(), message.offset()));
            }
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
    drop(reader.unassign());
    Ok(seen)
}

/// Outputs that speak of one of these places.
fn strangers(run: &Run, places: &BTreeSet<(i32, i64)>) -> Result<usize> {
    let outputs = Evidence::read(&run.folder)?.outputs;
    let sources = outputs.iter().filter_map(|output| {
        let value: serde_json::Value = serde_json::from_str(output.value.as_deref()?).ok()?;
        let source = &value["source"];
        Some((i32::try_from(source["partition"].as_i64()?).ok()?, source["offset"].as_i64()?))
    });
    Ok(sources.filter(|place| places.contains(place)).count())
}

/// Retention removes what was not read yet, so that the committed offsets lie before the log's
/// beginning; and the topic grows while a worker runs.
fn truncated(run: &mut Run) -> Result<()> {
    let setup = run.worker("a");
    let first = run.spawn(setup)?;
    let known = photos(run, "known", KNOWN)?;
    announce(run, &known)?;
    run.loader.load(run.at_item, run.seed, None)?;
    run.tail.wait_items(run.loader.items(), START)?;
    first.signal(libc::SIGTERM)?;
    let code = first.wait_exit(START)?;
    run.equal("exit code of the first worker", code, 0);
    let doomed = send_doomed(run)?;
    let ends = run.offsets()?.read()?;
    let mut list = TopicPartitionList::new();
    for partition in &ends {
        list.add_partition_offset(&run.topics.input, partition.partition, Offset::Offset(partition.end))?;
    }
    run.runtime.block_on(admin(&run.bootstrap())?.delete_records(&list, &options()))?;
    let behind = run.offsets()?.read()?.into_iter().filter(|one| one.committed < Some(one.begin)).count();
    run.at_least("partitions whose committed offset is gone", behind as f64, 1.0);
    run.fired(behind);
    announce(run, &known)?;
    run.loader.load(ITEMS - run.at_item.min(ITEMS), run.seed << 20, None)?;
    let setup = run.worker("b").set("kafka.metadata_refresh_ms", 1_000);
    let second = run.spawn(setup)?;
    run.tail.wait_items(run.loader.items(), START)?;
    grow(run)?;
    second.wait_until("assigned the new partitions", NOTICED, |worker| {
        Ok(worker.metric("roc4mllm_partitions_assigned_total").is_some_and(|count| count >= 16.0))
    })?;
    run.heal();
    run.settle()?;
    run.equal("records that were gone and have an output", strangers(run, &doomed)?, 0);
    let again = run.tail.seen().iter().filter(|seen| seen.reused && is_below(seen, "known/")).count();
    run.equal("known objects announced again that reused their row", again, KNOWN);
    run.rows_are_ids()
}

fn is_below(seen: &Seen, prefix: &str) -> bool {
    seen.key.as_ref().is_some_and(|key| key.starts_with(prefix))
}

/// Uploads `count` pictures as `prefix/N.png`.
fn photos(run: &mut Run, prefix: &str, count: usize) -> Result<Vec<Upload>> {
    let photos = (0..count)
        .map(|number| run.loader.put(&format!("{prefix}/{number}.png"), &picture(&mut run.random)?));
    photos.collect()
}

fn announce(run: &Run, uploads: &[Upload]) -> Result<()> {
    for upload in uploads {
        run.loader.announce(upload, Envelope::Aws, None)?;
    }
    Ok(())
}

/// Records that retention will have removed before anybody reads them: nobody's loss but the uploader's.
fn send_doomed(run: &Run) -> Result<BTreeSet<(i32, i64)>> {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", run.bootstrap()).set("log_level", "0").create()?;
    let ends = run.offsets()?.read()?;
    let mut doomed = BTreeSet::new();
    for partition in &ends {
        for number in 0..5 {
            let payload =
                json!({"bucket": run.loader.bucket, "key": format!("doomed/{number}.png")}).to_string();
            let record =
                BaseRecord::<(), _>::to(&run.topics.input).partition(partition.partition).payload(&payload);
            producer.send(record).map_err(|(error, _)| error)?;
            doomed.insert((partition.partition, partition.end + number));
        }
    }
    producer.flush(TRANSACTION)?;
    Ok(doomed)
}

/// Four more partitions, with a few records each.
fn grow(run: &mut Run) -> Result<()> {
    let partitions = NewPartitions::new(&run.topics.input, INPUT_PARTITIONS as usize + 4);
    let results =
        run.runtime.block_on(admin(&run.bootstrap())?.create_partitions([&partitions], &options()))?;
    let refused = results.into_iter().find_map(Result::err);
    ensure!(refused.is_none(), "new partitions: {refused:?}");
    // Clients learn of new partitions in their own time.
    let deadline = Instant::now() + NOTICED;
    while run.offsets()?.read()?.len() < INPUT_PARTITIONS as usize + 4 {
        ensure!(Instant::now() < deadline, "the new partitions do not show");
        thread::sleep(Duration::from_millis(100));
    }
    for number in 0..20 {
        let upload = run.loader.put(&format!("grown/{number}.png"), &picture(&mut run.random)?)?;
        let items = [announced(&upload, "scored")];
        let record = Envelope::Aws.record(&[&upload]);
        // The producer learns of new partitions in its own time as well.
        let partition = Some(INPUT_PARTITIONS + number % 4);
        while let Err(error) = run.loader.send(&record, partition, &items) {
            ensure!(Instant::now() < deadline, "{error:#}");
            thread::sleep(Duration::from_millis(200));
        }
    }
    run.fired(1);
    Ok(())
}

fn refused(run: &mut Run) -> Result<()> {
    match run.variant() {
        0 => denied(run),
        1 => missing(run),
        _ => too_large(run),
    }
}

/// The output topic's rights are withdrawn for a while: everything waits, nothing moves.
fn denied(run: &mut Run) -> Result<()> {
    run.describe("output topic denied");
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, 200.0);
    run.tail.wait_items(run.at_item, START)?;
    run.site.proxy.set_rule(|request| match request.api {
        api::PRODUCE => {
            let version = request.version;
            Act::Rewrite(Box::new(move |body| {
                refuse_produce(version, body, code::TOPIC_AUTHORIZATION_FAILED)
            }))
        }
        _ => Act::Forward,
    });
    hold(run, &worker, flow)?;
    run.inspect("held")?;
    let fired = run.site.proxy.fired();
    run.fired(fired);
    run.site.proxy.clear_rule();
    run.heal();
    Ok(())
}

/// Waits until the load is sent and the worker has said that it cannot commit, and asserts that it held
/// on meanwhile.
fn hold(run: &mut Run, worker: &crate::worker::Worker, flow: crate::load::Flow) -> Result<()> {
    worker.wait_until("in trouble", START, |worker| Ok(worker.log_count("commit held up") > 0))?;
    flow.join()?;
    // What was under way when the topic went is seen by now.
    thread::sleep(Duration::from_secs(2));
    let before = run.tail.items();
    thread::sleep(Duration::from_secs(3));
    run.equal("outputs committed meanwhile", run.tail.items() - before, 0);
    run.equal("alive meanwhile", worker.is_alive(), true);
    Ok(())
}

/// The dead-letter topic is deleted, and made again later.
fn missing(run: &mut Run) -> Result<()> {
    run.describe("dead-letter topic missing");
    let topic = run.topics.dead_letters.clone();
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    // None of them has a dead letter, which would go with the topic.
    let photos = photos(run, "before", run.at_item)?;
    announce(run, &photos)?;
    run.tail.wait_items(run.at_item, START)?;
    let bootstrap = run.bootstrap();
    run.runtime.block_on(kafka::delete_topics(&bootstrap, &[&topic]))?;
    run.fired(1);
    let flow = run.loader.flow(ITEMS, run.seed, 200.0);
    hold(run, &worker, flow)?;
    run.runtime.block_on(kafka::create_topics(&bootstrap, &[(&topic, 1)]))?;
    run.heal();
    Ok(())
}

/// Records that the topics have no room for: outputs go without detail, and instead of its original a
/// dead letter has a pointer.
fn too_large(run: &mut Run) -> Result<()> {
    run.describe("record too large for its topic");
    for topic in [&run.topics.output, &run.topics.dead_letters] {
        let limit = TOPIC_LIMIT.to_string();
        let small = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", &limit);
        alter(run, &small)?;
    }
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, 200.0);
    run.tail.wait_items(run.at_item, START)?;
    for number in 0..TRIMMED {
        let content = picture(&mut run.random)?;
        let key = key_too_long_for_detail(run, number, &content)?;
        let upload = run.loader.put(&key, &content)?;
        run.loader.announce(&upload, Envelope::PlainWithEtag, None)?;
    }
    let mut large = Vec::new();
    for number in 0..20 {
        let upload = run.loader.put(&format!("large/{number}.png"), b"no picture")?;
        let mut record = Envelope::Plain.record(&[&upload]);
        let padding = json!({"padding": "x".repeat(20_000)});
        let mut value: serde_json::Value =
            serde_json::from_slice(record.payload.as_deref().unwrap_or(b"{}"))?;
        if let (Some(value), Some(padding)) = (value.as_object_mut(), padding.as_object()) {
            value.extend(padding.clone());
        }
        record.payload = Some(value.to_string().into_bytes());
        let items = [Announced { bucket: upload.bucket, key: upload.key, status: "rejected" }];
        large.push(run.loader.send(&record, None, &items)?);
    }
    run.fired(large.len() + TRIMMED);
    flow.join()?;
    run.heal();
    let evidence = run.settle()?;
    let ends = outcomes(&evidence, "trimmed/");
    let trimmed = ends.iter().filter(|end| end.score.is_some() && end.distributions.is_empty()).count();
    run.equal("scores without their distributions, for which there was no room", trimmed, TRIMMED);
    let whole = outcomes(&evidence, "").into_iter().filter(|end| !end.distributions.is_empty()).count();
    let scored = outcomes(&evidence, "").into_iter().filter(|end| end.score.is_some()).count();
    run.equal("scores with their distributions, for which there was", whole, scored - TRIMMED);
    let pointers = evidence.dead_letters.iter().filter(|letter| letter.headers.contains_key("dlq-pointer"));
    let pointed: BTreeSet<(i32, i64)> = pointers
        .map(|letter| {
            let number = |name: &str| letter.headers.get(name).cloned().flatten()?.parse::<i64>().ok();
            Some((number("dlq-origin-partition")? as i32, number("dlq-origin-offset")?))
        })
        .collect::<Option<_>>()
        .context("a pointer without a place")?;
    let expected: BTreeSet<(i32, i64)> = large.into_iter().collect();
    run.equal("dead letters that point at their large originals", json!(pointed), json!(expected));
    Ok(())
}

/// A key with which the output of a picture fits into the topic only without its distributions.
fn key_too_long_for_detail(run: &Run, number: usize, content: &[u8]) -> Result<String> {
    let model = ModelVersion { model: "stand-in".into(), version: "stand-in".into(), preprocess_revision: 1 };
    let answer = seen_by_scorer(content)?.answer;
    let output_len = |key: &str| -> Result<usize> {
        let object = ObjectRef { etag: Some("0".repeat(32)), ..ObjectRef::new(&run.loader.bucket, key) };
        let source = Position { topic: run.topics.input.clone(), partition: 0, offset: 100, item: 0 };
        let id = ScoreId::derive(&object, &model);
        let now = OffsetDateTime::now_utc();
        let mut output = OutputRecord::new(id, ItemStatus::Scored, Some(&object), &model, source, now);
        output.score = Some(answer.score());
        output.scores = vec![answer.score()];
        output.distributions = answer.scores.iter().map(|value| value.distribution.clone()).collect();
        output.text = Some(answer.text.clone());
        Ok(output.encode(None, &TraceContext::root(), usize::MAX)?.encoded_len())
    };
    // A quotation mark takes two bytes of JSON and one of the key; folders, since file names are short.
    let mut key = format!("trimmed/{number}/");
    while output_len(&key)? < TOPIC_LIMIT - BATCH_OVERHEAD + 50 {
        key.push(if key.len() % 200 == 0 { '/' } else { '"' });
    }
    Ok(key)
}
