//! What becomes of a batch whose transaction has ended, or of which that is not known. No I/O.

use super::decision::Outcome;
use super::ledger::{Batch, Ledger};
use super::receipt::TopicPartition;
use std::collections::HashMap;
use std::sync::Arc;

/// A partition's committed offset and its metadata, if it has one.
pub(super) type Found = Option<(i64, Vec<u8>)>;

/// Tells the ledger how its batches ended. Keeps the one in doubt, and no other is taken meanwhile.
pub(super) struct Settlement {
    ledger: Arc<Ledger>,
    unresolved: Option<Batch>,
}

/// What the committed offsets said of a batch in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Partitions that were asked about.
    pub partitions: usize,
    /// Of those, how many turned out committed: all or none, unless the group moved on.
    pub happened: usize,
    /// Outputs in the batch.
    pub outputs: usize,
}

impl Settlement {
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, unresolved: None }
    }

    /// Everything that is done and not committed; `None` where there is nothing, or a batch in doubt.
    pub fn take(&self) -> Option<Batch> {
        if self.unresolved.is_some() { None } else { self.ledger.take() }
    }

    /// A transaction ended. In doubt, the batch waits for [`Self::resolve`].
    pub fn settle(&mut self, batch: Batch, outcome: &Outcome) {
        match outcome {
            Outcome::Committed => batch.parts.iter().for_each(|part| self.ledger.committed(part)),
            Outcome::Aborted(_) => batch.parts.iter().for_each(|part| self.ledger.restage(part)),
            Outcome::Doubtful(_) => self.unresolved = Some(batch),
        }
    }

    /// The partitions whose stable committed offsets decide what became of the batch in doubt. Where
    /// all of its epochs have ended, their next owners see to it, and there is no doubt any more.
    pub fn in_doubt(&mut self) -> Vec<TopicPartition> {
        let parts = self.unresolved.iter().flat_map(|batch| &batch.parts);
        let live = parts.filter(|part| self.ledger.is_live_epoch(part.epoch));
        let sources: Vec<_> = live.map(|part| part.source.clone()).collect();
        if sources.is_empty() {
            self.unresolved = None;
        }
        sources
    }

    /// Ends the doubt: a part whose offset and metadata are committed as planned has happened, and
    /// every other waits again. The answers are those of [`Self::in_doubt`], read after the producer
    /// was replaced.
    pub fn resolve(&mut self, found: &HashMap<TopicPartition, Found>) -> Resolved {
        let Some(batch) = self.unresolved.take() else {
            return Resolved { partitions: 0, happened: 0, outputs: 0 };
        };
        let mut happened = 0;
        let asked = batch.parts.iter().filter_map(|part| Some((part, found.get(&part.source)?)));
        for (part, found) in asked {
            let committed = found.as_ref().is_some_and(|(base, metadata)| {
                (*base, metadata.as_slice()) == (part.plan.base, part.plan.metadata.as_bytes())
            });
            if committed {
                self.ledger.committed(part);
                happened += 1;
            } else {
                self.ledger.restage(part);
            }
        }
        Resolved { partitions: found.len(), happened, outputs: batch.outputs.len() }
    }
}
