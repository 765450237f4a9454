//! What is in flight under every live assignment, under one lock that is never held over I/O.
//!
//! The poll thread records deliveries, the pipeline completions, the committer takes what is done.
//! All of them name an [`Epoch`]; what comes for a dead one is dropped here, and only here.

use super::offsets::{Delivered, PartitionTracker, Plan};
use super::receipt::{Epoch, Receipt, TopicPartition};
use crate::failpoint::Rule;
use crate::record::WireRecord;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

/// One commit: outputs, and the offsets that cover them.
#[derive(Debug)]
pub(super) struct Batch {
    pub parts: Vec<BatchPart>,
    pub outputs: Vec<Arc<StagedRecord>>,
}

/// The commit of one partition.
#[derive(Debug)]
pub(super) struct BatchPart {
    pub epoch: Epoch,
    pub source: TopicPartition,
    pub plan: Plan,
}

/// Where one partition stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub source: TopicPartition,
    /// The first unfinished offset.
    pub base: i64,
    /// Finished offsets beyond it.
    pub done_ahead: usize,
    /// Up to where records were delivered or will never be.
    pub position: i64,
    /// The window is full: nothing more is taken until the base moves.
    pub full: bool,
    /// Starts in a row without progress, this one included.
    pub starts: u32,
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

    /// Records that are delivered and not finished.
    pub fn in_flight(&self) -> usize {
        let state = self.lock();
        let unfinished =
            |assignment: &Assignment| assignment.work.values().filter(|work| !work.finished).count();
        state.assignments.values().map(unfinished).sum()
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
            Some(Progress {
                source: assignment.source.clone(),
                base: tracker.base(),
                done_ahead: tracker.done_ahead(),
                position: tracker.position(),
                full: tracker.is_full(),
                starts: tracker.starts(),
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

    pub(super) fn deliver(&self, epoch: Epoch, offset: i64) -> Delivery {
        let mut state = self.lock();
        let Some(assignment) = state.assignments.get_mut(&epoch) else { return Delivery::Dead };
        let Some(tracker) = &mut assignment.tracker else { return Delivery::Dead };
        match tracker.deliver(offset) {
            Delivered::New => {
                assignment.work.insert(offset, Work::default());
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

    pub(super) fn is_full(&self, epoch: Epoch) -> bool {
        self.lock().tracker_mut(epoch).is_some_and(|tracker| tracker.is_full())
    }

    pub(super) fn has_room(&self, epoch: Epoch) -> bool {
        self.lock().tracker_mut(epoch).is_some_and(|tracker| tracker.has_room())
    }

    /// Nothing more is started under these epochs.
    pub(super) fn begin_revoke(&self, epochs: &[Epoch]) {
        let mut state = self.lock();
        for epoch in epochs {
            if let Some(assignment) = state.assignments.get_mut(epoch) {
                assignment.revoking = true;
            }
        }
    }

    /// Nothing more is started at all.
    pub(super) fn begin_drain(&self) {
        self.lock().draining = true;
    }

    /// Waits until what was started under these epochs (all, if `None`) is finished. Returns how
    /// many records were not when the time was up.
    pub(super) fn wait_started(&self, epochs: Option<&[Epoch]>, deadline: Instant) -> usize {
        let mut state = self.lock();
        loop {
            let unfinished = state.started_unfinished(epochs);
            let left = deadline.saturating_duration_since(Instant::now());
            if unfinished == 0 || left == Duration::ZERO {
                return unfinished;
            }
            state = self.finished.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// These epochs' partitions are given up in good order: nobody died of them.
    pub(super) fn settle(&self, epochs: Option<&[Epoch]>) {
        let mut state = self.lock();
        for (epoch, assignment) in &mut state.assignments {
            if epochs.is_none_or(|epochs| epochs.contains(epoch))
                && let Some(tracker) = &mut assignment.tracker
            {
                tracker.settle();
            }
        }
    }

    /// The end of these epochs: whatever still comes for them is dropped.
    pub(super) fn kill(&self, epochs: &[Epoch]) {
        if !Rule::Epoch.holds() {
            return;
        }
        let mut state = self.lock();
        for epoch in epochs {
            state.remove(*epoch);
        }
        drop(state);
        self.finished.notify_all();
    }

    /// The end of every epoch: the group no longer knows this member.
    pub(super) fn kill_all(&self) {
        let mut state = self.lock();
        state.assignments.clear();
        state.waiting = 0;
        drop(state);
        self.finished.notify_all();
    }

    /// Takes everything that is done in live epochs, with offsets that cover exactly that. `None` if
    /// there is nothing new. What was taken stays taken until one of the three calls below; only one
    /// batch may be out at a time.
    pub(super) fn take(&self) -> Option<Batch> {
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
    pub(super) fn committed(&self, part: &BatchPart) {
        self.with_assignment(part, |assignment, _| {
            if let Some(tracker) = &mut assignment.tracker {
                tracker.confirm(&part.plan);
            }
            for offset in &part.plan.covered {
                assignment.work.remove(offset);
            }
        });
    }

    /// The partition's commit certainly did not happen: everything waits again.
    pub(super) fn restage(&self, part: &BatchPart) {
        self.with_assignment(part, |assignment, waiting| {
            if let Some(tracker) = &mut assignment.tracker {
                tracker.retract(&part.plan);
            }
            let outputs = part.plan.covered.iter().filter_map(|offset| assignment.work.get(offset));
            *waiting += outputs.map(|work| work.outputs.len()).sum::<usize>();
        });
    }

    /// The outputs were produced for good, but their offsets were not committed (at-least-once
    /// only): the offsets wait again, without outputs.
    pub(super) fn produced(&self, part: &BatchPart) {
        self.with_assignment(part, |assignment, _| {
            if let Some(tracker) = &mut assignment.tracker {
                tracker.retract(&part.plan);
            }
            for offset in &part.plan.covered {
                if let Some(work) = assignment.work.get_mut(offset) {
                    work.outputs.clear();
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    fn ledger() -> Ledger {
        Ledger::new(usize::MAX, || {})
    }

    /// An epoch whose count of starts is committed already.
    fn opened(ledger: &Ledger, partition: i32) -> Epoch {
        let epoch = ledger.assign(TopicPartition::new("t", partition));
        assert!(ledger.open(epoch, PartitionTracker::resumed(0, b"")));
        let batch = ledger.take().unwrap();
        assert!(batch.outputs.is_empty());
        batch.parts.iter().for_each(|part| ledger.committed(part));
        epoch
    }

    fn delivered(ledger: &Ledger, epoch: Epoch, offset: i64) -> Receipt {
        match ledger.deliver(epoch, offset) {
            Delivery::Process(receipt) => receipt,
            other => panic!("{offset} gave {other:?}"),
        }
    }

    fn staged(name: &str) -> Vec<StagedRecord> {
        let record = WireRecord { key: Some(name.as_bytes().to_vec()), ..WireRecord::default() };
        vec![StagedRecord { topic: Arc::from("out"), record }]
    }

    fn names(batch: &Batch) -> Vec<String> {
        let name =
            |output: &Arc<StagedRecord>| String::from_utf8(output.record.key.clone().unwrap()).unwrap();
        batch.outputs.iter().map(name).collect()
    }

    #[test]
    fn a_record_is_taken_once_all_its_items_are_complete() {
        let ledger = ledger();
        let receipt = delivered(&ledger, opened(&ledger, 0), 0);
        assert!(ledger.expect(&receipt, 2));
        assert!(ledger.complete(&receipt, 0, staged("a")));
        assert!(ledger.complete(&receipt, 0, staged("again")));
        assert!(ledger.take().is_none());
        assert!(ledger.complete(&receipt, 1, staged("b")));
        let batch = ledger.take().unwrap();
        assert_eq!(names(&batch), ["a", "b"]);
        assert_eq!(batch.parts[0].plan.base, 1);
        assert!(ledger.take().is_none_or(|batch| batch.outputs.is_empty()), "it is taken");
        ledger.restage(&batch.parts[0]);
        let batch = ledger.take().unwrap();
        assert_eq!(names(&batch), ["a", "b"]);
        ledger.committed(&batch.parts[0]);
        assert!(ledger.take().is_none());
        assert_eq!((ledger.in_flight(), ledger.uncommitted()), (0, 0));
    }

    #[test]
    fn completing_before_the_number_of_items_is_known_counts() {
        let ledger = ledger();
        let receipt = delivered(&ledger, opened(&ledger, 0), 0);
        ledger.complete(&receipt, 0, staged("a"));
        assert!(ledger.take().is_none());
        ledger.expect(&receipt, 1);
        assert_eq!(names(&ledger.take().unwrap()), ["a"]);
    }

    #[test]
    fn what_comes_for_a_dead_epoch_is_dropped() {
        let ledger = ledger();
        let epoch = opened(&ledger, 0);
        let receipt = delivered(&ledger, epoch, 0);
        ledger.expect(&receipt, 1);
        ledger.complete(&receipt, 0, staged("a"));
        let batch = ledger.take().unwrap();
        ledger.kill(&[epoch]);
        let next = opened(&ledger, 0);
        assert_ne!(epoch, next);
        assert!(!ledger.is_live(&receipt) && !ledger.start(&receipt) && !ledger.expect(&receipt, 1));
        assert!(!ledger.complete(&receipt, 0, staged("late")));
        assert_eq!(ledger.deliver(epoch, 1), Delivery::Dead);
        ledger.restage(&batch.parts[0]);
        ledger.committed(&batch.parts[0]);
        assert!(ledger.take().is_none());
    }

    #[test]
    fn a_revocation_waits_for_what_was_started_and_for_nothing_else() {
        let ledger = Arc::new(ledger());
        let epoch = opened(&ledger, 0);
        let (started, queued) = (delivered(&ledger, epoch, 0), delivered(&ledger, epoch, 1));
        for receipt in [&started, &queued] {
            ledger.expect(receipt, 1);
        }
        assert!(ledger.start(&started));
        ledger.begin_revoke(&[epoch]);
        assert!(ledger.start(&started) && !ledger.start(&queued));
        assert_eq!(ledger.wait_started(Some(&[epoch]), Instant::now()), 1);
        let finisher = thread::spawn({
            let ledger = Arc::clone(&ledger);
            move || ledger.complete(&started, 0, vec![])
        });
        assert_eq!(ledger.wait_started(Some(&[epoch]), Instant::now() + Duration::from_secs(30)), 0);
        assert!(finisher.join().unwrap());
    }

    #[test]
    fn the_committer_is_called_once_enough_outputs_wait() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&calls);
        let ledger = Ledger::new(2, move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let epoch = opened(&ledger, 0);
        for offset in 0..4 {
            let receipt = delivered(&ledger, epoch, offset);
            ledger.expect(&receipt, 1);
            ledger.complete(&receipt, 0, staged("a"));
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn outputs_that_were_produced_are_not_taken_again() {
        let ledger = ledger();
        let receipt = delivered(&ledger, opened(&ledger, 0), 0);
        ledger.expect(&receipt, 1);
        ledger.complete(&receipt, 0, staged("a"));
        let batch = ledger.take().unwrap();
        ledger.produced(&batch.parts[0]);
        let again = ledger.take().unwrap();
        assert!(again.outputs.is_empty());
        assert_eq!(again.parts[0].plan, batch.parts[0].plan);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Deliver(i32),
        Complete(prop::sample::Index),
        Commit(bool),
        /// A partition goes and comes back.
        Reassign(i32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (0..3).prop_map(Step::Deliver),
            5 => any::<prop::sample::Index>().prop_map(Step::Complete),
            2 => prop::bool::weighted(0.7).prop_map(Step::Commit),
            1 => (0..3).prop_map(Step::Reassign),
        ]
    }

    proptest! {
        /// Whatever order work ends in and whenever partitions move, each output is committed once,
        /// under an epoch that was alive, together with an offset that covers it.
        #[test]
        fn every_output_is_committed_once(steps in prop::collection::vec(step(), 1..300)) {
            let ledger = ledger();
            let mut epochs: Vec<Epoch> = (0..3).map(|partition| opened(&ledger, partition)).collect();
            let mut next = [0_i64; 3];
            let mut committed: BTreeMap<i32, (i64, String)> = BTreeMap::new();
            let mut pending: Vec<Receipt> = Vec::new();
            let mut outputs: BTreeSet<String> = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Deliver(partition) => {
                        let index = partition as usize;
                        let delivery = ledger.deliver(epochs[index], next[index]);
                        let name = format!("{partition}/{}", next[index]);
                        next[index] += 1;
                        match delivery {
                            Delivery::Process(receipt) => {
                                prop_assert!(!outputs.contains(&name), "{} is processed again", name);
                                ledger.expect(&receipt, 1);
                                pending.push(receipt);
                            }
                            Delivery::AlreadyDone => prop_assert!(outputs.contains(&name)),
                            other => prop_assert!(false, "{:?}", other),
                        }
                    }
                    Step::Complete(index) => if !pending.is_empty() {
                        let receipt = pending.swap_remove(index.index(pending.len()));
                        let name = format!("{}/{}", receipt.source.partition, receipt.offset);
                        let alive = epochs.contains(&receipt.epoch);
                        prop_assert_eq!(ledger.complete(&receipt, 0, staged(&name)), alive);
                    },
                    Step::Commit(succeeds) => if let Some(batch) = ledger.take() {
                        for part in &batch.parts {
                            if succeeds {
                                ledger.committed(part);
                                committed.insert(part.source.partition, (part.plan.base, part.plan.metadata.clone()));
                            } else {
                                ledger.restage(part);
                            }
                        }
                        if succeeds {
                            for name in names(&batch) {
                                prop_assert!(outputs.insert(name.clone()), "{} was committed twice", name);
                            }
                        }
                    },
                    Step::Reassign(partition) => {
                        let index = partition as usize;
                        ledger.kill(&[epochs[index]]);
                        let epoch = ledger.assign(TopicPartition::new("t", partition));
                        let (base, metadata) = committed.get(&partition).cloned().unwrap_or_default();
                        prop_assert!(ledger.open(epoch, PartitionTracker::resumed(base, metadata.as_bytes())));
                        epochs[index] = epoch;
                        next[index] = base;
                    }
                }
            }
        }
    }
}
