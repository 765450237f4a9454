//! The tracker and its metadata, in cases and against a naive model.

use super::*;
use proptest::prelude::*;

fn done(offsets: &[i64]) -> BTreeSet<i64> {
    offsets.iter().copied().collect()
}

#[test]
fn metadata_looks_as_documented() {
    let metadata = CommitMetadata { starts: 2, done: done(&[101, 108]) };
    assert_eq!(metadata.encode(100), "{\"v\":1,\"s\":2,\"d\":\"AgE=\"}");
    assert_eq!(CommitMetadata::decode(metadata.encode(100).as_bytes(), 100), metadata);
}

#[test]
fn the_fullest_metadata_fits_the_broker() {
    let metadata = CommitMetadata { starts: u32::MAX, done: (0..2 * WINDOW_OFFSETS).collect() };
    assert!(metadata.encode(0).len() <= 1500);
}

#[test]
fn unreadable_metadata_is_empty() {
    for text in
        ["", "{", "hello", "{\"v\":2,\"s\":1,\"d\":\"\"}", "{\"v\":1,\"s\":1,\"d\":\"?\"}", "\u{fffd}"]
    {
        assert_eq!(CommitMetadata::decode(text.as_bytes(), 5), CommitMetadata::default(), "{text}");
    }
    let long = format!("{{\"v\":1,\"s\":0,\"d\":\"{}\"}}", BASE64.encode(vec![255; 2000]));
    assert_eq!(CommitMetadata::decode(long.as_bytes(), 0), CommitMetadata::default());
}

#[test]
fn a_slow_head_lets_the_rest_be_committed() {
    let mut tracker = PartitionTracker::resumed(10, b"");
    for offset in 10..14 {
        assert_eq!(tracker.deliver(offset), Delivered::New);
    }
    assert!(tracker.finish(11) && tracker.finish(13));
    let plan = tracker.plan().unwrap();
    assert_eq!((plan.base, &plan.covered), (10, &vec![11, 13]));
    tracker.confirm(&plan);
    assert_eq!(tracker.plan(), None);

    let mut next = PartitionTracker::resumed(plan.base, plan.metadata.as_bytes());
    let again: Vec<_> = (10..14).map(|offset| next.deliver(offset)).collect();
    use Delivered::{AlreadyDone, New};
    assert_eq!(again, [New, AlreadyDone, New, AlreadyDone]);
}

#[test]
fn what_was_read_back_is_kept_until_it_is_delivered() {
    let metadata = CommitMetadata { starts: 0, done: done(&[105, 110]) }.encode(100);
    let mut tracker = PartitionTracker::resumed(100, metadata.as_bytes());
    tracker.deliver(100);
    tracker.finish(100);
    let plan = tracker.plan().unwrap();
    assert_eq!(plan.base, 101);
    assert_eq!(CommitMetadata::decode(plan.metadata.as_bytes(), 101).done, done(&[105, 110]));
}

#[test]
fn an_idle_partition_follows_the_position() {
    let mut tracker = PartitionTracker::resumed(5, b"");
    tracker.deliver(5);
    tracker.finish(5);
    tracker.set_position(9);
    assert_eq!(tracker.plan().unwrap().base, 9);
    tracker.deliver(9);
    assert_eq!(tracker.base(), 9);
}

#[test]
fn a_fresh_partition_is_committed_where_it_begins() {
    let mut tracker = PartitionTracker::fresh(40);
    let plan = tracker.plan().unwrap();
    assert_eq!((plan.base, plan.covered.len()), (40, 0));
    assert!(plan.metadata.contains("\"s\":1"));
}

#[test]
fn starts_are_counted_until_there_is_progress() {
    let mut tracker = PartitionTracker::resumed(0, b"{\"v\":1,\"s\":2,\"d\":\"\"}");
    assert_eq!(tracker.crash_loop().count(), 3);
    let plan = tracker.plan().expect("the count has to be committed");
    assert!(plan.metadata.contains("\"s\":3") && !tracker.is_announced());
    tracker.confirm(&plan);
    assert!(tracker.is_announced());
    tracker.deliver(0);
    tracker.deliver(1);
    tracker.reach_end();
    tracker.finish(0);
    assert!(tracker.plan().unwrap().metadata.contains("\"s\":3"), "another may be to blame");
    tracker.finish(1);
    assert!(tracker.plan().unwrap().metadata.contains("\"s\":1"));
    tracker.crash_loop_mut().settle();
    assert!(tracker.plan().unwrap().metadata.contains("\"s\":0"));
}

#[test]
fn a_truncated_log_is_noticed() {
    let mut tracker = PartitionTracker::resumed(50, b"");
    assert_eq!(tracker.deliver(50), Delivered::New);
    assert_eq!(tracker.deliver(50), Delivered::Rewound);
    assert_eq!(tracker.deliver(3), Delivered::Rewound);
}

#[test]
fn the_window_fills_and_empties() {
    let mut tracker = PartitionTracker::resumed(0, b"");
    for offset in 0..WINDOW_RECORDS as i64 {
        assert!(!tracker.is_full());
        tracker.deliver(offset);
    }
    assert!(tracker.is_full() && !tracker.has_room());
    (0..1024).for_each(|offset| assert!(tracker.finish(offset)));
    let plan = tracker.plan().unwrap();
    tracker.confirm(&plan);
    assert!(tracker.has_room());
}

#[test]
fn a_record_beyond_the_window_waits_for_the_base() {
    let mut tracker = PartitionTracker::resumed(0, b"");
    tracker.deliver(0);
    tracker.deliver(20_000);
    assert!(tracker.is_full());
    tracker.finish(20_000);
    assert!(tracker.plan().is_none_or(|plan| plan.covered.is_empty()));
    tracker.finish(0);
    let plan = tracker.plan().unwrap();
    assert_eq!((plan.base, plan.covered), (20_001, vec![0, 20_000]));
}

#[derive(Clone, Debug)]
enum Step {
    /// Deliver the next offset after a gap of so many.
    Deliver(i64),
    /// Finish one of the pending records.
    Finish(prop::sample::Index),
    /// The position passes control records.
    Pass(i64),
    Commit,
    Abort,
    /// The process dies; a new one reads the last commit.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![9 => Just(0_i64), 1 => 1_i64..300].prop_map(Step::Deliver),
        6 => any::<prop::sample::Index>().prop_map(Step::Finish),
        1 => (0_i64..5).prop_map(Step::Pass),
        2 => Just(Step::Commit),
        1 => Just(Step::Abort),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #[test]
    fn metadata_round_trips(base in 0_i64..1 << 40, starts: u32, bits in prop::collection::btree_set(0..WINDOW_OFFSETS, 0..300)) {
        let metadata = CommitMetadata { starts, done: bits.into_iter().map(|bit| base + bit).collect() };
        prop_assert_eq!(CommitMetadata::decode(metadata.encode(base).as_bytes(), base), metadata);
    }

    #[test]
    fn any_bytes_decode(text in prop::collection::vec(any::<u8>(), 0..200), base: i64) {
        CommitMetadata::decode(&text, base);
    }

    /// Against a naive model: a log of offsets, the set that came to an end, and the last commit.
    #[test]
    fn commits_cover_what_ended_and_nothing_else(steps in prop::collection::vec(step(), 1..400)) {
        let mut log: Vec<i64> = Vec::new();
        let mut end = 0_i64;
        let mut read = 0_usize;
        let mut pending: Vec<i64> = Vec::new();
        let mut ended: BTreeSet<i64> = BTreeSet::new();
        let mut emitted: BTreeSet<i64> = BTreeSet::new();
        let mut commit = (0_i64, String::new());
        let mut tracker = PartitionTracker::resumed(0, b"");
        for step in steps {
            match step {
                Step::Deliver(gap) => {
                    if tracker.is_full() {
                        continue;
                    }
                    if read == log.len() {
                        log.push(end + gap);
                        end += gap + 1;
                    }
                    let offset = log[read];
                    read += 1;
                    match tracker.deliver(offset) {
                        Delivered::New => {
                            prop_assert!(!emitted.contains(&offset), "{} was committed and comes again", offset);
                            pending.push(offset);
                        }
                        Delivered::AlreadyDone => prop_assert!(emitted.contains(&offset)),
                        Delivered::Rewound => prop_assert!(false, "no rewind happened"),
                    }
                }
                Step::Finish(index) => if !pending.is_empty() {
                    let offset = pending.swap_remove(index.index(pending.len()));
                    prop_assert!(tracker.finish(offset));
                    prop_assert!(!tracker.finish(offset));
                    ended.insert(offset);
                },
                Step::Pass(markers) => if read == log.len() {
                    end += markers;
                    tracker.set_position(end);
                },
                Step::Commit => if let Some(plan) = tracker.plan() {
                    prop_assert!(plan.base >= commit.0, "the base went back");
                    prop_assert!(plan.metadata.len() <= 1500);
                    for offset in &plan.covered {
                        prop_assert!(ended.contains(offset));
                        prop_assert!(emitted.insert(*offset), "{} was emitted twice", offset);
                    }
                    tracker.confirm(&plan);
                    commit = (plan.base, plan.metadata);
                    let done = CommitMetadata::decode(commit.1.as_bytes(), commit.0).done;
                    let covered = |offset: i64| offset < commit.0 || done.contains(&offset);
                    for offset in &log {
                        prop_assert_eq!(covered(*offset), emitted.contains(offset), "offset {}", offset);
                    }
                },
                Step::Abort => if let Some(plan) = tracker.plan() {
                    tracker.retract(&plan);
                },
                Step::Restart => {
                    tracker = PartitionTracker::resumed(commit.0, commit.1.as_bytes());
                    pending.clear();
                    ended = emitted.clone();
                    read = log.partition_point(|offset| *offset < commit.0);
                }
            }
            prop_assert!(tracker.slots.len() <= WINDOW_RECORDS);
        }
    }
}
