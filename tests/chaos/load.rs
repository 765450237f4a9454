//! Input: uploads and the records that announce them, remembered as they were sent.

use crate::envelopes::{Envelope, Record, Upload};
use crate::oracle::{Input, InputItem};
use crate::random::Random;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::{ExtendedColorType, ImageEncoder};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use roc4mllm::dev::S3Server;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Side of the generated pictures, in pixels.
const SIDE: u32 = 12;
/// Records sent before their deliveries are waited for.
const BATCH: usize = 200;

/// What a record holds, item by item: where it is, and the status it must end with.
#[derive(Clone, Debug)]
pub struct Announced {
    pub bucket: String,
    pub key: String,
    pub status: &'static str,
}

/// Sends records to one run's input topic. Clones share the list of what was sent.
#[derive(Clone)]
pub struct Loader {
    pub bucket: String,
    pub partitions: i32,
    topic: String,
    producer: FutureProducer,
    s3: Arc<S3Server>,
    runtime: Arc<Runtime>,
    sent: Arc<Mutex<Sent>>,
}

struct Sent {
    inputs: Vec<Input>,
    file: File,
}

impl Loader {
    pub fn new(
        bootstrap: &str,
        (topic, partitions): (&str, i32),
        (s3, bucket): (Arc<S3Server>, &str),
        runtime: Arc<Runtime>,
        file: &Path,
    ) -> Result<Self> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("linger.ms", "2")
            .set("topic.metadata.refresh.interval.ms", "1000")
            .set("enable.idempotence", "true")
            .set("log_level", "0")
            .create()?;
        let file = OpenOptions::new().create(true).append(true).open(file)?;
        let sent = Arc::new(Mutex::new(Sent { inputs: Vec::new(), file }));
        let (bucket, topic) = (bucket.to_owned(), topic.to_owned());
        Ok(Self { bucket, partitions, topic, producer, s3, runtime, sent })
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records sent so far.
    pub fn records(&self) -> usize {
        self.sent().inputs.len()
    }

    /// Items sent so far.
    pub fn items(&self) -> usize {
        self.sent().inputs.iter().map(|input| input.items.len()).sum()
    }

    /// Puts an object into the bucket.
    pub fn put(&self, key: &str, content: &[u8]) -> Result<Upload> {
        let etag = self.s3.put(&self.bucket, key, content)?;
        Ok(Upload { bucket: self.bucket.clone(), key: key.to_owned(), etag, size: content.len() })
    }

    /// Sends one record to `partition`, or to one that a hash of nothing in particular picks.
    pub fn send(&self, record: &Record, partition: Option<i32>, items: &[Announced]) -> Result<(i32, i64)> {
        let partition = partition.unwrap_or_else(|| (self.items() % self.partitions as usize) as i32);
        let position = self.runtime.block_on(self.deliver(record, None, partition)?)?;
        self.remember(record, position, items)?;
        Ok(position)
    }

    /// Sends records with a key each, many at a time, to the partition that the number beside them says.
    pub fn send_keyed(&self, records: &[(String, i32, Record, Vec<Announced>)]) -> Result<()> {
        for batch in records.chunks(BATCH) {
            let sent = batch
                .iter()
                .map(|(key, partition, record, _)| self.deliver(record, Some(key.as_bytes()), *partition));
            for (delivery, (_, _, record, items)) in sent.collect::<Result<Vec<_>>>()?.into_iter().zip(batch)
            {
                let position = self.runtime.block_on(delivery)?;
                self.remember(record, position, items)?;
            }
        }
        Ok(())
    }

    /// Announces `upload` in `envelope` and expects it to be scored.
    pub fn announce(
        &self,
        upload: &Upload,
        envelope: Envelope,
        partition: Option<i32>,
    ) -> Result<(i32, i64)> {
        let items = vec![announced(upload, "scored"); envelope.items()];
        let uploads = vec![upload; envelope.items()];
        self.send(&envelope.record(&uploads), partition, &items)
    }

    /// Uploads and announces at least `items` items in every kind of envelope, some hostile, some
    /// notified twice, at `per_second` items or as fast as it goes.
    pub fn load(&self, items: usize, seed: u64, per_second: Option<f64>) -> Result<()> {
        let mut stream = Stream::new(seed);
        let (begun, mut count) = (Instant::now(), 0);
        while count < items {
            let mut batch = Vec::new();
            let size = if per_second.is_some() { 1 } else { BATCH };
            while batch.len() < size && count < items {
                let (record, announced) = stream.next(self)?;
                count += announced.len();
                let partition = stream.random.below(self.partitions as usize) as i32;
                batch.push((self.deliver(&record, None, partition)?, record, announced));
            }
            for (delivery, record, announced) in batch {
                let position = self.runtime.block_on(delivery)?;
                self.remember(&record, position, &announced)?;
            }
            if let Some(per_second) = per_second {
                let due = begun + Duration::from_secs_f64(count as f64 / per_second);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        Ok(())
    }

    /// [`Self::load`] at a pace, beside whatever else goes on.
    pub fn flow(&self, items: usize, seed: u64, per_second: f64) -> Flow {
        let loader = self.clone();
        Flow(thread::spawn(move || loader.load(items, seed, Some(per_second))))
    }

    fn deliver(
        &self,
        record: &Record,
        key: Option<&[u8]>,
        partition: i32,
    ) -> Result<impl Future<Output = Result<(i32, i64)>> + use<>> {
        let mut headers = OwnedHeaders::new();
        for (name, value) in &record.headers {
            headers = headers.insert(Header { key: name, value: Some(value) });
        }
        let mut message = FutureRecord::<[u8], [u8]>::to(&self.topic).partition(partition).headers(headers);
        if let Some(key) = key {
            message = message.key(key);
        }
        if let Some(payload) = &record.payload {
            message = message.payload(payload);
        }
        let delivery = self.producer.send_result(message).map_err(|(error, _)| error)?;
        Ok(async move {
            let delivery = delivery.await.context("the harness's producer is gone")?;
            let delivery = delivery.map_err(|(error, _)| error)?;
            Ok((delivery.partition, delivery.offset))
        })
    }

    fn remember(&self, record: &Record, (partition, offset): (i32, i64), items: &[Announced]) -> Result<()> {
        let items = items.iter().map(|item| InputItem {
            bucket: item.bucket.clone(),
            key: item.key.clone(),
            status: item.status.to_owned(),
        });
        let input = Input {
            topic: self.topic.clone(),
            partition,
            offset,
            value_base64: record.payload.as_ref().map(|payload| BASE64.encode(payload)),
            items: items.collect(),
        };
        let mut sent = self.sent();
        writeln!(sent.file, "{}", serde_json::to_string(&input)?)?;
        sent.inputs.push(input);
        Ok(())
    }
}

/// A load that goes on in the background.
pub struct Flow(JoinHandle<Result<()>>);

impl Flow {
    /// Waits until everything is sent.
    pub fn join(self) -> Result<()> {
        self.0.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))?
    }
}

pub fn announced(upload: &Upload, status: &'static str) -> Announced {
    Announced { bucket: upload.bucket.clone(), key: upload.key.clone(), status }
}

/// A small picture like no other of its run.
pub fn picture(random: &mut Random) -> Result<Vec<u8>> {
    let pixels: Vec<u8> = (0..SIDE * SIDE * 3).map(|_| random.next() as u8).collect();
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png).write_image(
        &pixels,
        SIDE,
        SIDE,
        ExtendedColorType::Rgb8,
    )?;
    Ok(png)
}

/// The seeded order of uploads and their announcements.
struct Stream {
    random: Random,
    seed: u64,
    number: usize,
    last: Option<(Record, Vec<Announced>)>,
}

impl Stream {
    fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), seed, number: 0, last: None }
    }

    fn next(&mut self, loader: &Loader) -> Result<(Record, Vec<Announced>)> {
        if self.random.one_in(30)
            && let Some(again) = self.last.take()
        {
            return Ok(again);
        }
        let envelope = Envelope::ALL[self.random.below(Envelope::ALL.len())];
        let mut uploads = Vec::new();
        let mut items = Vec::new();
        for _ in 0..envelope.items() {
            let (upload, status) = self.upload(loader)?;
            items.push(announced(&upload, status));
            uploads.push(upload);
        }
        let record = envelope.record(&uploads.iter().collect::<Vec<_>>());
        self.last = Some((record.clone(), items.clone()));
        Ok((record, items))
    }

    fn upload(&mut self, loader: &Loader) -> Result<(Upload, &'static str)> {
        let key = format!("{}/Фото {:05} + 50%25.png", self.seed, self.number);
        self.number += 1;
        let mut content = picture(&mut self.random)?;
        if !self.random.one_in(40) {
            return Ok((loader.put(&key, &content)?, "scored"));
        }
        match self.random.below(3) {
            0 => content.truncate(content.len() / 2),
            1 => content = format!("<!doctype html><p>{}</p>", self.number).into_bytes(),
            _ => content.clear(),
        }
        Ok((loader.put(&key, &content)?, "rejected"))
    }
}
