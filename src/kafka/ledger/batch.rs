//! What the committer takes out of the ledger, and how it comes back.

use super::{Assignment, Ledger, StagedRecord, State};
use crate::kafka::offsets::{PartitionTracker, Plan};
use crate::kafka::receipt::{Epoch, TopicPartition};
use std::sync::Arc;

/// One commit: outputs, and the offsets that cover them.
#[derive(Debug)]
pub(in crate::kafka) struct Batch {
    pub parts: Vec<BatchPart>,
    pub outputs: Vec<Arc<StagedRecord>>,
}

/// The commit of one partition.
#[derive(Debug)]
pub(in crate::kafka) struct BatchPart {
    pub epoch: Epoch,
    pub source: TopicPartition,
    pub plan: Plan,
}

impl Ledger {
    /// Takes everything that is done in live epochs, with offsets that cover exactly that. `None` if
    /// there is nothing new. What was taken stays taken until one of the three calls below; only one
    /// batch may be out at a time.
    pub(in crate::kafka) fn take(&self) -> Option<Batch> {
        let mut state = self.lock();
        let mut batch = Batch { parts: Vec::new(), outputs: Vec::new() };
        for (epoch, assignment) in &mut state.assignments {
            let Some(plan) = assignment.tracker.as_mut().and_then(PartitionTracker::plan) else { continue };
            let outputs = plan.covered.iter().filter_map(|offset| assignment.work.get(offset));
            batch.outputs.extend(outputs.flat_map(|work| work.outputs.iter().cloned()));
            batch.parts.push(BatchPart { epoch: *epoch, source: assignment.source.clone(), plan });
        }
        state.waiting = state.waiting.saturating_sub(batch.outputs.len());
        (!batch.parts.is_empty()).then_some(batch)
    }

    /// The partition's commit happened, outputs included.
    pub(in crate::kafka) fn committed(&self, part: &BatchPart) {
        let mut witnesses = Vec::new();
        self.with_assignment(part, |assignment, _| {
            if let Some(tracker) = &mut assignment.tracker {
                tracker.confirm(&part.plan);
            }
            let ended = part.plan.covered.iter().filter_map(|offset| assignment.work.remove(offset));
            witnesses.extend(ended.filter_map(|work| work.witness));
        });
        for witness in witnesses {
            witness.committed();
        }
    }

    /// The partition's commit certainly did not happen: everything waits again.
    pub(in crate::kafka) fn restage(&self, part: &BatchPart) {
        self.with_assignment(part, |assignment, waiting| {
            if let Some(tracker) = &mut assignment.tracker {
                tracker.retract(&part.plan);
            }
            for offset in &part.plan.covered {
                let Some(work) = assignment.work.get_mut(offset) else { continue };
                *waiting += work.outputs.len();
                if let Some(witness) = &mut work.witness {
                    witness.refused();
                }
            }
        });
    }

    /// The outputs were produced for good, but their offsets were not committed (at-least-once
    /// only): the offsets wait again, without outputs.
    pub(in crate::kafka) fn produced(&self, part: &BatchPart) {
        self.with_assignment(part, |assignment, _| {
            if let Some(tracker) = &mut assignment.tracker {
                tracker.retract(&part.plan);
            }
            for offset in &part.plan.covered {
                let Some(work) = assignment.work.get_mut(offset) else { continue };
                work.outputs.clear();
                if let Some(witness) = &mut work.witness {
                    witness.refused();
                }
            }
        });
    }

    fn with_assignment(&self, part: &BatchPart, change: impl FnOnce(&mut Assignment, &mut usize)) {
        let mut state = self.lock();
        let State { assignments, waiting, .. } = &mut *state;
        if let Some(assignment) = assignments.get_mut(&part.epoch) {
            change(assignment, waiting);
        }
    }
}
