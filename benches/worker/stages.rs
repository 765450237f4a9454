//! What each stage of the pipeline costs by itself, in a process that does nothing else: the least that the
//! whole could cost.

use super::process::configuration;
use crate::support::{
    free,
    topics::{Anything, PATIENCE, next},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    producer::{FutureProducer, FutureRecord, Producer},
};
use roc4mllm::{
    config::Config,
    fetch::Fetcher,
    image::Preprocessor,
    object::{ContentDigest, ContentKey, ObjectRef, ScoreId},
    record::{Position, WireRecord, input, output::OutputRecord, trace::TraceContext},
    score::ItemStatus,
    store::{ScoreRow, SourcePosition, Store},
};
use serde::{Deserialize, Serialize};
use std::{env, sync::Arc, time::Duration};

/// How many records the role `stages` works on.
pub const RECORDS: &str = "ROC4MLLM_BENCH_STAGE_RECORDS";

/// Objects fetched at once.
const AT_ONCE: usize = 16;
/// Rows of one statement, and outputs of one transaction.
const BATCH: usize = 500;

/// Processor seconds a record, stage by stage.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Stages {
    /// Reading the record from Kafka and parsing it.
    pub consume: f64,
    /// The object, with its digest.
    pub fetch: f64,
    pub preprocess: f64,
    /// Looking up, and writing the row.
    pub store: f64,
    /// Encoding the output, and producing it in a transaction with its offset.
    pub produce: f64,
}

impl Stages {
    pub fn sum(&self) -> f64 {
        self.consume + self.fetch + self.preprocess + self.store + self.produce
    }
}

/// The role `stages`: measures, and prints [`Stages`] as JSON.
pub async fn measure() -> Result<(), Anything> {
    let config = configuration()?;
    let count: usize = env::var(RECORDS)?.parse()?;
    let mut stages = Stages::default();
    let per_record = |seconds: f64| seconds / count as f64;

    let start = cpu_s();
    let (consumer, items) = consume(&config, count)?;
    stages.consume = per_record(cpu_s() - start);

    let fetcher = Fetcher::connect(&config.s3).await?;
    fetcher.fetch(&items[0].0, config.image.max_bytes).await?;
    let start = cpu_s();
    let fetched: Vec<(bytes::Bytes, ContentDigest)> = stream::iter(items.iter())
        .map(|(object, _)| async {
            let image = fetcher.fetch(object, config.image.max_bytes).await?;
            let digest = ContentDigest::of(&image.bytes);
            Ok::<_, Anything>((image.bytes, digest))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    stages.fetch = per_record(cpu_s() - start);

    let preprocessor: Preprocessor = free::preprocessor()?;
    let mut values = vec![0.0; 3 * preprocessor.image_size() * preprocessor.image_size()];
    let mut first_values = Vec::with_capacity(count);
    let start = cpu_s();
    for (bytes, _) in &fetched {
        preprocessor.read(bytes, &config.image, &mut values)?;
        first_values.push(values[0]);
    }
    stages.preprocess = per_record(cpu_s() - start);

    let version = free::version();
    let store = Store::connect(&config.postgres).await?;
    store.migrate().await?;
    let shared = Arc::new(version.clone());
    let start = cpu_s();
    let mut rows = Vec::with_capacity(count);
    for ((object, position), ((_, content), first)) in items.iter().zip(fetched.iter().zip(&first_values)) {
        let answer = (&free::answer(*first)).into();
        let id = ScoreId::derive(object, &version);
        let source = SourcePosition {
            topic: position.topic.clone(),
            partition: position.partition,
            offset: position.offset,
            item: position.item,
        };
        rows.push(ScoreRow::known(id, object.clone(), &version, answer, Some(*content), Some(source)));
    }
    for rows in rows.chunks(BATCH) {
        let ids: Vec<ScoreId> = rows.iter().map(|row| row.id).collect();
        let keys = rows.iter().filter_map(|row| row.content);
        let keys: Vec<ContentKey> =
            keys.map(|content| ContentKey { content, version: Arc::clone(&shared) }).collect();
        store.lookup(&ids).await?;
        store.known_answers(&keys).await?;
        store.upsert_rows(rows).await?;
    }
    stages.store = per_record(cpu_s() - start);

    let producer = producer(&config)?;
    let start = cpu_s();
    for rows in rows.chunks(BATCH) {
        produce(&config, &consumer, &producer, rows).await?;
    }
    stages.produce = per_record(cpu_s() - start);
    println!("{}", serde_json::to_string(&stages)?);
    Ok(())
}

fn consume(config: &Config, count: usize) -> Result<(BaseConsumer, Vec<(ObjectRef, Position)>), Anything> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &config.kafka.brokers)
        .set("group.id", &config.kafka.group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()?;
    let topics: Vec<&str> = config.kafka.input_topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics)?;
    let mut items = Vec::with_capacity(count);
    while items.len() < count {
        let message = next(&consumer)?;
        let parsed = input::parse(message.payload(), &[], &config.s3.buckets);
        for item in parsed.to_process() {
            if let Ok(input::Item::Score(object)) = &item.outcome {
                let topic = message.topic().to_owned();
                let (partition, offset) = (message.partition(), message.offset());
                items.push((object.clone(), Position { topic, partition, offset, item: item.index }));
            }
        }
    }
    Ok((consumer, items))
}

fn producer(config: &Config) -> Result<FutureProducer, Anything> {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &config.kafka.brokers)
        .set("transactional.id", format!("{}-stages", config.kafka.group))
        .set("compression.type", "zstd")
        .set("linger.ms", "2")
        .create()?;
    producer.init_transactions(PATIENCE)?;
    Ok(producer)
}

async fn produce(
    config: &Config,
    consumer: &BaseConsumer,
    producer: &FutureProducer,
    rows: &[ScoreRow],
) -> Result<(), Anything> {
    producer.begin_transaction()?;
    let mut deliveries = Vec::with_capacity(rows.len());
    let mut offsets = TopicPartitionList::new();
    for row in rows {
        let source = row.source.as_ref().ok_or("a row without a source")?;
        let record = encode(config, row, source)?;
        let (key, payload) = (record.key.unwrap_or_default(), record.payload.unwrap_or_default());
        let message = FutureRecord::to(&config.kafka.output_topic).key(&key).payload(&payload);
        deliveries.push(producer.send_result(message).map_err(|(error, _)| error)?);
        let end = Offset::Offset(source.offset + 1);
        match offsets.find_partition(&source.topic, source.partition) {
            Some(mut partition) => partition.set_offset(end)?,
            None => offsets.add_partition_offset(&source.topic, source.partition, end)?,
        }
    }
    for delivery in deliveries {
        delivery.await?.map_err(|(error, _)| error)?;
    }
    let group = consumer.group_metadata().ok_or("no group")?;
    producer.send_offsets_to_transaction(&offsets, &group, PATIENCE)?;
    Ok(producer.commit_transaction(PATIENCE)?)
}

fn encode(config: &Config, row: &ScoreRow, source: &SourcePosition) -> Result<WireRecord, Anything> {
    let SourcePosition { topic, partition, offset, item } = source.clone();
    let position = Position { topic, partition, offset, item };
    let object = row.object.as_ref();
    let version = free::version();
    let mut output = OutputRecord::new(row.id, ItemStatus::Scored, object, &version, position, row.scored_at);
    output.score = row.score;
    output.scores.clone_from(&row.scores);
    output.distributions.clone_from(&row.distributions);
    output.text.clone_from(&row.text);
    Ok(output.encode(None, &TraceContext::root(), config.kafka.max_record_bytes as usize)?)
}

/// Processor time of this process, all threads together.
fn cpu_s() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "this system has no processor time of a process");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_secs_f64()
}
