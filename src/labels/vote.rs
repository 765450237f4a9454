//! A rater's vote on one photo, and the JSON of the labels topic.

use super::fields::{kind, list_or_lists, number, number_or_list, optional_text, syntax, text};
use super::sample::{check_turns, score_tokens, turns};
use super::{Opinion, Refusal, Scale, Turn};
use serde_json::{Map, Value};
use time::{
    Date, Duration, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description,
};

/// S3 allows no longer keys, and bucket, key, etag and rater together fit an index entry.
const KEY_LIMIT: usize = 1024;
const TEXT_LIMIT: usize = 255;

/// The very photo that was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelledObject {
    pub bucket: String,
    pub key: String,
    /// Without quotes. Empty where it is not known: then the label is for whatever the key holds.
    pub etag: String,
}

impl LabelledObject {
    /// The object, with the quotes of its etag taken off.
    ///
    /// # Errors
    /// When bucket or key is empty, or one of them can't be stored.
    pub fn new(bucket: String, key: String, etag: Option<String>) -> Result<Self, Refusal> {
        let etag = etag.map(|etag| etag.trim_matches('"').to_owned()).unwrap_or_default();
        for (field, text, limit) in
            [("bucket", &bucket, TEXT_LIMIT), ("key", &key, KEY_LIMIT), ("etag", &etag, TEXT_LIMIT)]
        {
            check_text(field, text, limit)?;
        }
        for (field, text) in [("bucket", &bucket), ("key", &key)] {
            if text.is_empty() {
                return Err(Refusal::Missing { field, remedy: "name the bucket and the key of the photo" });
            }
        }
        Ok(Self { bucket, key, etag })
    }
}

/// What a rater said of a photo. The latest vote of one rater on one object is the one that counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Vote {
    pub object: LabelledObject,
    pub rater: String,
    pub opinion: Opinion,
    /// Question and answer that the scores belong to; empty for the usual ones.
    pub conversation: Vec<Turn>,
    /// In whole microseconds, as Postgres keeps it.
    pub labelled_at: OffsetDateTime,
}

impl Vote {
    /// Whether the vote can be stored, and a score head of this scale trained on it.
    ///
    /// # Errors
    /// What is wrong first.
    pub fn check(&self, scale: &Scale, now: OffsetDateTime) -> Result<(), Refusal> {
        if self.rater.is_empty() {
            return Err(Refusal::Missing { field: "rater", remedy: "say who rated the photo" });
        }
        check_text("rater", &self.rater, TEXT_LIMIT)?;
        self.opinion.check(scale)?;
        if !self.conversation.is_empty() {
            check_turns(&self.conversation)?;
        }
        // Without a conversation there is one [SCORE], in the usual answer.
        let tokens = if self.conversation.is_empty() { 1 } else { score_tokens(&self.conversation) };
        if self.opinion.scores.len() != tokens {
            return Err(Refusal::Attributes { scores: self.opinion.scores.len(), tokens });
        }
        if self.labelled_at > now + Duration::days(1) {
            return Err(Refusal::Future(self.labelled_at.to_string()));
        }
        for turn in &self.conversation {
            check_text("conversations", &turn.value, usize::MAX)?;
        }
        Ok(())
    }

    /// Reads a record of the labels topic:
    /// `{"bucket","key","etag","rater","score"|"votes","labelled_at","conversations"?}`. `score` is a number
    /// or a list of one per `[SCORE]`; `votes` are raters counted by bin, or a list of such lists. Without
    /// `labelled_at` the vote is as old as its record, `stamped`, where that is known.
    ///
    /// # Errors
    /// Why it is no vote.
    pub fn from_record(
        payload: &[u8],
        stamped: Option<OffsetDateTime>,
        scale: &Scale,
        now: OffsetDateTime,
    ) -> Result<Self, Refusal> {
        let mut fields: Map<String, Value> =
            serde_json::from_slice(payload).map_err(|error| syntax(&error).1)?;
        let object = object_of(&mut fields)?;
        let rater = text("rater", &mut fields, "say who rated the photo")?;
        let scores = number_or_list("score", fields.shift_remove("score"))?;
        let counts = list_or_lists("votes", fields.shift_remove("votes"), count)?;
        let opinion = match (scores.is_empty(), counts.is_empty()) {
            (false, false) => return Err(Refusal::ScoreAndVotes),
            (_, true) => Opinion::of_scores(scores),
            (true, false) => Opinion::of_counts(&counts, scale)?,
        };
        let conversation = match fields.shift_remove("conversations") {
            None | Some(Value::Null) => Vec::new(),
            given => turns(given)?,
        };
        let labelled_at =
            match optional_text("labelled_at", &mut fields)? {
                Some(text) => parse_time(&text)?,
                None => whole_microseconds(stamped.ok_or(Refusal::Missing {
                    field: "labelled_at",
                    remedy: "say when the vote was given",
                })?),
            };
        let vote = Self { object, rater, opinion, conversation, labelled_at };
        vote.check(scale, now)?;
        Ok(vote)
    }
}

pub(super) fn object_of(fields: &mut Map<String, Value>) -> Result<LabelledObject, Refusal> {
    let remedy = "name the bucket and the key of the photo";
    let bucket = text("bucket", fields, remedy)?;
    let key = text("key", fields, remedy)?;
    LabelledObject::new(bucket, key, optional_text("etag", fields)?)
}

/// RFC 3339, or a day, which begins at midnight UTC. Cut to microseconds, as Postgres keeps it.
pub(super) fn parse_time(text: &str) -> Result<OffsetDateTime, Refusal> {
    let day = || Date::parse(text, format_description!("[year]-[month]-[day]"));
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| day().map(|day| day.midnight().assume_utc()))
        .map(whole_microseconds)
        .map_err(|_| Refusal::Time(text.to_owned()))
}

/// Cut to microseconds, as Postgres keeps times, and in UTC.
pub fn whole_microseconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(time.microsecond() * 1000).unwrap_or(time).to_offset(time::UtcOffset::UTC)
}

fn count(field: &'static str, value: &Value) -> Result<u64, Refusal> {
    match value {
        Value::Number(number) => number.as_u64().ok_or_else(|| Refusal::Count(number.to_string())),
        other => Err(kind(field, "a number", other)),
    }
}

fn check_text(field: &'static str, text: &str, limit: usize) -> Result<(), Refusal> {
    if text.len() > limit || text.contains('\0') {
        return Err(Refusal::Text { field, length: text.len(), limit });
    }
    Ok(())
}

/// The numbers of `gt_score` or `distributions` as a file of this project writes them.
pub(super) fn stated_opinion(fields: &mut Map<String, Value>) -> Result<Opinion, Refusal> {
    let raters = match fields.shift_remove("raters") {
        None | Some(Value::Null) => 1,
        Some(value) => u32::try_from(count("raters", &value)?)
            .map_err(|_| Refusal::TooManyRaters(value.as_u64().unwrap_or(u64::MAX)))?,
    };
    Ok(Opinion {
        scores: number_or_list("scores", fields.shift_remove("scores"))?,
        distributions: list_or_lists("distributions", fields.shift_remove("distributions"), number)?,
        raters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use time::macros::datetime;

    const SCALE: Scale = Scale { min_score: 1.0, max_score: 10.0, num_tokens: 10 };
    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

    fn read(record: &Value) -> Result<Vote, Refusal> {
        let stamped = datetime!(2026-11-24 11:00:00.123_456_789 UTC);
        Vote::from_record(record.to_string().as_bytes(), Some(stamped), &SCALE, NOW)
    }

    fn record() -> Value {
        json!({"bucket": "photos", "key": "a b.jpg", "etag": "\"e1\"", "rater": "ann", "score": 7.5,
               "labelled_at": "2026-11-23T06:44:00.5+01:00"})
    }

    #[test]
    fn every_field_of_a_record_is_read() {
        let vote = read(&record()).unwrap();
        let object = LabelledObject { bucket: "photos".into(), key: "a b.jpg".into(), etag: "e1".into() };
        assert_eq!(vote.object, object);
        assert_eq!((vote.rater.as_str(), vote.opinion), ("ann", Opinion::of_scores(vec![7.5])));
        assert_eq!(vote.labelled_at, datetime!(2026-11-23 05:44:00.5 UTC));
        assert_eq!(vote.labelled_at.offset(), time::UtcOffset::UTC);
    }

    #[test]
    fn a_record_without_a_time_has_that_of_its_record() {
        let mut record = record();
        record["labelled_at"] = Value::Null;
        assert_eq!(read(&record).unwrap().labelled_at, datetime!(2026-11-24 11:00:00.123_456 UTC));
    }

    #[test]
    fn votes_by_bin_are_many_raters() {
        let mut record = record();
        record["score"] = Value::Null;
        record["votes"] = json!([0, 0, 0, 0, 1, 3, 0, 0, 0, 0]);
        let vote = read(&record).unwrap();
        assert_eq!((vote.opinion.raters, vote.opinion.scores[0]), (4, 5.75));
    }

    #[test]
    fn several_scores_need_an_answer_that_has_them() {
        let mut several = record();
        several["score"] = json!([7.5, 3.0]);
        assert_eq!(read(&several), Err(Refusal::Attributes { scores: 2, tokens: 1 }));
        several["conversations"] = json!([
            {"from": "human", "value": "<|image|>Rate colour and light."},
            {"from": "gpt", "value": "Colour is [SCORE], light is [SCORE]."},
        ]);
        assert_eq!(read(&several).unwrap().opinion.scores, [7.5, 3.0]);
        several["votes"] = json!([vec![1; 10], vec![1; 10]]);
        assert_eq!(read(&several), Err(Refusal::ScoreAndVotes));
    }

    #[test]
    fn nonsense_is_refused_with_a_remedy() {
        for (field, value, expected) in [
            ("bucket", Value::Null, "bucket is missing"),
            ("key", json!(""), "key is missing"),
            ("key", json!("a\u{0}b"), "holds a NUL"),
            ("key", json!("k".repeat(1025)), "more than 1024"),
            ("rater", json!(7), "rater: expected text, found a number"),
            ("rater", Value::Null, "rater is missing"),
            ("score", json!(10.5), "score 10.5 is outside 1 to 10"),
            ("score", json!("7"), "score: expected a number"),
            ("score", Value::Null, "score is missing"),
            ("votes", json!(vec![1; 10]), "both score and votes"),
            ("labelled_at", json!("yesterday"), "\"yesterday\" is no time"),
            ("labelled_at", json!("2026-11-26"), "more than a day ahead"),
        ] {
            let mut wrong = record();
            wrong[field] = value;
            let error = read(&wrong).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("; "), "{field}: {error}");
        }
        for (votes, expected) in [
            (json!(vec![1; 9]), "9 bins, but a score has 10"),
            (json!(vec![0; 10]), "nobody has voted"),
            (json!([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1]), "no number of raters"),
            (json!([0.5, 0, 0, 0, 0, 0, 0, 0, 0, 1]), "no number of raters"),
        ] {
            let mut wrong = record();
            wrong["score"] = Value::Null;
            wrong["votes"] = votes;
            assert!(read(&wrong).unwrap_err().to_string().contains(expected), "{expected}");
        }
        for bytes in [&b"{"[..], b"[]", b"\xff", b""] {
            assert!(matches!(Vote::from_record(bytes, None, &SCALE, NOW), Err(Refusal::Json(_))));
        }
    }
}
