//! The scores of the contents that were seen last, within bounds.

use crate::{object::ContentKey, store::KnownAnswer};
use lru::LruCache;
use std::{mem::size_of_val, num::NonZeroUsize, sync::Arc};

/// What an entry takes beside what its answer holds: key, links, table and allocations.
const OVERHEAD: usize = 256;

/// A content's answer with what else its output says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    pub answer: Arc<KnownAnswer>,
    /// Width and height of the image, where they are known.
    pub pixels: Option<(u32, u32)>,
}

impl Known {
    fn bytes(&self) -> usize {
        let KnownAnswer { scores, distributions, text } = &*self.answer;
        let bins: usize = distributions.iter().map(|bins| size_of_val(bins.as_slice()) + OVERHEAD / 8).sum();
        OVERHEAD + size_of_val(scores.as_slice()) + bins + text.as_ref().map_or(0, String::len)
    }
}

/// Bounded by entries and by bytes; what was asked for least lately goes first.
pub(super) struct ContentCache {
    entries: LruCache<ContentKey, Known>,
    bytes: usize,
    max_bytes: usize,
}

impl ContentCache {
    pub fn new(max_entries: NonZeroUsize, max_bytes: usize) -> Self {
        // Grows as it is filled: `LruCache::new` would take the room for all of them now.
        let mut entries = LruCache::unbounded();
        entries.resize(max_entries);
        Self { entries, bytes: 0, max_bytes }
    }

    pub fn get(&mut self, key: &ContentKey) -> Option<Known> {
        self.entries.get(key).cloned()
    }

    pub fn insert(&mut self, key: ContentKey, known: Known) {
        let bytes = known.bytes();
        if bytes > self.max_bytes {
            return;
        }
        self.bytes += bytes;
        if let Some((_, gone)) = self.entries.push(key, known) {
            self.bytes -= gone.bytes();
        }
        while self.bytes > self.max_bytes
            && let Some((_, gone)) = self.entries.pop_lru()
        {
            self.bytes -= gone.bytes();
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{object::ContentDigest, score::ModelVersion};
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn key(number: u8) -> ContentKey {
        let version =
            ModelVersion { model: "m".into(), version: (number % 2).to_string(), preprocess_revision: 1 };
        ContentKey { content: ContentDigest::of(&[number / 2]), version: Arc::new(version) }
    }

    fn known(score: f64, text: usize) -> Known {
        let answer = KnownAnswer {
            scores: vec![score],
            distributions: vec![vec![0.5; 10]],
            text: Some("x".repeat(text)),
        };
        Known { answer: Arc::new(answer), pixels: Some((3, 2)) }
    }

    #[test]
    fn one_content_has_a_score_for_each_version() {
        let mut cache = ContentCache::new(NonZeroUsize::new(8).unwrap(), 1 << 20);
        cache.insert(key(0), known(1.0, 0));
        assert_eq!(cache.get(&key(0)).unwrap().answer.scores, [1.0]);
        assert_eq!(cache.get(&key(1)), None, "the same bytes, another version");
        let again = ContentKey { version: Arc::new((*key(0).version).clone()), ..key(0) };
        assert!(cache.get(&again).is_some(), "equal versions, however often they were loaded");
    }

    #[test]
    fn the_least_lately_asked_for_goes_first() {
        let mut cache = ContentCache::new(NonZeroUsize::new(2).unwrap(), 1 << 20);
        cache.insert(key(0), known(0.0, 0));
        cache.insert(key(1), known(1.0, 0));
        assert!(cache.get(&key(0)).is_some());
        cache.insert(key(2), known(2.0, 0));
        assert_eq!((cache.len(), cache.get(&key(1))), (2, None));
        assert!(cache.get(&key(0)).is_some() && cache.get(&key(2)).is_some());
    }

    proptest! {
        #[test]
        fn bounds_hold_and_what_is_found_is_what_was_put_last(
            steps in proptest::collection::vec((any::<u8>(), 0_usize..2_000, any::<bool>()), 0..200),
            max_entries in 1_usize..12,
            max_bytes in 0_usize..6_000,
        ) {
            let mut cache = ContentCache::new(NonZeroUsize::new(max_entries).unwrap(), max_bytes);
            let mut last = HashMap::new();
            for (step, (number, text, insert)) in steps.into_iter().enumerate() {
                let number = number % 24;
                if insert {
                    cache.insert(key(number), known(step as f64, text));
                    last.insert(number, (step as f64, text));
                } else if let Some(found) = cache.get(&key(number)) {
                    let (score, text) = last[&number];
                    // An answer too large to be kept leaves the one before it.
                    prop_assert!(found == known(score, text) || known(score, text).bytes() > max_bytes);
                }
                prop_assert!(cache.len() <= max_entries && cache.bytes() <= max_bytes);
                let held: usize = cache.entries.iter().map(|(_, known)| known.bytes()).sum();
                prop_assert_eq!(held, cache.bytes());
            }
        }
    }
}
