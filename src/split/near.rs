//! All hashes within a few bits of one, among millions.
//!
//! Multi-index hashing (Norouzi, Punjani and Fleet 2012): of four 16-bit parts of two hashes that differ
//! in at most 8 bits, the first differs in at most 2 or another in at most 1, since otherwise they differ
//! in 3 + 2 + 2 + 2. So 188 buckets hold every candidate, a few thousand of a million random hashes. A
//! BK-tree has to visit most of its nodes at this radius.

/// The most bits in which the hashes of near photos differ.
pub const RADIUS: u32 = 8;

const PARTS: usize = 4;
const BUCKETS: usize = 1 << 16;

/// Hashes, each with a value of its own; a hash comes once for each distinct value.
#[derive(Clone, Debug)]
pub struct NearIndex<T> {
    entries: Vec<(u64, T)>,
    /// For each part, its values' entries.
    buckets: [Vec<Vec<u32>>; PARTS],
}

impl<T: Copy + PartialEq> Default for NearIndex<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), buckets: std::array::from_fn(|_| vec![Vec::new(); BUCKETS]) }
    }
}

impl<T: Copy + PartialEq> NearIndex<T> {
    /// Adds a hash. One that is there with an equal value stays as it is, so that a million blank photos
    /// are one entry.
    pub fn insert(&mut self, hash: u64, value: T) {
        let known = &self.buckets[0][part(hash, 0)];
        if known.iter().any(|&entry| self.entries[entry as usize] == (hash, value)) {
            return;
        }
        let entry = self.entries.len() as u32;
        self.entries.push((hash, value));
        for (index, buckets) in self.buckets.iter_mut().enumerate() {
            buckets[part(hash, index)].push(entry);
        }
    }

    /// Calls `found` with the value of every hash within [`RADIUS`] of `hash`, some more than once.
    pub fn near(&self, hash: u64, mut found: impl FnMut(T)) {
        for (index, buckets) in self.buckets.iter().enumerate() {
            let value = part(hash, index);
            let mut visit = |value: usize| {
                for &entry in &buckets[value] {
                    let (near, of_near) = self.entries[entry as usize];
                    if (near ^ hash).count_ones() <= RADIUS {
                        found(of_near);
                    }
                }
            };
            visit(value);
            for first in 0..16 {
                visit(value ^ 1 << first);
                if index == 0 {
                    (0..first).for_each(|second| visit(value ^ 1 << first ^ 1 << second));
                }
            }
        }
    }

    /// How many hashes it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn part(hash: u64, index: usize) -> usize {
    (hash >> (16 * index)) as usize & (BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Hashes around a few centres, so that many pairs are about as far apart as the radius.
    fn clustered() -> impl Strategy<Value = Vec<u64>> {
        let around = |centre: u64| {
            proptest::collection::vec(0_u32..64, 0..14)
                .prop_map(move |bits| bits.into_iter().fold(centre, |hash, bit| hash ^ 1 << bit))
        };
        let one = prop_oneof![around(0), around(u64::MAX), around(0x0123_4567_89ab_cdef)];
        proptest::collection::vec(one, 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn what_is_found_is_what_a_scan_finds(hashes in clustered(), sought in clustered()) {
            let mut index = NearIndex::default();
            for (value, &hash) in hashes.iter().enumerate() {
                index.insert(hash, value);
            }
            for hash in sought {
                let mut found = BTreeSet::new();
                index.near(hash, |value| {
                    found.insert(value);
                });
                let expected = (0..hashes.len()).filter(|&value| (hashes[value] ^ hash).count_ones() <= RADIUS);
                prop_assert_eq!(found, expected.collect::<BTreeSet<_>>());
            }
        }
    }

    #[test]
    fn every_way_to_spread_eight_bits_over_the_parts_is_found() {
        let mut index = NearIndex::default();
        index.insert(0, ());
        for spread in 0..9_u32.pow(4) {
            let counts = [0, 1, 2, 3].map(|part| spread / 9_u32.pow(part) % 9);
            if counts.iter().sum::<u32>() > RADIUS {
                continue;
            }
            let hash = counts
                .iter()
                .enumerate()
                .fold(0, |hash, (part, &count)| hash | ((1 << count) - 1) << (16 * part));
            let mut found = false;
            index.near(hash, |()| found = true);
            assert!(found, "{counts:?}");
        }
    }

    #[test]
    fn equal_entries_are_one() {
        let mut index = NearIndex::default();
        for value in [1, 1, 2, 1] {
            index.insert(42, value);
        }
        assert_eq!(index.len(), 2);
    }
}
