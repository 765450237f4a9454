//! Commits in Kafka transactions: outputs, dead letters and input offsets together or not at all.
//!
//! Whenever a call fails for good, times out or was slow, or a connection broke since the transaction
//! began, the producer is replaced: `init_transactions` of the
//! new one fences the old and ends what it left open, and then the committed offsets say what
//! happened. Nothing is ever assumed about a commit without an answer.

use super::committer::{Cycle, Engine, Shared, Trouble, offsets_of};
use super::decision::Outcome;
use super::ledger::Batch;
use super::outbox::Outbox;
use super::settlement::Settlement;
use super::stats::count;
use super::transaction::{self, Ended, open_producer, refusal, retire};
use super::{client, lookup, native};
use crate::failpoint::Rule;
use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

/// Waiting for another transaction to end takes the broker up to ten seconds.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) struct Transactional {
    shared: Shared,
    outbox: Option<Outbox>,
    settlement: Settlement,
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
        let ended = match offsets_of(batch.parts.iter()) {
            Ok(offsets) => {
                let offsets = Some((&offsets, group));
                transaction::run(&outbox, &self.shared.settings, &batch.outputs, offsets)
            }
            Err(error) => Ended { outcome: Outcome::Aborted(refusal(&error)), suspect: false },
        };
        let Ended { outcome, suspect } = ended;
        if outcome.replaces_producer(suspect) {
            tracing::info!(suspect, "the transactional producer is replaced");
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
