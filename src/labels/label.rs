//! All votes on a photo as one label, and labels as the reference's samples and back.

use super::fields::{optional_text, text};
use super::vote::{object_of, parse_time, stated_opinion};
use super::{LabelledObject, Opinion, Refusal, Sample, Scale, Turn, Vote, sample::turns};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// How far a sample's score may be from what its votes come to; files may round it.
const ROUNDING: f64 = 1e-3;
/// The field of a sample that keeps what the reference has no place for.
const FIELD: &str = "label";

/// What all raters of one object think of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    pub object: LabelledObject,
    pub opinion: Opinion,
    /// The conversation of the latest vote that has one; empty for the usual one.
    pub conversation: Vec<Turn>,
    /// When the latest vote was given.
    pub labelled_at: OffsetDateTime,
}

impl Label {
    /// The label that votes on one object, with equally many scores, come to; `None` without votes.
    pub fn of_votes(votes: &[&Vote], scale: &Scale) -> Option<Self> {
        let latest = votes.iter().max_by_key(|vote| (vote.labelled_at, &vote.rater))?;
        let conversed = votes.iter().filter(|vote| !vote.conversation.is_empty());
        let conversed = conversed.max_by_key(|vote| (vote.labelled_at, &vote.rater));
        Some(Self {
            object: latest.object.clone(),
            opinion: Opinion::aggregate(votes.iter().map(|vote| &vote.opinion), scale)?,
            conversation: conversed.map(|vote| vote.conversation.clone()).unwrap_or_default(),
            labelled_at: latest.labelled_at,
        })
    }

    /// The sample that the reference trains on. `usual` is the conversation of a label that has none.
    ///
    /// The image is `bucket/key`, a path below a folder that holds the buckets. A field that the reference
    /// does not read, `label`, keeps object and votes for [`votes`]; without `votes`, only how many raters
    /// there were, and nobody's name.
    pub fn to_sample(&self, usual: &[Turn], votes: Option<&[Vote]>) -> Sample {
        let Self { object, opinion, conversation, .. } = self;
        let conversations = if conversation.is_empty() { usual } else { conversation };
        let mut kept = json!({"bucket": object.bucket, "key": object.key, "etag": object.etag});
        match votes {
            Some(votes) => kept["votes"] = votes.iter().map(vote_fields).collect(),
            None => kept["raters"] = opinion.raters.into(),
        }
        Sample {
            image: format!("{}/{}", object.bucket, object.key),
            gt_scores: opinion.scores.clone(),
            targets: opinion.distributions.clone(),
            conversations: conversations.to_vec(),
            extra: Map::from_iter([(FIELD.to_owned(), kept)]),
            line: 0,
        }
    }
}

/// What a file of samples does not say of its votes.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The bucket of images that name none.
    pub bucket: Option<String>,
    /// What their keys begin with.
    pub prefix: String,
    /// Buckets that a path may begin with.
    pub buckets: Vec<String>,
    /// Whose votes they are.
    pub rater: String,
    pub labelled_at: OffsetDateTime,
}

impl Origin {
    /// The object that a path or an address stands for: `s3://bucket/key`, a key in the bucket, or
    /// `bucket/key`.
    ///
    /// # Errors
    /// [`Refusal::NoBucket`], or as [`LabelledObject::new`].
    pub fn object(&self, image: &str, etag: Option<String>) -> Result<LabelledObject, Refusal> {
        let no_bucket = || Refusal::NoBucket(image.to_owned());
        if let Some(address) = image.strip_prefix("s3://") {
            let (bucket, key) = address.split_once('/').ok_or_else(no_bucket)?;
            return LabelledObject::new(bucket.into(), key.into(), etag);
        }
        if let Some(bucket) = &self.bucket {
            return LabelledObject::new(bucket.clone(), format!("{}{image}", self.prefix), etag);
        }
        match image.split_once('/') {
            Some((bucket, key)) if self.buckets.iter().any(|known| known == bucket) => {
                LabelledObject::new(bucket.into(), key.into(), etag)
            }
            _ => Err(no_bucket()),
        }
    }
}

/// The votes of a sample: those in its field `label`, or one by `origin`'s rater. Not checked against a time.
///
/// # Errors
/// When object or votes can't be read, or the votes do not come to the sample's scores.
pub fn votes(sample: Sample, origin: &Origin, scale: &Scale) -> Result<Vec<Vote>, Refusal> {
    let Sample { image, gt_scores, targets, conversations, mut extra, .. } = sample;
    let kept = match extra.shift_remove(FIELD) {
        Some(Value::Object(kept)) => Some(kept),
        _ => None,
    };
    let opinion = Opinion { scores: gt_scores, distributions: targets, raters: 1 };
    let (object, raters) = match kept {
        None => (origin.object(&image, optional_text("etag", &mut extra)?)?, 1),
        Some(mut kept) => {
            let object = object_of(&mut kept)?;
            if let Some(Value::Array(list)) = kept.shift_remove("votes") {
                let votes: Vec<Vote> =
                    list.into_iter().map(|vote| read_vote(&object, vote)).collect::<Result<_, _>>()?;
                check_sum(&opinion, &votes, scale)?;
                return Ok(votes);
            }
            (object, stated_opinion(&mut kept)?.raters)
        }
    };
    Ok(vec![Vote {
        object,
        rater: origin.rater.clone(),
        opinion: Opinion { raters, ..opinion },
        conversation: conversations,
        labelled_at: origin.labelled_at,
    }])
}

fn check_sum(stated: &Opinion, votes: &[Vote], scale: &Scale) -> Result<(), Refusal> {
    let all = Opinion::aggregate(votes.iter().map(|vote| &vote.opinion), scale).ok_or(Refusal::NoVotes)?;
    let agrees = all.scores.len() == stated.scores.len()
        && all.scores.iter().zip(&stated.scores).all(|(one, other)| (one - other).abs() <= ROUNDING);
    if agrees { Ok(()) } else { Err(Refusal::Disagreement) }
}

fn vote_fields(vote: &Vote) -> Value {
    let Vote { rater, opinion, conversation, labelled_at, .. } = vote;
    // Years beyond 9999 are no vote's.
    let labelled_at = labelled_at.format(&Rfc3339).unwrap_or_default();
    let mut fields = json!({"rater": rater, "scores": opinion.scores, "labelled_at": labelled_at});
    if !opinion.distributions.is_empty() {
        fields["distributions"] = json!(opinion.distributions);
    }
    if opinion.raters != 1 {
        fields["raters"] = opinion.raters.into();
    }
    if !conversation.is_empty() {
        fields["conversations"] = json!(conversation);
    }
    fields
}

fn read_vote(object: &LabelledObject, vote: Value) -> Result<Vote, Refusal> {
    let Value::Object(mut fields) = vote else {
        return Err(super::fields::kind("label.votes", "a list of objects", &vote));
    };
    let opinion = stated_opinion(&mut fields)?;
    let conversation = match fields.shift_remove("conversations") {
        None | Some(Value::Null) => Vec::new(),
        given => turns(given)?,
    };
    let labelled_at = text("labelled_at", &mut fields, "say when the vote was given")?;
    Ok(Vote {
        object: object.clone(),
        rater: text("rater", &mut fields, "say who rated the photo")?,
        opinion,
        conversation,
        labelled_at: parse_time(&labelled_at)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::{SampleReader, SampleWriter};
    use proptest::prelude::*;
    use time::{Duration, macros::datetime};

    const SCALE: Scale = Scale { min_score: 1.0, max_score: 10.0, num_tokens: 10 };
    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

    fn turn(from: &str, value: &str) -> Turn {
        Turn { from: from.into(), value: value.into() }
    }

    fn usual() -> Vec<Turn> {
        vec![turn("human", "<|image|>Rate it."), turn("gpt", "The rate is [SCORE].")]
    }

    fn origin() -> Origin {
        let (bucket, prefix, buckets) = (None, String::new(), vec!["photos".to_owned()]);
        Origin { bucket, prefix, buckets, rater: "import".into(), labelled_at: NOW }
    }

    fn vote(rater: &str, score: f64, minutes: i64) -> Vote {
        Vote {
            object: LabelledObject::new("photos".into(), "a.jpg".into(), Some("e".into())).unwrap(),
            rater: rater.into(),
            opinion: Opinion::of_scores(vec![score]),
            conversation: Vec::new(),
            labelled_at: NOW + Duration::minutes(minutes),
        }
    }

    #[test]
    fn the_latest_conversation_is_the_labels() {
        let answer = turn("gpt", "It is soft: [SCORE].");
        let spoken = Vote { conversation: vec![usual()[0].clone(), answer.clone()], ..vote("b", 7.0, 1) };
        let label = Label::of_votes(&[&vote("a", 5.0, 2), &spoken], &SCALE).unwrap();
        assert_eq!(label.conversation[1], answer);
        assert_eq!((label.opinion.scores[0], label.opinion.raters), (6.0, 2));
        assert_eq!(label.labelled_at, NOW + Duration::minutes(2));
        assert_eq!(Label::of_votes(&[], &SCALE), None);
    }

    #[test]
    fn without_names_a_label_is_one_vote_of_as_many_raters() {
        let all = [vote("ann", 5.0, 0), vote("bob", 6.0, 1)];
        let label = Label::of_votes(&all.iter().collect::<Vec<_>>(), &SCALE).unwrap();
        let sample = label.to_sample(&usual(), None);
        assert_eq!(sample.image, "photos/a.jpg");
        let text = serde_json::to_string(&sample).unwrap();
        assert!(!text.contains("ann") && !text.contains("bob"), "{text}");
        let read = votes(sample, &origin(), &SCALE).unwrap();
        assert_eq!((read.len(), read[0].opinion.raters, read[0].rater.as_str()), (1, 2, "import"));
        assert_eq!(read[0].opinion.scores, [5.5]);
        assert_eq!(read[0].object, label.object);
    }

    #[test]
    fn an_edited_score_that_its_votes_do_not_come_to_is_refused() {
        let all = [vote("ann", 5.0, 0)];
        let label = Label::of_votes(&[&all[0]], &SCALE).unwrap();
        let mut sample = label.to_sample(&usual(), Some(&all));
        sample.gt_scores[0] = 6.0;
        assert_eq!(votes(sample, &origin(), &SCALE), Err(Refusal::Disagreement));
    }

    #[test]
    fn images_are_found_by_address_bucket_or_path() {
        let object = |origin: &Origin, image: &str| {
            origin.object(image, None).map(|object| format!("{} {}", object.bucket, object.key))
        };
        let plain = origin();
        assert_eq!(object(&plain, "s3://other/x/y.jpg").unwrap(), "other x/y.jpg");
        assert_eq!(object(&plain, "photos/x/y.jpg").unwrap(), "photos x/y.jpg");
        assert_eq!(object(&plain, "x/y.jpg"), Err(Refusal::NoBucket("x/y.jpg".into())));
        assert_eq!(object(&plain, "y.jpg"), Err(Refusal::NoBucket("y.jpg".into())));
        let placed = Origin { bucket: Some("main".into()), prefix: "2024/".into(), ..origin() };
        assert_eq!(object(&placed, "photos/y.jpg").unwrap(), "main 2024/photos/y.jpg");
    }

    fn all_votes() -> impl Strategy<Value = Vec<Vote>> {
        let opinion = prop_oneof![
            (1.0_f64..=10.0).prop_map(|score| Opinion::of_scores(vec![score])),
            proptest::collection::vec(1_u64..50, 10)
                .prop_map(|counts| Opinion::of_counts(&[counts], &SCALE).unwrap()),
        ];
        let one = (opinion, any::<bool>(), 0_i64..10_000_000_000);
        proptest::collection::vec(one, 1..8).prop_map(|votes| {
            let make = |(number, (opinion, spoken, microseconds)): (usize, (Opinion, bool, i64))| Vote {
                opinion,
                conversation: if spoken { usual() } else { Vec::new() },
                labelled_at: NOW - Duration::microseconds(microseconds),
                ..vote(&format!("rater \"{number}\""), 1.0, 0)
            };
            votes.into_iter().enumerate().map(make).collect()
        })
    }

    proptest! {
        /// Through the file and back, to the last digit of every vote.
        #[test]
        fn an_export_imports_as_what_was_exported(all in all_votes()) {
            let label = Label::of_votes(&all.iter().collect::<Vec<_>>(), &SCALE).unwrap();
            let mut writer = SampleWriter::new(Vec::new());
            writer.write(&label.to_sample(&usual(), Some(&all))).unwrap();
            let file = writer.finish().unwrap();
            let sample = SampleReader::new("a.json", &file[..]).checked(SCALE).next().unwrap().unwrap();
            let read = votes(sample, &origin(), &SCALE).unwrap();
            prop_assert!(read.iter().all(|vote| vote.check(&SCALE, NOW) == Ok(())));
            prop_assert_eq!(&read, &all);
            prop_assert_eq!(Label::of_votes(&read.iter().collect::<Vec<_>>(), &SCALE).unwrap(), label);
        }
    }
}
