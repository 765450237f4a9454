//! Which offsets of one partition are finished, and how that is written into an offset commit. Pure.
//!
//! Work finishes out of order, but Kafka stores one offset a partition. So the commit says more than
//! an offset: its metadata holds a bitmap of what is finished beyond it (after Confluent's Parallel
//! Consumer), and the next owner of the partition skips those. One slow object then delays neither
//! the outputs behind it nor makes them repeat after a restart.

use super::crash_loop::CrashLoop;
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
    /// Holdings in a row that nothing came of: see [`CrashLoop::count`].
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
#[derive(Debug)]
pub struct PartitionTracker {
    slots: VecDeque<Slot>,
    /// One past the last delivered offset, or where reading began.
    next: i64,
    /// The consumer's position: everything below it was delivered or will never be.
    position: i64,
    /// Read from the last commit: finished, and not delivered again yet.
    skip: BTreeSet<i64>,
    crash_loop: CrashLoop,
    /// This holding is counted in a commit.
    announced: bool,
    committed: Option<(i64, String)>,
}

impl PartitionTracker {
    /// A tracker for a group that has nothing committed here and begins at `offset`.
    pub fn fresh(offset: i64) -> Self {
        Self::begun(offset, CrashLoop::fresh(offset))
    }

    /// A tracker that goes on from a commit.
    pub fn resumed(base: i64, metadata: &[u8]) -> Self {
        let read = CommitMetadata::decode(metadata, base);
        Self {
            skip: read.done,
            committed: Some((base, String::from_utf8_lossy(metadata).into_owned())),
            ..Self::begun(base, CrashLoop::resumed(base, read.starts))
        }
    }

    /// A tracker that begins at `offset` whatever was committed: the log was truncated.
    pub fn restarted(offset: i64) -> Self {
        // The holding goes on, and has been counted.
        Self { announced: true, ..Self::begun(offset, CrashLoop::fresh(offset)) }
    }

    fn begun(next: i64, crash_loop: CrashLoop) -> Self {
        Self {
            slots: VecDeque::new(),
            next,
            position: 0,
            skip: BTreeSet::new(),
            crash_loop,
            announced: false,
            committed: None,
        }
    }

    /// Takes note of a record that the consumer returned.
    pub fn deliver(&mut self, offset: i64) -> Delivered {
        if offset < self.next {
            return Delivered::Rewound;
        }
        self.next = offset + 1;
        self.crash_loop.deliver(offset);
        // Whatever lies below and was not delivered has been compacted away.
        self.skip = self.skip.split_off(&offset);
        let already = self.skip.remove(&offset);
        let state = if already { State::Committed } else { State::Pending };
        self.slots.push_back(Slot { offset, state });
        if already {
            self.pop();
            self.advance();
            return Delivered::AlreadyDone;
        }
        Delivered::New
    }

    /// Takes note of the consumer's position, which passes control records that are never delivered.
    /// Must be read after every record below it has been delivered here.
    pub fn set_position(&mut self, position: i64) {
        self.position = position;
    }

    /// Everything that the log holds has been delivered. To be told after [`Self::set_position`].
    pub fn reach_end(&mut self) {
        self.crash_loop.reach_end();
        self.advance();
    }

    /// Lets the crash loop know how far the partition is.
    fn advance(&mut self) {
        if self.crash_loop.is_open() {
            self.crash_loop.advance(self.base());
        }
    }

    /// All items of the record came to an end. `false` if it isn't pending.
    pub fn finish(&mut self, offset: i64) -> bool {
        match self.slot_mut(offset) {
            Some(slot) if slot.state == State::Pending => {
                slot.state = State::Done;
                self.advance();
                true
            }
            _ => false,
        }
    }

    /// How often the partition was held without anything coming of it.
    pub fn crash_loop(&self) -> &CrashLoop {
        &self.crash_loop
    }

    /// As [`Self::crash_loop`], to say how this holding ends.
    pub fn crash_loop_mut(&mut self) -> &mut CrashLoop {
        &mut self.crash_loop
    }

    /// Whether a commit counts this holding. Until then no record may be worked on: one that kills
    /// the process would go unnoticed.
    pub fn is_announced(&self) -> bool {
        self.announced
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
        let metadata = CommitMetadata { starts: self.crash_loop.count(), done }.encode(base);
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
        self.announced = true;
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
mod tests;
