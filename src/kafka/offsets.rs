//! Which offsets of one partition are finished, and how that is written into an offset commit. Pure.
//!
//! Work finishes out of order, but Kafka stores one offset a partition. So the commit says more than
//! an offset: its metadata holds a bitmap of what is finished beyond it (after Confluent's Parallel
//! Consumer), and the next owner of the partition skips those. One slow object then delays neither
//! the outputs behind it nor makes them repeat after a restart.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};

/// Records of one partition that may be unfinished or finished out of order at once.
pub const WINDOW_RECORDS: usize = 2048;
/// Offsets they may span. The bitmap takes at most 1024 bytes, 1368 in base64: well below the 4096
/// that brokers keep of a commit's metadata (`offset.metadata.max.bytes`).
pub const WINDOW_OFFSETS: i64 = 8192;
const METADATA_VERSION: u32 = 1;

/// What the metadata of an offset commit says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitMetadata {
    /// Starts without progress since, counted to notice a record that kills every process.
    pub starts: u32,
    /// Finished offsets beyond the committed one.
    pub done: BTreeSet<i64>,
}

#[derive(Serialize, Deserialize)]
struct WireMetadata {
    v: u32,
    s: u32,
    d: String,
}

impl CommitMetadata {
    /// `{"v":1,"s":starts,"d":"base64"}`; bit `i` of the decoded bytes, least significant first, is
    /// offset `base + i`. Offsets outside the window are left out.
    pub fn encode(&self, base: i64) -> String {
        let mut bitmap = Vec::new();
        for offset in self.done.range(base..base.saturating_add(WINDOW_OFFSETS)) {
            let bit = (offset - base) as usize;
            if bitmap.len() <= bit / 8 {
                bitmap.resize(bit / 8 + 1, 0_u8);
            }
            bitmap[bit / 8] |= 1 << (bit % 8);
        }
        format!("{{\"v\":{METADATA_VERSION},\"s\":{},\"d\":\"{}\"}}", self.starts, BASE64.encode(bitmap))
    }

    /// Reads [`Self::encode`]'s text. What can't be read counts as empty: then finished records are
    /// processed again, under the same ids.
    pub fn decode(text: &[u8], base: i64) -> Self {
        let readable =
            serde_json::from_slice::<WireMetadata>(text).ok().filter(|wire| wire.v == METADATA_VERSION);
        let Some(wire) = readable else { return Self::default() };
        let bitmap = BASE64.decode(&wire.d).ok().filter(|bitmap| bitmap.len() as i64 <= WINDOW_OFFSETS / 8);
        let Some(bitmap) = bitmap else { return Self::default() };
        let done = (0_i64..)
            .zip(bitmap.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)))
            .filter(|(_, set)| *set)
            .map(|(index, _)| base.saturating_add(index))
            .collect();
        Self { starts: wire.s, done }
    }
}

/// What became of a record that was handed to [`PartitionTracker::deliver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// To be processed.
    New,
    /// Finished under an earlier assignment: not to be processed again.
    AlreadyDone,
    /// At or below one that was delivered before: the log was truncated, and this tracker is void.
    Rewound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pending,
    /// Finished, not in a commit yet.
    Done,
    /// In a commit whose outcome is open.
    Sent,
    Committed,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    offset: i64,
    state: State,
}

/// An offset commit to be tried, and the records it covers for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The offset to commit: the first that is unfinished.
    pub base: i64,
    pub metadata: String,
    /// Offsets that become committed with it.
    pub covered: Vec<i64>,
}

/// The delivered records of one partition under one assignment.
///
/// A queue of delivered offsets in delivery order, not arithmetic: compaction, transaction markers
/// and aborted records leave no holes to wait for.
#[derive(Debug, Default)]
pub struct PartitionTracker {
    slots: VecDeque<Slot>,
    /// One past the last delivered offset, or where reading began.
    next: i64,
    /// The consumer's position: everything below it was delivered or will never be.
    position: i64,
    /// Read from the last commit: finished, and not delivered again yet.
    skip: BTreeSet<i64>,
    starts: u32,
    committed: Option<(i64, String)>,
}

impl PartitionTracker {
    /// A tracker for a group that has nothing committed here and begins at `offset`.
    pub fn fresh(offset: i64) -> Self {
        Self { next: offset, starts: 1, ..Self::default() }
    }

    /// A tracker that goes on from a commit.
    pub fn resumed(base: i64, metadata: &[u8]) -> Self {
        let read = CommitMetadata::decode(metadata, base);
        Self {
            next: base,
            skip: read.done,
            starts: read.starts.saturating_add(1),
            committed: Some((base, String::from_utf8_lossy(metadata).into_owned())),
            ..Self::default()
        }
    }

    /// A tracker that begins at `offset` whatever was committed: the log was truncated.
    pub fn restarted(offset: i64) -> Self {
        Self { next: offset, ..Self::default() }
    }

    /// Takes note of a record that the consumer returned.
    pub fn deliver(&mut self, offset: i64) -> Delivered {
        if offset < self.next {
            return Delivered::Rewound;
        }
        self.next = offset + 1;
        // Whatever lies below and was not delivered has been compacted away.
        self.skip = self.skip.split_off(&offset);
        let already = self.skip.remove(&offset);
        let state = if already { State::Committed } else { State::Pending };
        self.slots.push_back(Slot { offset, state });
        if already {
            self.pop();
            return Delivered::AlreadyDone;
        }
        Delivered::New
    }

    /// Takes note of the consumer's position, which passes control records that are never delivered.
    /// Must be read after every record below it has been delivered here.
    pub fn set_position(&mut self, position: i64) {
        self.position = position;
    }

    /// All items of the record came to an end. `false` if it isn't pending.
    pub fn finish(&mut self, offset: i64) -> bool {
        match self.slot_mut(offset) {
            Some(slot) if slot.state == State::Pending => {
                slot.state = State::Done;
                self.starts = 0;
                true
            }
            _ => false,
        }
    }

    /// The partition is given up in good order, which is progress enough.
    pub fn settle(&mut self) {
        self.starts = 0;
    }

    /// Starts in a row without progress, this one included.
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// Up to where records were delivered or will never be.
    pub fn position(&self) -> i64 {
        self.position.max(self.next)
    }

    /// The first unfinished offset: what would be committed now.
    pub fn base(&self) -> i64 {
        match self.slots.iter().find(|slot| slot.state == State::Pending) {
            Some(pending) => pending.offset,
            None => self.next.max(self.position),
        }
    }

    /// Finished offsets beyond the base.
    pub fn done_ahead(&self) -> usize {
        let base = self.base();
        let ahead = self.slots.iter().filter(|slot| slot.offset > base && slot.state != State::Pending);
        self.skip.range(base..).count() + ahead.count()
    }

    /// Whether no more should be delivered for now.
    pub fn is_full(&self) -> bool {
        self.slots.len() >= WINDOW_RECORDS || self.span() >= WINDOW_OFFSETS
    }

    /// Whether half the window is free again.
    pub fn has_room(&self) -> bool {
        self.slots.len() <= WINDOW_RECORDS / 2 && self.span() <= WINDOW_OFFSETS / 2
    }

    fn span(&self) -> i64 {
        self.next - self.base()
    }

    /// The next commit, or `None` if the last one says it all. What it covers counts as sent until
    /// [`Self::confirm`] or [`Self::retract`].
    pub fn plan(&mut self) -> Option<Plan> {
        let base = self.base();
        let within = |offset: i64| offset - base < WINDOW_OFFSETS;
        let ahead = self.slots.iter().filter(|slot| slot.offset > base && slot.state != State::Pending);
        let done: BTreeSet<i64> = ahead.map(|slot| slot.offset).chain(self.skip.iter().copied()).collect();
        let metadata = CommitMetadata { starts: self.starts, done }.encode(base);
        let mut covered = Vec::new();
        for slot in self.slots.iter_mut().filter(|slot| slot.state == State::Done && within(slot.offset)) {
            slot.state = State::Sent;
            covered.push(slot.offset);
        }
        let unchanged =
            self.committed.as_ref().is_some_and(|(offset, text)| *offset == base && *text == metadata);
        (!covered.is_empty() || !unchanged).then_some(Plan { base, metadata, covered })
    }

    /// The commit happened.
    pub fn confirm(&mut self, plan: &Plan) {
        self.resolve(plan, State::Committed);
        self.committed = Some((plan.base, plan.metadata.clone()));
        self.pop();
    }

    /// The commit certainly did not happen.
    pub fn retract(&mut self, plan: &Plan) {
        self.resolve(plan, State::Done);
    }

    fn resolve(&mut self, plan: &Plan, outcome: State) {
        for offset in &plan.covered {
            if let Some(slot) = self.slot_mut(*offset)
                && slot.state == State::Sent
            {
                slot.state = outcome;
            }
        }
    }

    fn pop(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.state == State::Committed) {
            self.slots.pop_front();
        }
    }

    fn slot_mut(&mut self, offset: i64) -> Option<&mut Slot> {
        let index = self.slots.binary_search_by_key(&offset, |slot| slot.offset).ok()?;
        self.slots.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(tracker.starts(), 3);
        let plan = tracker.plan().expect("the count has to be committed");
        assert!(plan.metadata.contains("\"s\":3"));
        tracker.confirm(&plan);
        tracker.deliver(0);
        tracker.finish(0);
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
}
