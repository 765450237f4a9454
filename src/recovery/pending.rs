//! Which dead letters of one partition are still to be dealt with, and how an offset commit says so.
//! Pure.
//!
//! A run with a filter takes letters from the middle, so one offset cannot say what was put back. The
//! commit is the first letter that was left; its metadata holds the lengths of the runs behind it, in
//! turn of offsets that are left and of offsets that are done. Everything beyond the last run is left.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;

/// What brokers keep of a commit's metadata by default (`offset.metadata.max.bytes`) is 4096 bytes.
const METADATA_LIMIT: usize = 4_000;
const PREFIX: &str = "redrive1:";

/// What one partition's letters came to so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Everything below is done.
    base: i64,
    /// Done stretches above the base, `from..to`, in order and apart from one another.
    done: Vec<(i64, i64)>,
}

impl Pending {
    /// Everything from `offset` on is left.
    pub fn from_offset(offset: i64) -> Self {
        Self { base: offset, done: Vec::new() }
    }

    /// What is left of a partition that holds offsets from `low` to below `high`: retention may have
    /// deleted what was left, and a topic that was made anew begins anew.
    pub fn within(mut self, low: i64, high: i64) -> Self {
        if self.base > high {
            return Self::from_offset(low);
        }
        self.finish(self.base, low);
        self
    }

    /// Reads a commit; `None` if another release wrote it in another form.
    pub fn decode(base: i64, metadata: &[u8]) -> Option<Self> {
        if metadata.is_empty() {
            return Some(Self::from_offset(base));
        }
        let text = std::str::from_utf8(metadata).ok()?.strip_prefix(PREFIX)?;
        let bytes = BASE64.decode(text).ok()?;
        let mut lengths = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            lengths.push(i64::try_from(read_varint(&mut rest)?).ok()?);
        }
        let (mut at, mut done) = (base, Vec::with_capacity(lengths.len() / 2));
        for pair in lengths.chunks(2) {
            let [left, length] = *pair else { return None };
            let from = at.checked_add(left)?;
            at = from.checked_add(length)?;
            if left == 0 || length == 0 {
                return None;
            }
            done.push((from, at));
        }
        Some(Self { base, done })
    }

    /// The offset to commit, and its metadata.
    pub fn encode(&self) -> (i64, String) {
        if self.done.is_empty() {
            return (self.base, String::new());
        }
        let mut bytes = Vec::new();
        let mut at = self.base;
        for (from, to) in &self.done {
            write_varint(&mut bytes, (from - at).unsigned_abs());
            write_varint(&mut bytes, (to - from).unsigned_abs());
            at = *to;
        }
        (self.base, format!("{PREFIX}{}", BASE64.encode(bytes)))
    }

    /// Whether the commit fits what brokers keep.
    pub fn fits(&self) -> bool {
        // A pair of short runs takes two bytes; only beyond a thousand pairs is it worth counting.
        self.done.len() < METADATA_LIMIT / 30 || self.encode().1.len() <= METADATA_LIMIT
    }

    /// The first offset that is left.
    pub fn base(&self) -> i64 {
        self.base
    }

    /// Whether an offset is done.
    pub fn is_done(&self, offset: i64) -> bool {
        offset < self.base || self.done.iter().any(|(from, to)| (*from..*to).contains(&offset))
    }

    /// The offsets from `from` to below `to` are done: put back, or no letters at all.
    pub fn finish(&mut self, from: i64, to: i64) {
        if from >= to {
            return;
        }
        let mut merged = (from, to);
        self.done.retain(|(from, to)| {
            let apart = *to < merged.0 || *from > merged.1;
            if !apart {
                merged = (merged.0.min(*from), merged.1.max(*to));
            }
            apart
        });
        let place = self.done.partition_point(|(from, _)| *from < merged.0);
        self.done.insert(place, merged);
        while let Some((from, to)) = self.done.first().copied()
            && from <= self.base
        {
            self.base = self.base.max(to);
            self.done.remove(0);
        }
    }
}

/// Seven bits a byte, the low ones first; the top bit says that more follow (LEB128).
fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_base_moves_over_what_is_done() {
        let mut pending = Pending::from_offset(10);
        pending.finish(12, 13);
        assert_eq!(pending.base(), 10);
        pending.finish(10, 11);
        assert_eq!(pending.base(), 11);
        pending.finish(11, 12);
        assert_eq!(pending.encode(), (13, String::new()));
        pending.finish(3, 9);
        assert_eq!(pending.encode(), (13, String::new()));
    }

    #[test]
    fn what_retention_deleted_is_done_and_a_new_topic_begins_anew() {
        let mut pending = Pending::from_offset(10);
        pending.finish(15, 18);
        assert_eq!(pending.clone().within(16, 40), Pending::from_offset(18));
        assert_eq!(pending.clone().within(0, 40), pending);
        assert_eq!(pending.within(0, 5), Pending::from_offset(0));
    }

    #[test]
    fn a_commit_of_another_form_is_not_guessed_at() {
        assert_eq!(Pending::decode(7, b""), Some(Pending::from_offset(7)));
        for metadata in [&b"{}"[..], b"\xff", b"redrive2:AQE", b"redrive1:?", b"redrive1:AQ", b"redrive1:AAE"]
        {
            assert_eq!(Pending::decode(7, metadata), None, "{metadata:?}");
        }
    }

    #[test]
    fn thousands_of_scattered_letters_fit_and_more_are_noticed() {
        let mut pending = Pending::from_offset(0);
        for letter in 0..1_400 {
            pending.finish(letter * 100 + 1, letter * 100 + 2);
            assert!(pending.fits());
        }
        for letter in 1_400..2_000 {
            pending.finish(letter * 100 + 1, letter * 100 + 2);
        }
        assert!(!pending.fits());
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_and_survives_its_commit(
            base in 0_i64..1_000_000_000,
            runs in proptest::collection::vec((0_i64..400, 0_i64..12), 0..60),
        ) {
            let mut pending = Pending::from_offset(base);
            let mut set = BTreeSet::new();
            for (from, length) in runs {
                pending.finish(base + from, base + from + length);
                set.extend(base + from..base + from + length);
                let (offset, metadata) = pending.encode();
                prop_assert_eq!(&Pending::decode(offset, metadata.as_bytes()), &Some(pending.clone()));
            }
            for offset in base..base + 420 {
                prop_assert_eq!(pending.is_done(offset), set.contains(&offset), "{}", offset);
            }
            prop_assert!(!pending.is_done(pending.base()));
        }

        #[test]
        fn no_metadata_panics(base in any::<i64>(), bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            Pending::decode(base, &bytes);
            let text = format!("{PREFIX}{}", BASE64.encode(&bytes));
            if let Some(pending) = Pending::decode(base, text.as_bytes()) {
                let (offset, metadata) = pending.encode();
                prop_assert_eq!(Pending::decode(offset, metadata.as_bytes()), Some(pending));
            }
        }
    }
}
