use super::*;
use crate::split::near::RADIUS;
use proptest::prelude::*;
use std::{array, collections::BTreeSet};

fn content(number: u64) -> ContentHash {
    ContentHash::of(&number.to_le_bytes())
}

/// A photo whose trimmed copies are far from everything.
fn looks(number: u64, whole: u64) -> Fingerprint {
    let far = |index: usize| Sha256::digest([number.to_le_bytes(), (index as u64).to_le_bytes()].concat());
    Fingerprint::from_hashes(array::from_fn(|index| match index {
        0 => whole,
        _ => far(index).iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte)),
    }))
}

fn half() -> Splitter {
    Splitter::new(SplitSettings { holdout: 0.5, ..SplitSettings::default() })
}

/// The first numbers whose content alone puts them on each side.
fn of_side(side: Side) -> impl Iterator<Item = u64> {
    (0..).filter(move |&number| half().assign(content(number), None).side == side)
}

#[test]
fn the_share_of_the_holdout_is_what_was_asked_for() {
    for holdout in [0.0, 0.1, 0.5, 1.0] {
        let mut splitter = Splitter::new(SplitSettings { holdout, ..SplitSettings::default() });
        let held = (0..10_000)
            .filter(|&number| splitter.assign(content(number), None).side == Side::Holdout)
            .count();
        let expected = 10_000.0 * holdout;
        // Four standard deviations.
        assert!(
            (held as f64 - expected).abs() <= 4.0 * (expected * (1.0 - holdout)).sqrt(),
            "{holdout}: {held}"
        );
    }
}

#[test]
fn a_salt_gives_another_holdout() {
    let held = |salt: &str| -> Vec<u64> {
        let mut splitter = Splitter::new(SplitSettings { holdout: 0.5, salt: salt.into() });
        (0..100).filter(|&number| splitter.assign(content(number), None).side == Side::Holdout).collect()
    };
    assert_eq!(held(""), held(""));
    assert_ne!(held(""), held("2"));
}

#[test]
fn a_chain_of_near_copies_is_one_group_on_one_side() {
    let mut splitter = half();
    let founder = splitter.assign(content(0), Some(&looks(0, 0)));
    assert_eq!(founder.group, content(0));
    let mut hash = 0;
    for number in 1..6 {
        hash |= ((1 << RADIUS) - 1) << (RADIUS as u64 * (number - 1));
        assert_eq!(splitter.assign(content(number), Some(&looks(number, hash))), founder, "{number}");
    }
    assert_eq!(splitter.assign(content(9), Some(&looks(9, u64::MAX))).group, content(9));
}

#[test]
fn what_is_near_to_both_sides_is_left_out_and_moves_nobody() {
    let (learned, held) = (of_side(Side::Training).next().unwrap(), of_side(Side::Holdout).next().unwrap());
    let mut splitter = half();
    let learned = splitter.assign(content(learned), Some(&looks(1, 0)));
    let held_photo = (content(held), looks(2, 0xffff));
    let held = splitter.assign(held_photo.0, Some(&held_photo.1));
    assert_eq!((learned.side, held.side), (Side::Training, Side::Holdout));
    let between = splitter.assign(content(1_000), Some(&looks(3, 0xff)));
    assert_eq!(between, Assignment { group: learned.group, side: Side::LeftOut });
    assert_eq!(splitter.assign(held_photo.0, Some(&held_photo.1)), held);
    // Whatever is near to the photo left out alone is free to be used.
    let next = splitter.assign(content(1_001), Some(&looks(4, 0xff | 0xff << 40)));
    assert_eq!(next.group, content(1_001));
}

#[test]
fn a_trimmed_copy_is_found_whichever_came_first() {
    let whole = looks(0, 7);
    let copy = looks(1, whole.trimmed()[3] ^ 0b11);
    for (first, second) in [(&whole, &copy), (&copy, &whole)] {
        let mut splitter = half();
        let founder = splitter.assign(content(0), Some(first));
        assert!(splitter.knows(&content(1), Some(second)));
        assert_eq!(splitter.assign(content(1), Some(second)), founder);
    }
}

#[test]
fn a_file_without_pixels_is_known_by_its_content_alone() {
    let mut splitter = half();
    let first = splitter.assign(content(0), None);
    assert_eq!(splitter.assign(content(0), None), first);
    assert!(!splitter.knows(&content(1), None));
}

/// Photos in a small space, so that many are near.
fn photos() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0_u64..60, 0_u64..64), 1..60).prop_map(|photos| {
        photos
            .into_iter()
            // Each of six bits of the look stands for five of the hash.
            .map(|(number, look)| {
                (number, (0..6).map(|bit| ((look >> bit & 1) * 0b11111) << (10 * bit)).sum())
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_near_pair_is_split_and_no_photo_ever_moves(photos in photos(), restart in 0_usize..60) {
        let mut splitter = half();
        let mut members: Vec<Member> = Vec::new();
        for (index, (number, whole)) in photos.into_iter().enumerate() {
            if index == restart {
                // What was stored brings everything back.
                splitter = half();
                members.iter().for_each(|member| splitter.restore(member));
            }
            let (content, fingerprint) = (content((number << 8) | (whole % 251)), looks(number, whole));
            let assignment = splitter.assign(content, Some(&fingerprint));
            if let Some(known) = members.iter().find(|member| member.content == content) {
                prop_assert_eq!(known.assignment, assignment);
                continue;
            }
            members.push(Member { content, fingerprint: Some(fingerprint), assignment });
            for one in &members {
                for other in &members {
                    let near = one.fingerprint.unwrap().is_near(&other.fingerprint.unwrap());
                    let sides = BTreeSet::from([one.assignment.side, other.assignment.side]);
                    prop_assert!(!near || !sides.is_superset(&BTreeSet::from([Side::Training, Side::Holdout])), "{one:?} {other:?}");
                }
            }
        }
        for member in &members {
            prop_assert_eq!(splitter.assign(member.content, None), member.assignment);
        }
    }
}

#[test]
fn a_content_hash_reads_as_it_is_written() {
    let content = ContentHash::of(b"a photo");
    assert_eq!(content.to_string().parse::<ContentHash>().unwrap(), content);
    for text in
        ["", "0a", &"0".repeat(63), &"g".repeat(64), &"\u{e9}".repeat(32), &format!("+{}", "0".repeat(63))]
    {
        assert!(text.parse::<ContentHash>().is_err(), "{text}");
    }
}
