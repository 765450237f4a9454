//! Produces a batch and waits for its deliveries.

use super::client::{self, ClientRole, Context};
use super::ledger::StagedRecord;
use super::{Error, KafkaSettings};
use crate::record::WireRecord;
use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header as NativeHeader, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a full producer queue is given before another try.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// A producer whose deliveries are counted per batch. Waiting on a counter is several times faster
/// than polling for delivery reports between transactional calls.
pub(super) struct Outbox {
    producer: ThreadedProducer<DeliveryContext>,
}

/// Why a batch was not delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not produce to topic {topic:?}: {reason}; check the topic, its ACLs and its size limit")]
pub(super) struct ProduceFailure {
    pub topic: String,
    pub reason: String,
}

impl Outbox {
    pub fn new(settings: &KafkaSettings, role: ClientRole) -> Result<Self, Error> {
        let config = client::producer_config(settings, role);
        let context = DeliveryContext { client: Context::new(role, settings) };
        Ok(Self { producer: client::create(settings, &config, context)? })
    }

    /// The producer itself, for transactional calls.
    pub fn producer(&self) -> &ThreadedProducer<DeliveryContext> {
        &self.producer
    }

    /// What the client has reported so far.
    pub fn client(&self) -> &Context {
        &self.producer.client().context().client
    }

    /// Queues every record; the deliveries are to be awaited. Fails at the first that can't be queued
    /// by the deadline.
    pub fn produce(
        &self,
        outputs: &[Arc<StagedRecord>],
        deadline: Instant,
    ) -> Result<Deliveries, ProduceFailure> {
        let deliveries = Deliveries::default();
        for output in outputs {
            let ticket = Ticket { shared: Arc::clone(&deliveries.shared), output: Arc::clone(output) };
            deliveries.shared.expect_one();
            let mut record = native_record(&output.topic, &output.record, Box::new(ticket));
            while let Err((error, refused)) = self.producer.send(record) {
                let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
                if !full || Instant::now() >= deadline {
                    return Err(ProduceFailure {
                        topic: output.topic.to_string(),
                        reason: error.to_string(),
                    });
                }
                record = refused;
                thread::sleep(QUEUE_PAUSE);
            }
        }
        Ok(deliveries)
    }
}

fn native_record<'a, D: rdkafka::IntoOpaque>(
    topic: &'a str,
    record: &'a WireRecord,
    opaque: D,
) -> BaseRecord<'a, [u8], [u8], D> {
    let mut native = BaseRecord::with_opaque_to(topic, opaque);
    if let Some(key) = &record.key {
        native = native.key(key.as_slice());
    }
    if let Some(payload) = &record.payload {
        native = native.payload(payload.as_slice());
    }
    native.headers(native_headers(record))
}

pub(super) fn native_headers(record: &WireRecord) -> OwnedHeaders {
    record.headers.iter().fold(OwnedHeaders::new_with_capacity(record.headers.len()), |headers, header| {
        headers.insert(NativeHeader { key: &header.name, value: header.value.as_ref() })
    })
}

/// The deliveries of one batch.
#[derive(Default)]
pub(super) struct Deliveries {
    shared: Arc<SharedDeliveries>,
}

impl Deliveries {
    /// Waits until every record of the batch is acknowledged, or one has failed, or the time is up.
    pub fn wait(&self, deadline: Instant) -> Result<(), ProduceFailure> {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.outstanding == 0 {
                return Ok(());
            }
            if left == Duration::ZERO {
                let reason = format!("{} records are not acknowledged in time", state.outstanding);
                return Err(ProduceFailure { topic: "*".into(), reason });
            }
            state = self.shared.settled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[derive(Default)]
struct SharedDeliveries {
    state: Mutex<DeliveryState>,
    settled: Condvar,
}

#[derive(Default)]
struct DeliveryState {
    outstanding: usize,
    failure: Option<ProduceFailure>,
}

impl SharedDeliveries {
    fn expect_one(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).outstanding += 1;
    }

    fn settle(&self, failure: Option<ProduceFailure>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.outstanding = state.outstanding.saturating_sub(1);
        state.failure = state.failure.take().or(failure);
        if state.outstanding == 0 || state.failure.is_some() {
            self.settled.notify_all();
        }
    }
}

/// Travels with a record and comes back with its delivery report.
pub(super) struct Ticket {
    shared: Arc<SharedDeliveries>,
    output: Arc<StagedRecord>,
}

/// The producer's context.
pub(super) struct DeliveryContext {
    client: Context,
}

impl ClientContext for DeliveryContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = Context::ENABLE_REFRESH_OAUTH_TOKEN;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.client.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.client.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.client.generate_oauth_token(config)
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let failure = result.as_ref().err().map(|(error, _)| ProduceFailure {
            topic: ticket.output.topic.to_string(),
            reason: error.to_string(),
        });
        ticket.shared.settle(failure);
    }
}
