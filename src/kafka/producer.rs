//! Produces records outside the pipeline: for the demo, backfills and putting dead letters back.

use super::client::{self, ClientRole, Context};
use super::outbox::native_headers;
use super::{Error, KafkaSettings};
use crate::record::WireRecord;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use std::time::Duration;

/// How long a full queue may hold up one record.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);

/// An idempotent producer with acknowledgements from all replicas. Cheap to clone.
#[derive(Clone)]
pub struct RecordProducer {
    producer: FutureProducer<Context>,
}

impl RecordProducer {
    /// A producer for the configured brokers; connects with the first record.
    pub fn new(settings: &KafkaSettings) -> Result<Self, Error> {
        let config = client::producer_config(settings, ClientRole::Producer);
        let context = Context::new(ClientRole::Producer, settings);
        Ok(Self { producer: client::create(settings, &config, context)? })
    }

    /// Produces one record and waits for its acknowledgement. Returns its partition and offset. Many
    /// such futures at once are batched.
    pub async fn send(&self, topic: &str, record: &WireRecord) -> Result<(i32, i64), Error> {
        let mut native: FutureRecord<'_, [u8], [u8]> =
            FutureRecord::to(topic).headers(native_headers(record));
        if let Some(key) = &record.key {
            native = native.key(key.as_slice());
        }
        if let Some(payload) = &record.payload {
            native = native.payload(payload.as_slice());
        }
        match self.producer.send(native, QUEUE_TIMEOUT).await {
            Ok(delivery) => Ok((delivery.partition, delivery.offset)),
            Err((error, _)) => Err(failed(topic, &error)),
        }
    }

    /// Waits until everything queued is acknowledged or has failed; blocks.
    pub fn flush(&self, timeout: Duration) -> Result<(), Error> {
        self.producer.flush(timeout).map_err(|error| failed("*", &error))
    }
}

fn failed(topic: &str, error: &KafkaError) -> Error {
    let passing = [
        RDKafkaErrorCode::MessageTimedOut,
        RDKafkaErrorCode::OperationTimedOut,
        RDKafkaErrorCode::BrokerTransportFailure,
        RDKafkaErrorCode::QueueFull,
    ];
    let retriable = error.rdkafka_error_code().is_some_and(|code| passing.contains(&code));
    Error::Produce { topic: topic.to_owned(), reason: error.to_string(), retriable }
}
