//! One ledger, alone and under random histories.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

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
    match ledger.deliver(epoch, offset, None) {
        Delivery::Process(receipt) => receipt,
        other => panic!("{offset} gave {other:?}"),
    }
}

fn staged(name: &str) -> Vec<StagedRecord> {
    let record = WireRecord { key: Some(name.as_bytes().to_vec()), ..WireRecord::default() };
    vec![StagedRecord { topic: Arc::from("out"), record }]
}

fn names(batch: &Batch) -> Vec<String> {
    let name = |output: &Arc<StagedRecord>| String::from_utf8(output.record.key.clone().unwrap()).unwrap();
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
    assert_eq!(ledger.deliver(epoch, 1, None), Delivery::Dead);
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

/// Writes down what it is told.
#[derive(Debug)]
struct Diary(Arc<Mutex<Vec<&'static str>>>);

impl Witness for Diary {
    fn finished(&mut self) {
        self.0.lock().unwrap().push("finished");
    }

    fn refused(&mut self) {
        self.0.lock().unwrap().push("refused");
    }

    fn committed(self: Box<Self>) {
        self.0.lock().unwrap().push("committed");
    }
}

impl Drop for Diary {
    fn drop(&mut self) {
        self.0.lock().unwrap().push("dropped");
    }
}

#[test]
fn a_witness_is_told_of_refusals_and_of_the_commit() {
    let (ledger, diary) = (ledger(), Arc::default());
    let receipt = delivered(&ledger, opened(&ledger, 0), 0);
    ledger.attend(&receipt, Box::new(Diary(Arc::clone(&diary))));
    ledger.expect(&receipt, 1);
    assert!(diary.lock().unwrap().is_empty());
    ledger.complete(&receipt, 0, staged("a"));
    ledger.restage(&ledger.take().unwrap().parts[0]);
    ledger.committed(&ledger.take().unwrap().parts[0]);
    assert_eq!(*diary.lock().unwrap(), ["finished", "refused", "committed", "dropped"]);
}

#[test]
fn a_witness_goes_with_the_assignment() {
    let (ledger, diary) = (ledger(), Arc::default());
    let epoch = opened(&ledger, 0);
    let receipt = delivered(&ledger, epoch, 0);
    ledger.attend(&receipt, Box::new(Diary(Arc::clone(&diary))));
    ledger.kill(&[epoch]);
    assert_eq!(*diary.lock().unwrap(), ["dropped"]);
    ledger.attend(&receipt, Box::new(Diary(Arc::clone(&diary))));
    assert_eq!(*diary.lock().unwrap(), ["dropped", "dropped"]);
}

#[test]
fn the_oldest_unfinished_record_is_known_by_its_stamp() {
    let ledger = ledger();
    let epoch = opened(&ledger, 0);
    for (offset, stamp) in [(0, Some(30)), (1, Some(10)), (2, None)] {
        let Delivery::Process(receipt) = ledger.deliver(epoch, offset, stamp) else { panic!("it is new") };
        if offset == 1 {
            let progress = ledger.progress();
            assert_eq!((progress[0].unfinished, progress[0].oldest_ms), (2, Some(10)));
            ledger.expect(&receipt, 0);
        }
    }
    let progress = ledger.progress();
    assert_eq!((progress[0].unfinished, progress[0].oldest_ms), (2, Some(30)));
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
                    let delivery = ledger.deliver(epochs[index], next[index], None);
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
