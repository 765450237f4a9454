//! The output topic, read as any other consumer would read it.

use super::{error::DemoError, servers::OUTPUT_TOPIC};
use crate::record::output::OutputRecord;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, task::JoinHandle};

const POLL: Duration = Duration::from_millis(100);
const METADATA_TIMEOUT: Duration = Duration::from_secs(30);
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads every partition from its beginning, committed records only, until told to finish.
pub struct OutputReader {
    outputs: mpsc::UnboundedReceiver<OutputRecord>,
    finish: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), DemoError>>,
}

impl OutputReader {
    pub fn start(bootstrap: &str) -> Result<Self, DemoError> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            // Never joined; the library wants one for an assignment of one's own.
            .set("group.id", "demo-reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()?;
        // Bounded by the notifications that wait for an output.
        let (found, outputs) = mpsc::unbounded_channel();
        let finish = Arc::new(AtomicBool::new(false));
        let finishing = Arc::clone(&finish);
        let thread = tokio::task::spawn_blocking(move || read(&consumer, &found, &finishing));
        Ok(Self { outputs, finish, thread })
    }

    /// The next output; `None` once the reader has failed.
    pub async fn next(&mut self) -> Option<OutputRecord> {
        self.outputs.recv().await
    }

    /// Whatever else lies in the topic up to its present end.
    pub async fn finish(mut self) -> Result<Vec<OutputRecord>, DemoError> {
        self.finish.store(true, Ordering::Relaxed);
        let mut rest = Vec::new();
        while let Some(output) = self.outputs.recv().await {
            rest.push(output);
        }
        self.thread.await??;
        Ok(rest)
    }
}

fn read(
    consumer: &BaseConsumer,
    found: &mpsc::UnboundedSender<OutputRecord>,
    finishing: &AtomicBool,
) -> Result<(), DemoError> {
    let metadata = consumer.fetch_metadata(Some(OUTPUT_TOPIC), METADATA_TIMEOUT)?;
    let mut next: BTreeMap<i32, Offset> = metadata
        .topics()
        .iter()
        .flat_map(|topic| topic.partitions())
        .map(|partition| (partition.id(), Offset::Beginning))
        .collect();
    assign(consumer, &next)?;
    while !finishing.load(Ordering::Relaxed) && !found.is_closed() {
        take(consumer, found, &mut next)?;
    }
    // The end of a partition is told once. Assigned anew, each is told to where it is now.
    assign(consumer, &next)?;
    let deadline = Instant::now() + END_TIMEOUT;
    let mut ended = HashSet::new();
    while ended.len() < next.len() && Instant::now() < deadline && !found.is_closed() {
        ended.extend(take(consumer, found, &mut next)?);
    }
    Ok(())
}

fn assign(consumer: &BaseConsumer, next: &BTreeMap<i32, Offset>) -> Result<(), KafkaError> {
    let mut assignment = TopicPartitionList::with_capacity(next.len());
    for (&partition, &offset) in next {
        assignment.add_partition_offset(OUTPUT_TOPIC, partition, offset)?;
    }
    consumer.assign(&assignment)
}

/// Passes one record on, if there is one; otherwise the partition whose end was reached, if one was.
fn take(
    consumer: &BaseConsumer,
    found: &mpsc::UnboundedSender<OutputRecord>,
    next: &mut BTreeMap<i32, Offset>,
) -> Result<Option<i32>, DemoError> {
    match consumer.poll(POLL) {
        None => Ok(None),
        Some(Ok(message)) => {
            next.insert(message.partition(), Offset::Offset(message.offset() + 1));
            // Nobody listens any more only when the demo is at its end.
            let _ = found.send(serde_json::from_slice(message.payload().unwrap_or_default())?);
            Ok(None)
        }
        Some(Err(KafkaError::PartitionEOF(partition))) => Ok(Some(partition)),
        Some(Err(error)) => {
            tracing::debug!(%error, "reading outputs; the client goes on by itself");
            Ok(None)
        }
    }
}
