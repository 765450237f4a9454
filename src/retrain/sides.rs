//! Which side each photo is on, kept in Postgres for ever.

use super::error::RetrainError;
use crate::{
    labels::LabelledObject,
    split::{Assignment, ContentHash, Fingerprint, Side, SplitSettings, Splitter},
    store::{PhotoSide, RunError, RunLease, Store},
};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Rows that are read or written at once.
const PAGE: u32 = 5_000;

/// Every photo's side, and the new ones that are not stored yet.
pub struct Sides {
    splitter: Splitter,
    split: SplitSettings,
    gold_share: f64,
    known: HashMap<ContentHash, Placed>,
    new: Vec<PhotoSide>,
}

/// Where a photo belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub assignment: Assignment,
    /// Whether it is held out for the gold set.
    pub gold: bool,
}

impl Sides {
    /// Without any photo yet. Of held-out photos, `gold_share` are for the gold set.
    pub fn new(split: &SplitSettings, gold_share: f64) -> Self {
        Self {
            splitter: Splitter::new(split.clone()),
            split: split.clone(),
            gold_share,
            known: HashMap::new(),
            new: Vec::new(),
        }
    }

    /// Those of every photo that was ever assigned.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn load(store: &Store, split: &SplitSettings, gold_share: f64) -> Result<Self, RetrainError> {
        let mut sides = Self::new(split, gold_share);
        let mut after = 0;
        loop {
            let page = store.photo_sides(after, PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(sides) };
            after = *last;
            for (_, side) in &page {
                sides.splitter.restore(&side.member());
                let placed = Placed { assignment: side.assignment, gold: side.gold };
                sides.known.insert(side.content, placed);
            }
        }
    }

    /// Where a photo is already.
    pub fn known(&self, content: &ContentHash) -> Option<Placed> {
        self.known.get(content).copied()
    }

    /// The place of a photo, for ever.
    pub fn place(&mut self, content: ContentHash, fingerprint: Fingerprint) -> Placed {
        if let Some(known) = self.known(&content) {
            return known;
        }
        let assignment = self.splitter.assign(content, Some(&fingerprint));
        let gold = assignment.side == Side::Holdout
            // Near-copies are gold together, whatever the share is by now.
            && self.known(&assignment.group).map_or_else(|| self.is_gold(&assignment.group), |founder| founder.gold);
        self.note(content, fingerprint, Placed { assignment, gold })
    }

    /// Holds a photo out for the gold set, unless it, or one that it is near to, has been on the other side.
    pub fn hold_for_gold(&mut self, content: ContentHash, fingerprint: Fingerprint) -> Placed {
        if let Some(known) = self.known(&content) {
            return known;
        }
        if self.splitter.knows(&content, Some(&fingerprint)) {
            let assignment = self.splitter.assign(content, Some(&fingerprint));
            let gold = assignment.side == Side::Holdout;
            return self.note(content, fingerprint, Placed { assignment, gold });
        }
        let assignment = Assignment { group: content, side: Side::Holdout };
        let side = PhotoSide { content, fingerprint, assignment, gold: true };
        self.splitter.restore(&side.member());
        self.note(content, fingerprint, Placed { assignment, gold: true })
    }

    /// Stores what is new, and which photo each object holds.
    ///
    /// # Errors
    /// [`RunError::Lost`], and those of the store; it may be repeated.
    pub async fn store(
        &mut self,
        store: &Store,
        lease: &RunLease,
        contents: &[(&LabelledObject, ContentHash)],
    ) -> Result<(), RunError> {
        for page in self.new.chunks(PAGE as usize) {
            store.write_sides(lease, page, &[]).await?;
        }
        self.new.clear();
        for page in contents.chunks(PAGE as usize) {
            store.write_sides(lease, &[], page).await?;
        }
        Ok(())
    }

    fn note(&mut self, content: ContentHash, fingerprint: Fingerprint, placed: Placed) -> Placed {
        let Placed { assignment, gold } = placed;
        self.known.insert(content, placed);
        self.new.push(PhotoSide { content, fingerprint, assignment, gold });
        placed
    }

    /// Whether a group that is held out is for the gold set.
    fn is_gold(&self, group: &ContentHash) -> bool {
        let digest = Sha256::new_with_prefix("gold").chain_update(&self.split.salt).chain_update(group.0);
        let number =
            digest.finalize().iter().take(4).fold(0_u32, |number, &byte| number << 8 | u32::from(byte));
        f64::from(number) < self.gold_share * 2_f64.powi(32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::fingerprint::HASHES;
    use proptest::prelude::*;
    use std::array;

    /// A photo that looks like those of the same `look` alone.
    fn photo(number: u64, look: u64) -> (ContentHash, Fingerprint) {
        let of_look = |index: usize| {
            let digest = Sha256::digest([look.to_le_bytes(), (index as u64).to_le_bytes()].concat());
            digest.iter().take(8).fold(0_u64, |hash, &byte| hash << 8 | u64::from(byte))
        };
        let mut hashes: [u64; HASHES] = array::from_fn(of_look);
        hashes[0] ^= 1 << (number % 64);
        (ContentHash::of(&number.to_le_bytes()), Fingerprint::from_hashes(hashes))
    }

    fn sides(holdout: f64, gold_share: f64) -> Sides {
        Sides::new(&SplitSettings { holdout, ..SplitSettings::default() }, gold_share)
    }

    #[test]
    fn a_share_of_the_held_out_photos_is_gold() {
        let mut sides = sides(0.5, 0.3);
        let placed: Vec<Placed> = (0..4_000)
            .map(|number| photo(number, number))
            .map(|(content, fingerprint)| sides.place(content, fingerprint))
            .collect();
        let held_out = placed.iter().filter(|placed| placed.assignment.side == Side::Holdout).count();
        let gold = placed.iter().filter(|placed| placed.gold).count();
        assert!((1_850..2_150).contains(&held_out) && (500..700).contains(&gold), "{held_out} {gold}");
        assert!(placed.iter().all(|placed| !placed.gold || placed.assignment.side == Side::Holdout));
        assert_eq!(sides.new.len(), 4_000);
    }

    #[test]
    fn a_gold_photo_that_was_learned_from_is_none_any_more() {
        let mut sides = sides(0.0, 0.0);
        let (content, fingerprint) = photo(1, 7);
        assert_eq!(sides.place(content, fingerprint).assignment.side, Side::Training);
        let (copy, near) = photo(2, 7);
        for (content, fingerprint) in [(content, fingerprint), (copy, near)] {
            let placed = sides.hold_for_gold(content, fingerprint);
            assert!(!placed.gold && placed.assignment.side == Side::Training, "{placed:?}");
        }
        // One that is new holds its later copies out, although nothing is by itself.
        let (content, fingerprint) = photo(3, 8);
        assert!(sides.hold_for_gold(content, fingerprint).gold);
        let (copy, near) = photo(4, 8);
        let placed = sides.place(copy, near);
        assert!(placed.gold && placed.assignment.side == Side::Holdout, "{placed:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn near_photos_are_on_one_side_and_of_one_set_for_ever(
            photos in proptest::collection::vec((0_u64..200, 0_u64..12, any::<bool>()), 1..60),
            cut in 0_usize..60,
        ) {
            let mut sides = sides(0.4, 0.5);
            let mut by_look: HashMap<u64, Placed> = HashMap::new();
            let mut earlier: HashMap<ContentHash, Placed> = HashMap::new();
            for (index, (number, look, gold)) in photos.into_iter().enumerate() {
                if index == cut {
                    // As after a restart, from what was stored, with other settings.
                    let mut again = super::Sides::new(
                        &SplitSettings { holdout: 0.9, salt: "other".into() }, 0.1,
                    );
                    for side in &sides.new {
                        again.splitter.restore(&side.member());
                        let placed = Placed { assignment: side.assignment, gold: side.gold };
                        again.known.insert(side.content, placed);
                        again.new.push(side.clone());
                    }
                    sides = again;
                }
                let (content, fingerprint) = photo(number * 12 + look, look);
                let placed = match gold {
                    true => sides.hold_for_gold(content, fingerprint),
                    false => sides.place(content, fingerprint),
                };
                let first = by_look.entry(look).or_insert(placed);
                prop_assert_eq!(first.assignment, placed.assignment);
                prop_assert!(placed.assignment.side == Side::Holdout || !placed.gold);
                let before = earlier.entry(content).or_insert(placed);
                prop_assert_eq!(*before, placed);
            }
        }
    }
}
