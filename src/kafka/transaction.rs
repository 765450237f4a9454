//! One Kafka transaction, and the producers that it takes.
//!
//! The client library has no KIP-890, so a request to end one transaction that is delivered late can
//! end the next one of the same producer. Whoever runs a transaction replaces the producer when
//! [`Ended::suspect`] says so, or when the outcome is in doubt.

use super::KafkaSettings;
use super::client::ClientRole;
use super::committer::Trouble;
use super::decision::{Complaint, Outcome, Refusal, Verdict};
use super::ledger::StagedRecord;
use super::outbox::Outbox;
use crate::failpoint;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Makes a producer and has it end whatever an earlier one of the same transactional id left.
pub(super) fn open_producer(settings: &KafkaSettings) -> Result<Outbox, Trouble> {
    let outbox = Outbox::new(settings, ClientRole::Committer).map_err(|error| Trouble(error.to_string()))?;
    let deadline = Instant::now() + settings.socket_timeout();
    while let Err(error) = outbox.producer().init_transactions(remaining(deadline)) {
        if matches!(verdict(&error), Verdict::Retry) && Instant::now() < deadline {
            thread::sleep(RETRY_PAUSE);
            continue;
        }
        let detail = outbox.client().last_error().map(|detail| format!(" ({detail})")).unwrap_or_default();
        let id = settings.transactional_id();
        retire(outbox);
        return Err(Trouble(format!(
            "transactions can't begin on {} as {id:?}: {error}{detail}; check the brokers, \
             the ACLs of the transactional id, and whether they support transactions (kafka.delivery)",
            settings.brokers
        )));
    }
    Ok(outbox)
}

/// How a transaction ended.
pub(super) struct Ended {
    pub outcome: Outcome,
    /// Whether a copy of a request may still be under way, after a slow call or a broken connection: it
    /// could end the next transaction as well.
    pub suspect: bool,
}

/// Produces `records`, and commits `offsets` of a group with them if there are any; blocks. Each step
/// is bounded in time.
pub(super) fn run(
    outbox: &Outbox,
    settings: &KafkaSettings,
    records: &[Arc<StagedRecord>],
    offsets: Option<(&TopicPartitionList, &ConsumerGroupMetadata)>,
) -> Ended {
    let errors = outbox.client().transport_errors();
    let mut transaction = Transaction { outbox, patience: settings.socket_timeout(), slow: false };
    let message_timeout = Duration::from_millis(u64::from(settings.message_timeout_ms));
    let outcome = transaction.run(records, offsets, message_timeout);
    Ended { outcome, suspect: transaction.slow || outbox.client().transport_errors() != errors }
}

struct Transaction<'a> {
    outbox: &'a Outbox,
    patience: Duration,
    /// Whether a call took so long that a copy of its request may still be under way.
    slow: bool,
}

impl Transaction<'_> {
    fn run(
        &mut self,
        records: &[Arc<StagedRecord>],
        offsets: Option<(&TopicPartitionList, &ConsumerGroupMetadata)>,
        message_timeout: Duration,
    ) -> Outcome {
        let producer = self.outbox.producer();
        if let Err(error) = producer.begin_transaction() {
            return Outcome::Doubtful(error.to_string());
        }
        failpoint::reach_each("transaction-begun", records.len());
        let deadline = Instant::now() + message_timeout;
        let deliveries = match self.outbox.produce(records, deadline) {
            Ok(deliveries) => deliveries,
            Err(failure) => return self.abort(Refusal { code: None, reason: failure.to_string() }),
        };
        failpoint::reach_each("outputs-produced", records.len());
        if let Some((offsets, group)) = offsets
            && let Err(outcome) =
                self.call(|patience| producer.send_offsets_to_transaction(offsets, group, patience))
        {
            return outcome;
        }
        if let Err(failure) = deliveries.wait(deadline) {
            return self.abort(Refusal { code: None, reason: failure.to_string() });
        }
        failpoint::reach_each("offsets-sent", records.len());
        match self.call(|patience| producer.commit_transaction(patience)) {
            Ok(()) => {
                failpoint::reach_each("transaction-committed", records.len());
                Outcome::Committed
            }
            Err(outcome) => outcome,
        }
    }

    /// Makes a call until it succeeds or may not be repeated.
    fn call(&mut self, attempt: impl Fn(Duration) -> Result<(), KafkaError>) -> Result<(), Outcome> {
        let result = self.repeat(attempt);
        let Err(error) = result else { return Ok(()) };
        match verdict(&error) {
            Verdict::Abort => Err(self.abort(refusal(&error))),
            Verdict::Retry | Verdict::Replace => Err(Outcome::Doubtful(error.to_string())),
        }
    }

    fn abort(&mut self, refusal: Refusal) -> Outcome {
        let producer = self.outbox.producer();
        match self.repeat(|patience| producer.abort_transaction(patience)) {
            Ok(()) => Outcome::Aborted(refusal),
            Err(error) => {
                Outcome::Doubtful(format!("{}; and it could not be aborted: {error}", refusal.reason))
            }
        }
    }

    fn repeat(&mut self, attempt: impl Fn(Duration) -> Result<(), KafkaError>) -> Result<(), KafkaError> {
        let begun = Instant::now();
        let deadline = begun + self.patience;
        let result = loop {
            match attempt(remaining(deadline)) {
                Err(error) if matches!(verdict(&error), Verdict::Retry) && Instant::now() < deadline => {
                    thread::sleep(RETRY_PAUSE);
                }
                result => break result,
            }
        };
        self.slow |= begun.elapsed() > self.patience / 2;
        result
    }
}

/// What librdkafka says of a failed call.
fn verdict(error: &KafkaError) -> Verdict {
    match error {
        KafkaError::Transaction(error) => Complaint {
            fatal: error.is_fatal(),
            requires_abort: error.txn_requires_abort(),
            retriable: error.is_retriable(),
            timed_out: error.code() == RDKafkaErrorCode::OperationTimedOut,
        },
        _ => Complaint::default(),
    }
    .verdict()
}

pub(super) fn refusal(error: &KafkaError) -> Refusal {
    let code = match error {
        KafkaError::Transaction(error) => Some(error.code()),
        other => other.rdkafka_error_code(),
    };
    Refusal { code, reason: format!("a transaction was refused: {error}") }
}

/// librdkafka takes a timeout of 0 for "don't wait", so never quite that.
fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// Closes a producer elsewhere: that can block for as long as a broker doesn't answer.
pub(super) fn retire(outbox: Outbox) {
    let spawned = thread::Builder::new().name("kafka-retire".into()).spawn(move || drop(outbox));
    if let Err(error) = spawned {
        // The closure, and the producer in it, was dropped right here instead.
        tracing::warn!(%error, "no thread to close a producer on");
    }
}
