//! From labels whose photos have their place to what is learned from and judged by. Pure.

use super::{
    dataset::{Counts, Dataset, LabelledPhoto},
    select::Selection,
    sides::Placed,
};
use crate::{
    labels::{LabelledObject, Scale, Turn},
    split::{ContentHash, Side},
    store::{LabelKey, StoredLabel},
};
use std::collections::{HashMap, HashSet};

/// What is known of a labelled object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Photo {
        content: ContentHash,
        placed: Placed,
    },
    Gone,
    /// Too large, or no image.
    Unreadable,
    /// Not to be read.
    OtherBucket,
}

/// What labels are turned into samples with.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// What a label must fit.
    pub scale: Scale,
    /// Question and answer of a label that has none.
    pub usual: &'a [Turn],
    /// Gold photos at most.
    pub gold_photos: usize,
}

/// Divides the labels. `gold_file` is the gold set where a file names it: then photos of Postgres that are
/// held out for it are in no other set.
pub fn assemble(
    champion: &str,
    selection: &Selection,
    found: &HashMap<LabelledObject, Found>,
    gold_file: Option<Vec<LabelledPhoto>>,
    terms: &Terms<'_>,
) -> Dataset {
    let Selection { after, upto, new, older, gold } = selection;
    let (after, upto) = (*after, *upto);
    let counts = Counts { new_labels: new.len(), older_labels: older.len(), ..count(found) };
    let mut dataset = Dataset { champion: champion.to_owned(), after, upto, counts, ..Dataset::default() };
    let from_file: Option<HashSet<ContentHash>> =
        gold_file.as_ref().map(|photos| photos.iter().map(|photo| photo.content).collect());
    let names = Names::of(found.keys());
    let mut seen: HashSet<LabelKey> = HashSet::new();
    let mut between = HashSet::new();
    // Gold first, in the order in which it came in, so that its photos stay the same from run to run.
    let labels = gold.iter().map(|label| (label, label.ingested > after));
    let labels = labels.chain(older.iter().map(|label| (label, false)));
    for (label, is_new) in labels.chain(new.iter().map(|label| (label, true))) {
        let object = &label.label.object;
        let Some(Found::Photo { content, placed }) = found.get(object) else { continue };
        if !seen.insert(label.key()) {
            continue;
        }
        let Some(photo) = photo(label, *content, placed, &names, terms) else {
            dataset.counts.unusable += 1;
            continue;
        };
        let is_gold = placed.gold || from_file.as_ref().is_some_and(|gold| gold.contains(content));
        match placed.assignment.side {
            Side::LeftOut => {
                between.insert(*content);
            }
            Side::Training => dataset.training.push(photo),
            Side::Holdout if is_gold && from_file.is_some() => {}
            Side::Holdout if is_gold && dataset.gold.len() >= terms.gold_photos => {
                dataset.counts.spare_gold += 1;
            }
            Side::Holdout if is_gold => dataset.gold.push(without_conversation(photo)),
            Side::Holdout if is_new => dataset.newest.push(without_conversation(photo)),
            Side::Holdout => dataset.old.push(without_conversation(photo)),
        }
    }
    if let Some(photos) = gold_file {
        dataset.gold = photos;
    }
    dataset.counts.between_sides = between.len();
    let Dataset { training, newest, gold, old, .. } = &dataset;
    let [training, newest, gold, old] = [training, newest, gold, old].map(Vec::len);
    dataset.counts = Counts { training, newest, gold, old, ..dataset.counts };
    dataset
}

/// What became of the objects.
fn count(found: &HashMap<LabelledObject, Found>) -> Counts {
    let of = |wanted: Found| found.values().filter(|found| **found == wanted).count();
    Counts {
        gone: of(Found::Gone),
        unreadable: of(Found::Unreadable),
        unusable: of(Found::OtherBucket),
        ..Counts::default()
    }
}

/// `None` for a label that the model can't be trained on.
fn photo(
    label: &StoredLabel,
    content: ContentHash,
    placed: &Placed,
    names: &Names<'_>,
    terms: &Terms<'_>,
) -> Option<LabelledPhoto> {
    let sample = label.label.to_sample(terms.usual, None);
    sample.check(&terms.scale).ok()?;
    let object = &label.label.object;
    Some(LabelledPhoto {
        name: names.name(object),
        object: Some(object.into()),
        content,
        group: placed.assignment.group,
        scores: sample.gt_scores,
        distributions: sample.targets,
        raters: Some(label.label.opinion.raters),
        conversations: sample.conversations,
    })
}

/// Questions are the trainer's: the model is judged by the one that it is asked in service.
fn without_conversation(photo: LabelledPhoto) -> LabelledPhoto {
    LabelledPhoto { conversations: Vec::new(), ..photo }
}

/// What objects are called: `bucket/key`, and the etag where that says which photo is meant.
struct Names<'a>(HashMap<(&'a str, &'a str), usize>);

impl<'a> Names<'a> {
    fn of(objects: impl Iterator<Item = &'a LabelledObject>) -> Self {
        let mut etags = HashMap::new();
        for object in objects {
            *etags.entry((object.bucket.as_str(), object.key.as_str())).or_insert(0) += 1;
        }
        Self(etags)
    }

    fn name(&self, LabelledObject { bucket, key, etag }: &LabelledObject) -> String {
        match self.0.get(&(bucket.as_str(), key.as_str())) {
            Some(2..) => format!("{bucket}/{key} ({})", if etag.is_empty() { "latest" } else { etag }),
            _ => format!("{bucket}/{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        labels::{Label, LabelsSettings, Opinion},
        split::Assignment,
    };
    use proptest::prelude::*;
    use time::macros::datetime;

    const SCALE: Scale = Scale { min_score: 1.0, max_score: 5.0, num_tokens: 5 };

    fn label(key: u64, score: f64, ingested: i64) -> StoredLabel {
        let object = LabelledObject { bucket: "b".into(), key: key.to_string(), etag: "e".into() };
        let opinion = Opinion { scores: vec![score], distributions: Vec::new(), raters: 2 };
        let labelled_at = datetime!(2026-11-24 12:00 UTC);
        StoredLabel { label: Label { object, opinion, conversation: Vec::new(), labelled_at }, ingested }
    }

    fn found(key: u64, side: Side, gold: bool) -> Found {
        let content = ContentHash::of(&key.to_le_bytes());
        Found::Photo { content, placed: Placed { assignment: Assignment { group: content, side }, gold } }
    }

    fn usual() -> Vec<Turn> {
        LabelsSettings::default().conversation()
    }

    fn names(photos: &[LabelledPhoto]) -> Vec<&str> {
        photos.iter().map(|photo| photo.name.as_str()).collect()
    }

    #[test]
    fn each_label_goes_where_its_photo_belongs() {
        let place = [
            (1, found(1, Side::Training, false)),
            (2, found(2, Side::Holdout, false)),
            (3, found(3, Side::Holdout, false)),
            (4, found(4, Side::Holdout, true)),
            (5, found(5, Side::Holdout, true)),
            (6, found(6, Side::LeftOut, false)),
            (7, Found::Gone),
            (8, Found::Unreadable),
            (9, Found::OtherBucket),
            (10, found(10, Side::Training, false)),
            (11, found(11, Side::Training, false)),
        ];
        let found: HashMap<LabelledObject, Found> =
            place.iter().map(|(key, found)| (label(*key, 1.0, 0).label.object, *found)).collect();
        let old = |keys: &[u64]| keys.iter().map(|&key| label(key, 2.0, 5)).collect::<Vec<_>>();
        let new = |keys: &[u64]| keys.iter().map(|&key| label(key, 3.0, 15)).collect::<Vec<_>>();
        let mut selection = Selection {
            after: 10,
            upto: 20,
            new: new(&[1, 3, 5, 6, 7, 8, 9]),
            older: old(&[2, 10]),
            gold: old(&[4]),
        };
        // Outside the scale.
        selection.new.push(label(11, 7.0, 16));
        let usual = usual();
        let terms = Terms { scale: SCALE, usual: &usual, gold_photos: 9 };
        let dataset = assemble("champion", &selection, &found, None, &terms);
        assert_eq!(names(&dataset.training), ["b/10", "b/1"]);
        assert_eq!(names(&dataset.newest), ["b/3"]);
        assert_eq!(names(&dataset.old), ["b/2"]);
        assert_eq!(names(&dataset.gold), ["b/4", "b/5"]);
        let expected = Counts {
            new_labels: 8,
            older_labels: 2,
            training: 2,
            newest: 1,
            gold: 2,
            old: 1,
            gone: 1,
            unreadable: 1,
            unusable: 2,
            between_sides: 1,
            ..Counts::default()
        };
        assert_eq!(dataset.counts, expected);
        assert!(!dataset.training[0].conversations.is_empty() && dataset.newest[0].conversations.is_empty());

        let few = assemble("champion", &selection, &found, None, &Terms { gold_photos: 1, ..terms.clone() });
        assert_eq!((names(&few.gold), few.counts.spare_gold), (vec!["b/4"], 1));
        let file = vec![dataset.newest[0].clone()];
        let with_file = assemble("champion", &selection, &found, Some(file), &terms);
        assert_eq!(names(&with_file.gold), ["b/3"]);
        assert!(with_file.newest.is_empty(), "a photo of the gold set is in no other one");
    }

    #[test]
    fn an_object_with_two_contents_has_two_names() {
        let (one, mut other) = (label(1, 1.0, 11), label(1, 2.0, 12));
        other.label.object.etag = "f".into();
        let found = HashMap::from([
            (one.label.object.clone(), found(1, Side::Training, false)),
            (other.label.object.clone(), found(2, Side::Training, false)),
        ]);
        let selection = Selection { after: 10, upto: 20, new: vec![one, other], ..Selection::default() };
        let usual = usual();
        let terms = Terms { scale: SCALE, usual: &usual, gold_photos: 9 };
        let dataset = assemble("champion", &selection, &found, None, &terms);
        assert_eq!(names(&dataset.training), ["b/1 (e)", "b/1 (f)"]);
    }

    proptest! {
        #[test]
        fn no_photo_is_learned_from_and_judged_by_and_nothing_is_lost(
            places in proptest::collection::vec((0_u8..3, any::<bool>(), 0_usize..4), 0..40),
            gold_photos in 0_usize..5,
        ) {
            let (mut found, mut selection) = (HashMap::new(), Selection { after: 10, upto: 20, ..Selection::default() });
            for (key, (side, gold, list)) in (0_u64..).zip(places) {
                let side = [Side::Training, Side::Holdout, Side::LeftOut][usize::from(side)];
                let gold = gold && side == Side::Holdout;
                let photo = super::tests::found(key, side, gold);
                let (old, new) = (label(key, 2.0, 5), label(key, 2.0, 15));
                found.insert(old.label.object.clone(), photo);
                match list {
                    0 => selection.new.push(new),
                    1 => selection.older.push(old),
                    2 if gold => selection.gold.push(old),
                    _ if gold => { selection.gold.push(new.clone()); selection.new.push(new) }
                    _ => selection.new.push(new),
                }
            }
            let usual = usual();
            let terms = Terms { scale: SCALE, usual: &usual, gold_photos };
            let dataset = assemble("champion", &selection, &found, None, &terms);
            let of = |photos: &[LabelledPhoto]| photos.iter().map(|photo| photo.content).collect::<HashSet<_>>();
            let sets = [&dataset.training, &dataset.newest, &dataset.gold, &dataset.old].map(|set| of(set));
            let all: HashSet<_> = dataset.contents();
            prop_assert_eq!(sets.iter().map(HashSet::len).sum::<usize>(), all.len());
            prop_assert!(dataset.gold.len() <= gold_photos);
            let counts = dataset.counts;
            prop_assert_eq!(all.len() + counts.between_sides + counts.spare_gold, found.len());
        }
    }
}
