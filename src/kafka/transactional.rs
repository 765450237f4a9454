//! Commits in Kafka transactions: outputs, dead letters and input offsets together or not at all.
//!
//! The client library has no KIP-890, so a request to end one transaction that is delivered late can
//! end the next one of the same producer. Whenever a call fails for good, times out or was slow, or a
//! connection broke since the transaction began, the producer is replaced: `init_transactions` of the
//! new one fences the old and ends what it left open, and then the committed offsets say what
//! happened. Nothing is ever assumed about a commit without an answer.

use super::client::ClientRole;
use super::committer::{Cycle, Engine, Shared, Trouble, offsets_of};
use super::decision::{Complaint, Outcome, Refusal, Verdict};
use super::ledger::Batch;
use super::outbox::Outbox;
use super::settlement::Settlement;
use super::stats::count;
use super::{KafkaSettings, client, lookup, native};
use crate::failpoint::{self, Rule};
use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer;
use std::fmt::Display;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Waiting for another transaction to end takes the broker up to ten seconds.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Transactional {
    shared: Shared,
    outbox: Option<Outbox>,
    settlement: Settlement,
}

/// What librdkafka says of a failed call.
pub(super) fn verdict(error: &KafkaError) -> Verdict {
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

fn refusal(error: &KafkaError) -> Refusal {
    let code = match error {
        KafkaError::Transaction(error) => Some(error.code()),
        other => other.rdkafka_error_code(),
    };
    Refusal { code, reason: format!("a transaction was refused: {error}") }
}

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

impl Engine for Transactional {
    fn cycle(&mut self) -> Result<Cycle, Trouble> {
        self.ensure_producer()?;
        self.resolve()?;
        let Some(member) = self.shared.member.upgrade() else { return Ok(Cycle::Clean) };
        // Read before the batch is taken: should the group move on in between, this is the older
        // generation, and the broker refuses it. The other way round it would accept offsets of
        // partitions that have been given away.
        let before = native::generation(&member);
        let group = member.group_metadata();
        let unfenced = before.is_none() || before != native::generation(&member);
        drop(member);
        let Some(group) = group.filter(|_| !unfenced) else {
            // No member just now, so there are no partitions, or not for long.
            return Ok(if self.shared.ledger.uncommitted() == 0 { Cycle::Clean } else { Cycle::Refused });
        };
        let Some(batch) = self.settlement.take() else { return Ok(Cycle::Clean) };
        self.commit(batch, &group)
    }
}

impl Transactional {
    pub fn new(shared: Shared) -> Self {
        let settlement = Settlement::new(Arc::clone(&shared.ledger));
        Self { shared, outbox: None, settlement }
    }

    fn ensure_producer(&mut self) -> Result<(), Trouble> {
        if self.outbox.is_none() {
            self.outbox = Some(open_producer(&self.shared.settings)?);
        }
        Ok(())
    }

    /// Finds out what became of the transaction in doubt. The new producer has ended it one way or
    /// the other, and a stable read of the committed offsets shows which.
    fn resolve(&mut self) -> Result<(), Trouble> {
        let sources = self.settlement.in_doubt();
        if sources.is_empty() {
            return Ok(());
        }
        let doubtful = |error: &dyn Display| Trouble(format!("a commit's outcome is not known yet: {error}"));
        let consumer = client::lookup_consumer(&self.shared.settings).map_err(|error| doubtful(&error))?;
        let committed = lookup::committed(&consumer, &sources, COMMITTED_TIMEOUT)
            .and_then(|committed| committed.into_iter().collect::<Result<Vec<_>, _>>())
            .map_err(|error| doubtful(&error))?;
        let committed = committed.into_iter().map(|found| found.filter(|_| Rule::Compare.holds()));
        let resolved = self.settlement.resolve(&sources.into_iter().zip(committed).collect());
        tracing::info!(
            partitions = resolved.partitions,
            happened = resolved.happened,
            "found out what became of a commit"
        );
        if resolved.happened > 0 {
            count(&self.shared.stats.commits, 1);
            count(&self.shared.stats.outputs, resolved.outputs);
        }
        Ok(())
    }

    fn commit(&mut self, batch: Batch, group: &ConsumerGroupMetadata) -> Result<Cycle, Trouble> {
        let Some(outbox) = self.outbox.take() else {
            self.shared.restage(&batch);
            return Ok(Cycle::Refused);
        };
        let errors = outbox.client().transport_errors();
        let mut transaction =
            Transaction { outbox: &outbox, patience: self.shared.settings.socket_timeout(), slow: false };
        let message_timeout = Duration::from_millis(u64::from(self.shared.settings.message_timeout_ms));
        let outcome = transaction.run(&batch, group, message_timeout);
        let suspect = transaction.slow || outbox.client().transport_errors() != errors;
        if outcome.replaces_producer(suspect) {
            tracing::info!(slow = transaction.slow, "the transactional producer is replaced");
            count(&self.shared.stats.producer_replacements, 1);
            retire(outbox);
        } else {
            self.outbox = Some(outbox);
        }
        let outputs = batch.outputs.len();
        self.settlement.settle(batch, &outcome);
        let stats = &self.shared.stats;
        match outcome {
            Outcome::Committed => {
                count(&stats.commits, 1);
                count(&stats.outputs, outputs);
                Ok(Cycle::Clean)
            }
            Outcome::Aborted(refusal) => {
                count(&stats.aborts, 1);
                self.shared.refused(refusal)
            }
            Outcome::Doubtful(reason) => {
                Err(Trouble(format!("a commit got no answer that settles it: {reason}")))
            }
        }
    }
}

/// One transaction, from begin to end.
struct Transaction<'a> {
    outbox: &'a Outbox,
    patience: Duration,
    /// Whether a call took so long that a copy of its request may still be under way.
    slow: bool,
}

impl Transaction<'_> {
    fn run(&mut self, batch: &Batch, group: &ConsumerGroupMetadata, message_timeout: Duration) -> Outcome {
        let offsets = match offsets_of(batch.parts.iter()) {
            Ok(offsets) => offsets,
            Err(error) => return Outcome::Aborted(refusal(&error)),
        };
        let producer = self.outbox.producer();
        if let Err(error) = producer.begin_transaction() {
            return Outcome::Doubtful(error.to_string());
        }
        failpoint::reach_each("transaction-begun", batch.outputs.len());
        let deadline = Instant::now() + message_timeout;
        let deliveries = match self.outbox.produce(&batch.outputs, deadline) {
            Ok(deliveries) => deliveries,
            Err(failure) => return self.abort(Refusal { code: None, reason: failure.to_string() }),
        };
        failpoint::reach_each("outputs-produced", batch.outputs.len());
        if let Err(outcome) =
            self.call(|patience| producer.send_offsets_to_transaction(&offsets, group, patience))
        {
            return outcome;
        }
        if let Err(failure) = deliveries.wait(deadline) {
            return self.abort(Refusal { code: None, reason: failure.to_string() });
        }
        failpoint::reach_each("offsets-sent", batch.outputs.len());
        match self.call(|patience| producer.commit_transaction(patience)) {
            Ok(()) => {
                failpoint::reach_each("transaction-committed", batch.outputs.len());
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

/// librdkafka takes a timeout of 0 for "don't wait", so never quite that.
pub(super) fn remaining(deadline: Instant) -> Duration {
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
