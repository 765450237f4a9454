//! The Kafka side against servers: librdkafka's mock cluster for the consumer's life, a real Apache
//! Kafka for everything that is said about transactions.

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use roc4mllm::dev::{self, MockKafka, TestKafka};
use roc4mllm::kafka::producer::RecordProducer;
use roc4mllm::kafka::{
    self, Connection, ConsumedRecord, Delivery, Drained, Error, KafkaSettings, StagedRecord, admin,
};
use roc4mllm::record::{Header, WireRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(90);

/// Topics of a test, and the settings that name them.
struct Setup {
    kafka: TestKafka,
    settings: KafkaSettings,
}

impl Setup {
    async fn new(kafka: TestKafka, delivery: Delivery, partitions: i32) -> Self {
        // Logs go to failed tests, if RUST_LOG asks for any.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let settings = KafkaSettings {
            brokers: kafka.bootstrap().to_owned(),
            group: format!("group-{}", Uuid::new_v4().simple()),
            input_topics: vec![kafka.create_topic("uploads", partitions).await.unwrap()],
            output_topic: kafka.create_topic("scores", 2).await.unwrap(),
            dead_letter_topic: kafka.create_topic("dead", 1).await.unwrap(),
            delivery,
            session_timeout_ms: 6_000,
            heartbeat_interval_ms: 500,
            commit_interval_ms: 100,
            lag_interval_ms: 200,
            ..KafkaSettings::default()
        };
        Self { kafka, settings }
    }

    async fn light(partitions: i32) -> Self {
        Self::new(TestKafka::light().unwrap(), Delivery::AtLeastOnce, partitions).await
    }

    async fn real(partitions: i32) -> Self {
        Self::new(TestKafka::real().await.unwrap(), Delivery::Transactional, partitions).await
    }

    fn input(&self) -> &str {
        &self.settings.input_topics[0]
    }

    /// Writes records named `from..to`, spread over the partitions by key.
    async fn write(&self, names: std::ops::Range<usize>) {
        let producer = RecordProducer::new(&self.settings).unwrap();
        let records: Vec<_> = names.map(named).collect();
        let sends = records.iter().map(|record| producer.send(self.input(), record));
        for sent in futures_util::future::join_all(sends).await {
            sent.unwrap();
        }
    }

    fn connect(&self) -> Connection {
        kafka::connect(&self.settings).unwrap()
    }

    /// How often each record's output can be read by a `read_committed` reader.
    fn outputs(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for key in read_committed(self.kafka.bootstrap(), &self.settings.output_topic) {
            *counts.entry(key).or_insert(0) += 1;
        }
        counts
    }
}

fn named(name: usize) -> WireRecord {
    let name = name.to_string().into_bytes();
    WireRecord { key: Some(name.clone()), payload: Some(name), headers: vec![Header::new("h", "v")] }
}

fn name_of(record: &ConsumedRecord) -> String {
    String::from_utf8(record.key.clone().unwrap()).unwrap()
}

/// Each of `0..count`, once.
fn each_once(count: usize) -> BTreeMap<String, usize> {
    (0..count).map(|name| (name.to_string(), 1)).collect()
}

fn names(count: usize) -> BTreeSet<String> {
    (0..count).map(|name| name.to_string()).collect()
}

fn read_committed(bootstrap: &str, topic: &str) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", format!("reader-{}", Uuid::new_v4()))
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let partitions = metadata.topics()[0].partitions().len();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition as i32, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let mut ended = BTreeSet::new();
    let mut keys = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while ended.len() < partitions {
        assert!(Instant::now() < deadline, "the end of {topic} was not reached");
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(record)) => keys.push(String::from_utf8(record.key().unwrap().to_vec()).unwrap()),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            Some(Err(error)) => panic!("{topic} could not be read: {error}"),
            None => {}
        }
    }
    keys
}

async fn next(kafka: &mut Connection) -> ConsumedRecord {
    tokio::time::timeout(PATIENCE, kafka.records.recv())
        .await
        .expect("no record came")
        .expect("the source ended")
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The output of a record: its key alone.
fn output(settings: &KafkaSettings, record: &ConsumedRecord) -> Vec<StagedRecord> {
    let wire = WireRecord { key: record.key.clone(), payload: record.payload.clone(), headers: vec![] };
    vec![StagedRecord { topic: Arc::from(settings.output_topic.as_str()), record: wire }]
}

fn finish(kafka: &Connection, settings: &KafkaSettings, record: &ConsumedRecord) {
    kafka.ledger.expect(&record.receipt, 1);
    if kafka.ledger.start(&record.receipt) {
        kafka.ledger.complete(&record.receipt, 0, output(settings, record));
    }
}

async fn drain(kafka: Connection) -> Drained {
    // The receiver stays until the end: a pipeline drains its channel while it shuts down.
    let Connection { control, records, .. } = kafka;
    let drained = tokio::task::spawn_blocking(move || control.drain(Duration::from_secs(20))).await.unwrap();
    drop(records);
    drained
}

fn clean() -> Drained {
    Drained { unfinished: 0, uncommitted: 0, closed: true }
}

/// A worker that finishes every record at once, in its own task.
struct Worker {
    stop: Arc<tokio::sync::Notify>,
    task: tokio::task::JoinHandle<Connection>,
}

impl Worker {
    fn start(setup: &Setup, pause: Duration) -> Self {
        let mut kafka = setup.connect();
        let settings = setup.settings.clone();
        let stop = Arc::new(tokio::sync::Notify::new());
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            loop {
                let record = tokio::select! {
                    record = kafka.records.recv() => record,
                    () = stopped.notified() => None,
                };
                let Some(record) = record else { return kafka };
                tokio::time::sleep(pause).await;
                finish(&kafka, &settings, &record);
            }
        });
        Self { stop, task }
    }

    async fn drain(self) -> Drained {
        self.stop.notify_one();
        drain(self.task.await.unwrap()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_consumed_committed_and_not_read_again() {
    let setup = Setup::light(3).await;
    setup.write(0..50).await;
    let mut kafka = setup.connect();
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        let record = next(&mut kafka).await;
        assert_eq!(record.headers, [Header::new("h", "v")]);
        assert!(record.timestamp_ms.is_some());
        seen.insert(name_of(&record));
        finish(&kafka, &setup.settings, &record);
    }
    assert_eq!(seen, names(50));
    let stats = Arc::clone(&kafka.stats);
    eventually("the commit", || stats.outputs.load(Ordering::Relaxed) == 50).await;
    eventually("lag 0", || stats.lag().len() == 3 && stats.lag().values().all(|lag| *lag == 0)).await;
    assert_eq!(stats.trouble(), None);
    assert_eq!(drain(kafka).await, clean());
    assert_eq!(setup.outputs(), each_once(50));

    setup.write(50..60).await;
    let mut kafka = setup.connect();
    let mut later = BTreeSet::new();
    for _ in 0..10 {
        let record = next(&mut kafka).await;
        later.insert(name_of(&record));
        finish(&kafka, &setup.settings, &record);
    }
    assert_eq!(later, (50..60).map(|name| name.to_string()).collect());
    assert_eq!(drain(kafka).await, clean());
    assert_eq!(setup.outputs(), each_once(60));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_repeats_only_what_was_not_finished() {
    let setup = Setup::light(1).await;
    setup.write(0..40).await;
    let mut kafka = setup.connect();
    let slow = ["3", "17"];
    for _ in 0..40 {
        let record = next(&mut kafka).await;
        kafka.ledger.expect(&record.receipt, 1);
        if !slow.contains(&name_of(&record).as_str()) {
            finish(&kafka, &setup.settings, &record);
        }
    }
    let stats = Arc::clone(&kafka.stats);
    eventually("the commit", || stats.outputs.load(Ordering::Relaxed) == 38).await;
    assert_eq!(drain(kafka).await, clean());

    let mut kafka = setup.connect();
    let mut again = BTreeSet::new();
    for _ in slow {
        let record = next(&mut kafka).await;
        again.insert(name_of(&record));
        finish(&kafka, &setup.settings, &record);
    }
    assert_eq!(again, slow.map(str::to_owned).into());
    let stats = Arc::clone(&kafka.stats);
    eventually("the commit", || stats.outputs.load(Ordering::Relaxed) == 2).await;
    assert_eq!(stats.records.load(Ordering::Relaxed), 2);
    assert!(stats.already_done.load(Ordering::Relaxed) >= 22);
    assert_eq!(drain(kafka).await, clean());
    assert_eq!(setup.outputs(), each_once(40));
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_is_started_outlasts_a_drain_and_the_rest_is_dropped() {
    let setup = Setup::light(1).await;
    setup.write(0..2).await;
    let mut kafka = setup.connect();
    let (first, second) = (next(&mut kafka).await, next(&mut kafka).await);
    let ledger = Arc::clone(&kafka.ledger);
    for record in [&first, &second] {
        ledger.expect(&record.receipt, 1);
    }
    assert!(ledger.start(&first.receipt));
    let gate = Arc::clone(&kafka.gate);
    let drained = tokio::spawn(drain(kafka));
    eventually("the end of intake", || !gate.is_open()).await;
    assert!(!ledger.start(&second.receipt), "nothing more is started");
    assert!(ledger.start(&first.receipt), "what was started goes on");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!drained.is_finished(), "the drain waits for it");
    assert!(ledger.complete(&first.receipt, 0, output(&setup.settings, &first)));
    assert_eq!(drained.await.unwrap(), clean());
    assert!(!ledger.is_live(&first.receipt));
    assert!(!ledger.complete(&second.receipt, 0, output(&setup.settings, &second)), "nobody commits it now");
    assert_eq!(setup.outputs(), [(name_of(&first), 1)].into());

    let mut kafka = setup.connect();
    assert_eq!(name_of(&next(&mut kafka).await), name_of(&second));
    drain(kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_pauses_intake_and_loses_nothing() {
    let mut setup = Setup::light(3).await;
    setup.settings.queue_records = 10;
    setup.write(0..300).await;
    let mut kafka = setup.connect();
    let stats = Arc::clone(&kafka.stats);
    eventually("the pause", || stats.paused.load(Ordering::Relaxed)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(stats.records.load(Ordering::Relaxed), 10);
    assert!(stats.since_poll() < Duration::from_millis(400), "polling goes on");
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<i32, i64> = BTreeMap::new();
    for count in 0..300 {
        if count == 150 {
            eventually("another pause", || stats.paused.load(Ordering::Relaxed)).await;
        }
        let record = next(&mut kafka).await;
        let (partition, offset) = (record.receipt.source().partition, record.receipt.offset());
        assert!(last.insert(partition, offset).is_none_or(|last| last < offset), "out of order");
        assert!(seen.insert(name_of(&record)), "twice: {}", record.receipt);
        finish(&kafka, &setup.settings, &record);
    }
    assert_eq!(seen, names(300));
    assert_eq!(drain(kafka).await, clean());
    assert_eq!(setup.outputs(), each_once(300));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_gate_holds_records_back() {
    let setup = Setup::light(1).await;
    let mut kafka = setup.connect();
    kafka.gate.close();
    setup.write(0..5).await;
    let stats = Arc::clone(&kafka.stats);
    eventually("the assignment", || stats.assigned.load(Ordering::Relaxed) == 1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(kafka.records.try_recv().is_err());
    kafka.gate.open();
    for _ in 0..5 {
        let record = next(&mut kafka).await;
        finish(&kafka, &setup.settings, &record);
    }
    assert_eq!(drain(kafka).await, clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_record_stops_only_its_partition_and_only_when_its_window_is_full() {
    let setup = Setup::light(1).await;
    setup.write(0..2_500).await;
    let mut kafka = setup.connect();
    let stuck = next(&mut kafka).await;
    kafka.ledger.expect(&stuck.receipt, 1);
    for _ in 1..2_048 {
        let record = next(&mut kafka).await;
        finish(&kafka, &setup.settings, &record);
    }
    let stats = Arc::clone(&kafka.stats);
    eventually("the commit of all but one", || stats.outputs.load(Ordering::Relaxed) == 2_047).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(500), kafka.records.recv()).await.is_err(),
        "the window is full"
    );
    finish(&kafka, &setup.settings, &stuck);
    for _ in 2_048..2_500 {
        let record = next(&mut kafka).await;
        finish(&kafka, &setup.settings, &record);
    }
    assert_eq!(drain(kafka).await, clean());
    assert_eq!(setup.outputs(), each_once(2_500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_without_items_is_committed_alone() {
    let setup = Setup::light(1).await;
    setup.write(0..3).await;
    let mut kafka = setup.connect();
    for _ in 0..3 {
        let record = next(&mut kafka).await;
        assert!(kafka.ledger.expect(&record.receipt, 0));
    }
    assert_eq!(drain(kafka).await, clean());
    assert!(setup.outputs().is_empty());
    setup.write(3..4).await;
    let mut kafka = setup.connect();
    assert_eq!(name_of(&next(&mut kafka).await), "3");
    drain(kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_commit_is_repeated_without_repeating_outputs() {
    let mock = MockKafka::start().unwrap();
    for topic in ["in", "out", "dead"] {
        mock.create_topic(topic, 1).unwrap();
    }
    let mock = TestKafka::Mock(Arc::new(mock));
    let settings = KafkaSettings {
        brokers: mock.bootstrap().to_owned(),
        input_topics: vec!["in".into()],
        output_topic: "out".into(),
        dead_letter_topic: "dead".into(),
        delivery: Delivery::AtLeastOnce,
        commit_interval_ms: 50,
        ..KafkaSettings::default()
    };
    let setup = Setup { kafka: mock, settings };
    setup.write(0..1).await;
    let mut kafka = setup.connect();
    let record = next(&mut kafka).await;
    let TestKafka::Mock(mock) = &setup.kafka else { unreachable!("made above") };
    let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION; 2];
    mock.cluster().unwrap().request_errors(rdkafka::types::RDKafkaApiKey::OffsetCommit, &refusals);
    finish(&kafka, &setup.settings, &record);
    let stats = Arc::clone(&kafka.stats);
    eventually("the refusals", || stats.aborts.load(Ordering::Relaxed) >= 1).await;
    eventually("the commit", || stats.commits.load(Ordering::Relaxed) >= 1).await;
    assert_eq!(drain(kafka).await, clean());
    assert_eq!(setup.outputs(), each_once(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_share_the_partitions_and_lose_nothing() {
    if dev::skip_without_kafka() {
        return;
    }
    let setup = Setup::real(4).await;
    setup.write(0..100).await;
    let first = Worker::start(&setup, Duration::from_millis(2));
    setup.write(100..300).await;
    let mut other = Setup { kafka: TestKafka::real().await.unwrap(), settings: setup.settings.clone() };
    other.settings.transactional_id = Some(format!("{}-other", setup.settings.group));
    let second = Worker::start(&other, Duration::from_millis(2));
    setup.write(300..600).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(first.drain().await, clean());
    setup.write(600..800).await;
    eventually("every output", || setup.outputs().len() == 800).await;
    assert_eq!(second.drain().await, clean());
    assert_eq!(setup.outputs(), each_once(800));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_producer_is_replaced_and_every_output_is_there_once() {
    if dev::skip_without_kafka() {
        return;
    }
    let mut setup = Setup::real(2).await;
    setup.settings.transactional_id = Some(format!("id-{}", Uuid::new_v4().simple()));
    setup.write(0..1_000).await;
    let mut kafka = setup.connect();
    for count in 0..1_000 {
        let record = next(&mut kafka).await;
        finish(&kafka, &setup.settings, &record);
        if count % 200 == 199 {
            let settings = setup.settings.clone();
            tokio::task::spawn_blocking(move || {
                let usurper: BaseProducer = ClientConfig::new()
                    .set("bootstrap.servers", &settings.brokers)
                    .set("transactional.id", settings.transactional_id())
                    .create()
                    .unwrap();
                usurper.init_transactions(PATIENCE).unwrap();
            })
            .await
            .unwrap();
        }
    }
    let stats = Arc::clone(&kafka.stats);
    eventually("every output", || stats.outputs.load(Ordering::Relaxed) == 1_000).await;
    assert!(stats.producer_replacements.load(Ordering::Relaxed) >= 1, "no call met the fence");
    assert_eq!(drain(kafka).await, clean());
    assert_eq!(setup.outputs(), each_once(1_000));
}

/// Set for the child process of the next test: the settings it works with.
const CHILD: &str = "ROC4MLLM_KAFKA_TEST_CHILD";

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_every_output_exactly_once() {
    if let Ok(settings) = std::env::var(CHILD) {
        return work_until_killed(serde_json::from_str(&settings).unwrap()).await;
    }
    if dev::skip_without_kafka() {
        return;
    }
    let mut setup = Setup::real(3).await;
    setup.settings.transactional_id = Some(format!("id-{}", Uuid::new_v4().simple()));
    setup.write(0..1_000).await;
    for _ in 0..3 {
        let before = setup.outputs().len();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["a_killed_worker_leaves_every_output_exactly_once", "--exact", "--nocapture"])
            .env(CHILD, serde_json::to_string(&setup.settings).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("progress of the child", || setup.outputs().len() > before).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(setup.outputs().len() < 1_000, "something was left to do");
    let last = Worker::start(&setup, Duration::ZERO);
    eventually("every output", || setup.outputs().len() == 1_000).await;
    assert_eq!(last.drain().await, clean());
    assert_eq!(setup.outputs(), each_once(1_000));
}

/// Finishes 300 records and then waits with the next in its hands.
async fn work_until_killed(settings: KafkaSettings) {
    let mut kafka = kafka::connect(&settings).unwrap();
    let mut left = 300;
    while let Some(record) = kafka.records.recv().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if left > 0 {
            finish(&kafka, &settings, &record);
            left -= 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_named_within_the_deadline() {
    let settings = KafkaSettings { brokers: "127.0.0.1:1".into(), ..KafkaSettings::default() };
    let begun = Instant::now();
    let probe = tokio::task::spawn_blocking(move || admin::probe(&settings, Duration::from_secs(1)));
    let error = probe.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_named_with_its_setting() {
    if dev::skip_without_kafka() {
        return;
    }
    let mut setup = Setup::real(2).await;
    let settings = setup.settings.clone();
    let probe = tokio::task::spawn_blocking(move || admin::probe(&settings, PATIENCE));
    let found = probe.await.unwrap().unwrap();
    assert_eq!(found[0].topic, setup.input());
    assert_eq!(found[0].partitions, 2);
    setup.settings.dead_letter_topic = "never-created".into();
    let settings = setup.settings.clone();
    let probe = tokio::task::spawn_blocking(move || admin::probe(&settings, PATIENCE));
    let error = probe.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::TopicMissing { .. }), "{error}");
    assert!(error.to_string().contains("never-created") && error.to_string().contains("dead_letter_topic"));
}
