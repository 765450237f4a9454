//! What is in flight under every live assignment, under one lock that is never held over I/O.
//!
//! The poll thread records deliveries, the pipeline completions, the committer takes what is done.
//! All of them name an [`Epoch`]; what comes for a dead one is dropped here, and only here.

mod batch;
mod ending;
mod witness;

pub(super) use batch::{Batch, BatchPart};
pub use witness::Witness;

use super::offsets::{Delivered, PartitionTracker};
use super::receipt::{Epoch, Receipt, TopicPartition};
use crate::record::WireRecord;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A record to be produced, and the topic it goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedRecord {
    pub topic: Arc<str>,
    pub record: WireRecord,
}

/// The state of all assignments. Shared by the poll thread, the pipeline and the committer.
#[derive(Debug)]
pub struct Ledger {
    state: Mutex<State>,
    /// Signalled when a record comes to its end.
    finished: Condvar,
    /// Called, outside the lock, once this many outputs wait for the committer.
    commit_outputs: usize,
    on_due: Box<dyn Callback>,
}

/// A callback without arguments.
pub(super) trait Callback: Fn() + Send + Sync {}
impl<F: Fn() + Send + Sync> Callback for F {}

impl std::fmt::Debug for dyn Callback {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("callback")
    }
}

#[derive(Debug, Default)]
struct State {
    last_epoch: u64,
    assignments: BTreeMap<Epoch, Assignment>,
    /// Outputs of finished records that no commit has taken.
    waiting: usize,
    /// No record may be started any more: the process is shutting down.
    draining: bool,
}

#[derive(Debug)]
struct Assignment {
    source: TopicPartition,
    /// `None` until the committed offset has been looked up.
    tracker: Option<PartitionTracker>,
    work: HashMap<i64, Work>,
    revoking: bool,
}

/// One delivered record that is not committed yet.
#[derive(Debug, Default)]
struct Work {
    started: bool,
    finished: bool,
    expected: Option<u32>,
    completed: Vec<u32>,
    outputs: Vec<Arc<StagedRecord>>,
    /// Milliseconds since the Unix epoch, as the producer or the broker stamped the record.
    stamped_ms: Option<i64>,
    witness: Option<Box<dyn Witness>>,
}

impl Work {
    fn is_complete(&self) -> bool {
        self.expected.is_some_and(|expected| self.completed.len() >= expected as usize)
    }
}

/// What the poll thread does with a record it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Process(Receipt),
    AlreadyDone,
    /// The log was truncated: this assignment has to begin again.
    Rewound,
    Dead,
}

/// Where one partition stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub source: TopicPartition,
    /// The first unfinished offset.
    pub base: i64,
    /// Finished offsets beyond it.
    pub done_ahead: usize,
    /// Records that are delivered and not finished.
    pub unfinished: usize,
    /// When the oldest of them was stamped, in milliseconds since the Unix epoch.
    pub oldest_ms: Option<i64>,
    /// Up to where records were delivered or will never be.
    pub position: i64,
    /// Nothing more is taken for now: the window is full, or the holding is not counted yet.
    pub full: bool,
    /// Starts in a row without progress, this one included.
    pub starts: u32,
    /// Whether records are suspected of having ended them.
    pub suspicious: bool,
}

impl Ledger {
    pub(super) fn new(commit_outputs: usize, on_due: impl Fn() + Send + Sync + 'static) -> Self {
        Self { state: Mutex::default(), finished: Condvar::new(), commit_outputs, on_due: Box::new(on_due) }
    }

    // Nothing panics while it holds this lock, so a poisoned one is as good as new.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how many items of a record will end in [`Self::complete`]. With 0 (everything skipped)
    /// the record is finished at once. Later calls for the same record change nothing.
    ///
    /// Returns `false` if the record's assignment is gone: drop the record.
    pub fn expect(&self, receipt: &Receipt, items: u32) -> bool {
        self.update(receipt, |work| {
            work.expected.get_or_insert(items);
        })
    }

    /// Asks to begin work on a record (or on one more item of it): call it before anything
    /// expensive. `false` means drop it: its assignment is gone or about to go, and another process
    /// will have it. What was started before a revocation may go on, and the revocation waits for it.
    pub fn start(&self, receipt: &Receipt) -> bool {
        let mut state = self.lock();
        let draining = state.draining;
        let Some(assignment) = state.assignments.get_mut(&receipt.epoch) else { return false };
        let refused = draining || assignment.revoking;
        let Some(work) = assignment.work.get_mut(&receipt.offset) else { return false };
        work.started |= !refused;
        work.started
    }

    /// Whether the assignment that a record came under is still held. Once `false`, always `false`.
    pub fn is_live(&self, receipt: &Receipt) -> bool {
        self.lock().assignments.contains_key(&receipt.epoch)
    }

    /// One item came to its end, with its row stored: `outputs` (the output record, perhaps a dead
    /// letter) are committed together with the record's offset once all its items have ended.
    /// Completing an item again changes nothing.
    ///
    /// Returns `false` if the record's assignment is gone; then its next owner does it all again.
    pub fn complete(&self, receipt: &Receipt, item: u32, outputs: Vec<StagedRecord>) -> bool {
        self.update(receipt, |work| {
            if !work.completed.contains(&item) {
                work.completed.push(item);
                work.outputs.extend(outputs.into_iter().map(Arc::new));
            }
        })
    }

    fn update(&self, receipt: &Receipt, change: impl FnOnce(&mut Work)) -> bool {
        let mut state = self.lock();
        let Some(assignment) = state.assignments.get_mut(&receipt.epoch) else { return false };
        let Some(work) = assignment.work.get_mut(&receipt.offset) else { return true };
        if work.finished {
            return true;
        }
        change(work);
        if !work.is_complete() {
            return true;
        }
        work.finished = true;
        if let Some(witness) = &mut work.witness {
            witness.finished();
        }
        let outputs = work.outputs.len();
        if let Some(tracker) = &mut assignment.tracker {
            tracker.finish(receipt.offset);
        }
        let before = state.waiting;
        state.waiting += outputs;
        let due = before < self.commit_outputs && state.waiting >= self.commit_outputs;
        drop(state);
        self.finished.notify_all();
        if due {
            (self.on_due)();
        }
        true
    }

    /// Whether the record may be what ended several processes in a row: then decode and score it where
    /// another end does no harm.
    pub fn is_suspect(&self, receipt: &Receipt) -> bool {
        let mut state = self.lock();
        let tracker = state.tracker_mut(receipt.epoch);
        tracker.is_some_and(|tracker| tracker.crash_loop().is_suspect(receipt.offset))
    }

    /// Records that are delivered and not finished.
    pub fn in_flight(&self) -> usize {
        let state = self.lock();
        let unfinished =
            |assignment: &Assignment| assignment.work.values().filter(|work| !work.finished).count();
        state.assignments.values().map(unfinished).sum()
    }

    /// The same, under these epochs alone.
    pub(super) fn in_flight_of(&self, epochs: &[Epoch]) -> usize {
        let state = self.lock();
        let unfinished =
            |assignment: &Assignment| assignment.work.values().filter(|work| !work.finished).count();
        epochs.iter().filter_map(|epoch| state.assignments.get(epoch)).map(unfinished).sum()
    }

    /// Records that are finished and not committed.
    pub fn uncommitted(&self) -> usize {
        let state = self.lock();
        let finished =
            |assignment: &Assignment| assignment.work.values().filter(|work| work.finished).count();
        state.assignments.values().map(finished).sum()
    }

    /// Where every partition that has been opened stands.
    pub fn progress(&self) -> Vec<Progress> {
        let state = self.lock();
        let progress = |assignment: &Assignment| {
            let tracker = assignment.tracker.as_ref()?;
            let unfinished = || assignment.work.values().filter(|work| !work.finished);
            Some(Progress {
                source: assignment.source.clone(),
                base: tracker.base(),
                done_ahead: tracker.done_ahead(),
                unfinished: unfinished().count(),
                oldest_ms: unfinished().filter_map(|work| work.stamped_ms).min(),
                position: tracker.position(),
                full: tracker.is_full() || !tracker.is_announced(),
                starts: tracker.crash_loop().count(),
                suspicious: tracker.crash_loop().is_suspicious(),
            })
        };
        state.assignments.values().filter_map(progress).collect()
    }

    /// A partition was assigned: a new epoch, in which nothing is delivered until it is opened.
    pub(super) fn assign(&self, source: TopicPartition) -> Epoch {
        self.lock().add(source, None)
    }

    /// The committed offset and metadata of an epoch's partition are known. `false` if it is dead.
    pub(super) fn open(&self, epoch: Epoch, tracker: PartitionTracker) -> bool {
        match self.lock().assignments.get_mut(&epoch) {
            Some(assignment) => {
                assignment.tracker = Some(tracker);
                true
            }
            None => false,
        }
    }

    /// The partition's log was truncated: its epoch dies and a new one begins at `offset`.
    pub(super) fn restart(&self, epoch: Epoch, offset: i64) -> Option<Epoch> {
        let mut state = self.lock();
        let source = state.remove(epoch)?.source;
        Some(state.add(source, Some(PartitionTracker::restarted(offset))))
    }

    pub(super) fn is_live_epoch(&self, epoch: Epoch) -> bool {
        self.lock().assignments.contains_key(&epoch)
    }

    /// The live epochs of these partitions.
    pub(super) fn epochs_of(&self, sources: &[TopicPartition]) -> Vec<Epoch> {
        let state = self.lock();
        let wanted = |assignment: &Assignment| sources.contains(&assignment.source);
        state
            .assignments
            .iter()
            .filter(|(_, assignment)| wanted(assignment))
            .map(|(epoch, _)| *epoch)
            .collect()
    }

    /// Takes note of a record that the consumer returned, stamped at `stamped_ms` since the Unix epoch.
    pub(super) fn deliver(&self, epoch: Epoch, offset: i64, stamped_ms: Option<i64>) -> Delivery {
        let mut state = self.lock();
        let Some(assignment) = state.assignments.get_mut(&epoch) else { return Delivery::Dead };
        let Some(tracker) = &mut assignment.tracker else { return Delivery::Dead };
        match tracker.deliver(offset) {
            Delivered::New => {
                assignment.work.insert(offset, Work { stamped_ms, ..Work::default() });
                Delivery::Process(Receipt { epoch, source: assignment.source.clone(), offset })
            }
            Delivered::AlreadyDone => Delivery::AlreadyDone,
            Delivered::Rewound => Delivery::Rewound,
        }
    }

    pub(super) fn set_position(&self, epoch: Epoch, position: i64) {
        if let Some(tracker) = self.lock().tracker_mut(epoch) {
            tracker.set_position(position);
        }
    }

    /// Whether a commit counts the holding, so that its records may be worked on.
    pub(super) fn is_announced(&self, epoch: Epoch) -> bool {
        self.lock().tracker_mut(epoch).is_some_and(|tracker| tracker.is_announced())
    }

    /// Everything that the partition's log holds has been delivered.
    pub(super) fn reach_end(&self, epoch: Epoch) {
        if let Some(tracker) = self.lock().tracker_mut(epoch) {
            tracker.reach_end();
        }
    }

    pub(super) fn is_full(&self, epoch: Epoch) -> bool {
        self.lock().tracker_mut(epoch).is_some_and(|tracker| tracker.is_full())
    }

    pub(super) fn has_room(&self, epoch: Epoch) -> bool {
        self.lock().tracker_mut(epoch).is_some_and(|tracker| tracker.has_room())
    }
}

impl State {
    fn add(&mut self, source: TopicPartition, tracker: Option<PartitionTracker>) -> Epoch {
        self.last_epoch += 1;
        let epoch = Epoch(self.last_epoch);
        let assignment = Assignment { source, tracker, work: HashMap::new(), revoking: false };
        self.assignments.insert(epoch, assignment);
        epoch
    }

    fn remove(&mut self, epoch: Epoch) -> Option<Assignment> {
        let removed = self.assignments.remove(&epoch)?;
        let finished = removed.work.values().filter(|work| work.finished);
        let outputs: usize = finished.map(|work| work.outputs.len()).sum();
        // Outputs that a commit in progress holds were subtracted before, hence saturating.
        self.waiting = self.waiting.saturating_sub(outputs);
        Some(removed)
    }

    fn tracker_mut(&mut self, epoch: Epoch) -> Option<&mut PartitionTracker> {
        self.assignments.get_mut(&epoch)?.tracker.as_mut()
    }

    fn started_unfinished(&self, epochs: Option<&[Epoch]>) -> usize {
        let wanted = |epoch: &Epoch| epochs.is_none_or(|epochs| epochs.contains(epoch));
        let unfinished = |work: &&Work| work.started && !work.finished;
        self.assignments
            .iter()
            .filter(|(epoch, _)| wanted(epoch))
            .map(|(_, assignment)| assignment.work.values().filter(unfinished).count())
            .sum()
    }
}

#[cfg(test)]
mod tests;
