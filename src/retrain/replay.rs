//! How many older labels of which scores are learned from again. Pure.

use std::ops::RangeInclusive;

/// Equal parts of the range of scores that older labels are drawn from.
pub const PARTS: u32 = 10;

/// How many to draw from each stratum, so that `total` are drawn in all where there are so many: as evenly as
/// what is `available` allows, since a faithful sample of old labels would hold hardly any of the best and
/// the worst photos, and those are forgotten first.
pub fn allocate(total: u64, available: &[u64]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..available.len()).collect();
    order.sort_by_key(|&stratum| available[stratum]);
    let mut drawn = vec![0; available.len()];
    let mut left = total;
    for (position, &stratum) in order.iter().enumerate() {
        // The scarcest first: what it lacks is spread over the others.
        let strata = (order.len() - position) as u64;
        drawn[stratum] = available[stratum].min(left.div_ceil(strata));
        left -= drawn[stratum];
    }
    drawn
}

/// The scores of part `part` of the range; the parts share no score and together hold every one, those
/// outside the range too.
pub fn scores_of(part: usize, (low, high): (f64, f64)) -> RangeInclusive<f64> {
    let edge = |part: usize| low + (high - low) * part as f64 / f64::from(PARTS);
    let last = PARTS as usize - 1;
    let from = if part == 0 { f64::MIN } else { edge(part) };
    let to = if part >= last { f64::MAX } else { edge(part + 1).next_down() };
    from..=to
}

/// How many older labels go with so many new ones.
pub fn total(new: usize, share: f64) -> u64 {
    (new as f64 * share).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_scarce_stratum_gives_all_and_the_others_the_rest() {
        assert_eq!(allocate(30, &[100, 2, 100]), [14, 2, 14]);
        assert_eq!(allocate(1, &[5, 5]).iter().sum::<u64>(), 1);
        assert_eq!(allocate(100, &[5, 0, 7]), [5, 0, 7]);
        assert_eq!(allocate(3, &[]), Vec::<u64>::new());
    }

    proptest! {
        #[test]
        fn as_many_as_are_asked_for_and_as_even_as_can_be(
            total in 0_u64..2_000, available in proptest::collection::vec(0_u64..300, 0..25),
        ) {
            let drawn = allocate(total, &available);
            prop_assert_eq!(drawn.iter().sum::<u64>(), total.min(available.iter().sum()));
            let most = drawn.iter().copied().max().unwrap_or(0);
            for (drawn, available) in drawn.iter().zip(&available) {
                prop_assert!(drawn <= available);
                // Whoever gives fewer than another, but for rounding, gives all.
                prop_assert!(drawn == available || drawn + 1 >= most);
            }
        }

        #[test]
        fn every_score_is_in_one_part(score in -3.0_f64..14.0, low in -2.0_f64..1.0, width in 0.5_f64..12.0) {
            let range = (low, low + width);
            let parts = (0..PARTS as usize).filter(|&part| scores_of(part, range).contains(&score)).count();
            prop_assert_eq!(parts, 1);
        }
    }
}
