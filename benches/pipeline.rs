//! Records a second through the whole worker with a scorer that costs nothing, beside a loop that
//! only consumes and produces on the same broker.
//!
//! The worker fetches, decodes, stores and commits in transactions; the loop passes records on with
//! acknowledged, idempotent writes and lets its offsets be committed in the background. Servers and
//! worker share the machine.

mod support {
    pub mod free;
    pub mod photo;
    pub mod results;
    pub mod topics;
}

use futures_util::{StreamExt, TryStreamExt, stream};
use rdkafka::{
    ClientConfig, Message,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{FutureProducer, FutureRecord, Producer},
};
use roc4mllm::{
    config::Config,
    dev::{TestDatabase, TestKafka, TestS3},
    secret::Secret,
    worker,
};
use serde_json::json;
use std::time::{Duration, Instant};
use support::{
    free::service,
    photo::photo,
    results::{Entry, record},
    topics::{Anything, PATIENCE, Reader, next, produce, producer_config},
};
use tokio::sync::oneshot;

const RECORDS: usize = 2_000;
/// Records that the worker takes before the clock starts: by then it has joined its group, and its
/// connections are open.
const FIRST_RECORDS: usize = 100;
/// The bare loop is so fast that it needs more of them to be timed.
const BARE_RECORDS: usize = 100_000;
const PARTITIONS: i32 = 6;
const RUNS: usize = 3;

#[tokio::main]
async fn main() -> Result<(), Anything> {
    let bench = Bench::start().await?;
    let mut piped = Vec::new();
    let mut bare = Vec::new();
    for run in 1..=RUNS {
        let (rate, output) = bench.pipeline().await?;
        print!("run {run}: {rate:>9.1} records/s through the worker, ");
        piped.push(rate);
        let rate = bench.bare(output).await?;
        println!("{rate:>9.1} bare");
        bare.push(rate);
    }
    let (piped, bare) = (median(piped), median(bare));
    println!(
        "{piped:.1} records/s of {:.0} kB each, {bare:.1} bare: {:.4} of it (medians of {RUNS})",
        bench.object_bytes as f64 / 1e3,
        piped / bare
    );
    let against =
        format!("consume and produce alone, {BARE_RECORDS} records over {PARTITIONS} partitions, acks=all");
    record(&[Entry {
        name: "pipeline_vs_bare",
        value: piped,
        unit: "records/s",
        against: &against,
        against_value: bare,
        ratio: piped / bare,
        runs: RUNS,
    }]);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Servers, and one uploaded object a record.
struct Bench {
    kafka: TestKafka,
    s3: TestS3,
    /// Notifications, as AWS sends them.
    records: Vec<Vec<u8>>,
    object_bytes: usize,
}

impl Bench {
    async fn start() -> Result<Self, Anything> {
        let (kafka, s3) = (TestKafka::real().await?, TestS3::create().await?);
        let jpeg = photo(480, 320);
        let object_bytes = jpeg.len() + size_of::<usize>();
        let upload = |number: usize| {
            // Behind the end of the picture, so that no content comes twice.
            let (s3, jpeg) = (&s3, [&jpeg[..], &number.to_le_bytes()].concat());
            async move {
                let key = format!("uploads/{number:06}.jpg");
                let etag = s3.put(&key, jpeg).await?;
                let object = json!({"key": key, "size": object_bytes, "eTag": etag});
                let item = json!({
                    "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
                    "s3": {"bucket": {"name": s3.bucket()}, "object": object},
                });
                Ok::<_, Anything>(json!({"Records": [item]}).to_string().into_bytes())
            }
        };
        let uploads = stream::iter((0..FIRST_RECORDS + RECORDS).map(upload)).buffered(16);
        let records = uploads.try_collect().await?;
        Ok(Self { kafka, s3, records, object_bytes })
    }

    /// One run of the real worker: records a second until the last output is committed, and an output.
    async fn pipeline(&self) -> Result<(f64, Vec<u8>), Anything> {
        let [input, output, dead] = self.topics(["uploads", "scores", "dead-letters"]).await?;
        let database = TestDatabase::create().await?;
        let mut config = Config::default();
        config.kafka.brokers = self.kafka.bootstrap().into();
        config.kafka.group = format!("{input}-group");
        config.kafka.input_topics = vec![input.clone()];
        config.kafka.output_topic = output.clone();
        config.kafka.dead_letter_topic = dead;
        config.s3.endpoint = Some(self.s3.endpoint().into());
        config.s3.buckets = vec![self.s3.bucket().into()];
        config.s3.access_key_id = Some(self.s3.access_key().into());
        config.s3.secret_access_key = Some(Secret::from(self.s3.secret_key()));
        config.postgres.url = Secret::from(database.url());
        config.http.listen = "127.0.0.1:0".parse()?;
        let service = service(config.inference.clone(), config.image.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = worker::run_with(config, service, async {
            // Dropped or sent, it is over.
            let _ = stopped.await;
        });
        let (first, timed) = self.records.split_at(FIRST_RECORDS);
        let drive = async {
            let kafka = self.kafka.bootstrap();
            let reader = Reader::open(kafka, &output, PARTITIONS)?;
            produce(kafka, &input, PARTITIONS, first.iter())?;
            let reader = reader.take(FIRST_RECORDS).await?;
            let start = Instant::now();
            produce(kafka, &input, PARTITIONS, timed.iter())?;
            let reader = reader.take(RECORDS).await?;
            let seconds = start.elapsed().as_secs_f64();
            drop(stop);
            Ok((RECORDS as f64 / seconds, reader.last))
        };
        let ((), result) = tokio::try_join!(async { worker.await.map_err(Anything::from) }, drive)?;
        Ok(result)
    }

    /// One run of the bare loop, which writes `output` for every record.
    async fn bare(&self, output: Vec<u8>) -> Result<f64, Anything> {
        let [input, target] = self.topics(["bare-uploads", "bare-scores"]).await?;
        produce(self.kafka.bootstrap(), &input, PARTITIONS, self.records.iter().cycle().take(BARE_RECORDS))?;
        let bootstrap = self.kafka.bootstrap().to_owned();
        tokio::task::spawn_blocking(move || consume_and_produce(&bootstrap, &input, &target, &output)).await?
    }

    async fn topics<const N: usize>(&self, names: [&str; N]) -> Result<[String; N], Anything> {
        let mut topics = [const { String::new() }; N];
        for (topic, name) in topics.iter_mut().zip(names) {
            *topic = self.kafka.create_topic(name, PARTITIONS).await?;
        }
        Ok(topics)
    }
}

/// From the first record in to the last output acknowledged.
fn consume_and_produce(bootstrap: &str, input: &str, target: &str, output: &[u8]) -> Result<f64, Anything> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", format!("{input}-group"))
        .set("auto.offset.reset", "earliest")
        .create()?;
    let producer: FutureProducer = producer_config(bootstrap).create()?;
    consumer.subscribe(&[input])?;
    let mut start = None;
    let mut deliveries = Vec::with_capacity(BARE_RECORDS);
    while deliveries.len() < BARE_RECORDS {
        let message = next(&consumer)?;
        start.get_or_insert_with(Instant::now);
        let key = message.payload().and_then(|payload| payload.get(..36)).unwrap_or_default();
        let mut output_record = FutureRecord::to(target).key(key).payload(output);
        loop {
            match producer.send_result(output_record) {
                Ok(delivery) => break deliveries.push(delivery),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), same)) => {
                    output_record = same;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
    producer.flush(PATIENCE)?;
    let seconds = start.ok_or("no record came")?.elapsed().as_secs_f64();
    for delivery in deliveries {
        futures_util::FutureExt::now_or_never(delivery)
            .ok_or("an output was not acknowledged")??
            .map_err(|(error, _)| error)?;
    }
    Ok(BARE_RECORDS as f64 / seconds)
}
