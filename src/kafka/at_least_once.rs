//! Commits for brokers without transactions: outputs first, then offsets.
//!
//! A crash between the two repeats outputs, with the same ids and, since rows are read back, the same
//! scores.

use super::client::ClientRole;
use super::committer::{Cycle, Engine, Shared, Trouble, offsets_of};
use super::decision::Refusal;
use super::ledger::BatchPart;
use super::outbox::Outbox;
use super::stats::count;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer;
use std::time::{Duration, Instant};

pub(super) struct AtLeastOnce {
    shared: Shared,
    outbox: Option<Outbox>,
}

impl AtLeastOnce {
    pub fn new(shared: Shared) -> Self {
        Self { shared, outbox: None }
    }
}

impl Engine for AtLeastOnce {
    fn cycle(&mut self) -> Result<Cycle, Trouble> {
        let settings = &self.shared.settings;
        let outbox = match self.outbox.take() {
            Some(outbox) => outbox,
            None => {
                Outbox::new(settings, ClientRole::Committer).map_err(|error| Trouble(error.to_string()))?
            }
        };
        let Some(batch) = self.shared.ledger.take() else {
            self.outbox = Some(outbox);
            return Ok(Cycle::Clean);
        };
        let deadline = Instant::now() + Duration::from_millis(u64::from(settings.message_timeout_ms));
        let delivered =
            outbox.produce(&batch.outputs, deadline).and_then(|deliveries| deliveries.wait(deadline));
        // A fatal error of the idempotent producer stays with it: then the next cycle makes another.
        if outbox.producer().client().fatal_error().is_none() {
            self.outbox = Some(outbox);
        } else {
            count(&self.shared.stats.producer_replacements, 1);
        }
        if let Err(failure) = delivered {
            self.shared.restage(&batch);
            return Err(Trouble(failure.to_string()));
        }
        match self.commit_offsets(&batch.parts) {
            Ok(()) => {
                self.shared.committed(&batch);
                Ok(Cycle::Clean)
            }
            Err(error) => {
                for part in &batch.parts {
                    self.shared.ledger.produced(part);
                }
                count(&self.shared.stats.outputs, batch.outputs.len());
                count(&self.shared.stats.aborts, 1);
                let brokers = &self.shared.settings.brokers;
                let remedy = "check the brokers and the group's ACLs";
                let reason = format!("offsets could not be committed on {brokers}: {error}; {remedy}");
                self.shared.refused(Refusal { code: error.rdkafka_error_code(), reason })
            }
        }
    }
}

impl AtLeastOnce {
    fn commit_offsets(&self, parts: &[BatchPart]) -> Result<(), KafkaError> {
        let Some(member) = self.shared.member.upgrade() else { return Err(KafkaError::Canceled) };
        // The client puts its current generation into the commit, so partitions that went away since
        // the batch was taken must be left out here.
        let live: Vec<_> = parts.iter().filter(|part| self.shared.ledger.is_live_epoch(part.epoch)).collect();
        if live.is_empty() {
            return Ok(());
        }
        let offsets = offsets_of(live.into_iter())?;
        member.commit(&offsets, CommitMode::Sync)
    }
}
