//! The output record, schema version 1: one for every input item that came to an end.

use super::trace::TraceContext;
use super::{Header, Position, WireRecord};
use crate::fault::ItemError;
use crate::object::{ObjectRef, ScoreId};
use crate::score::{ItemStatus, ModelVersion};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The value of an output record. Fields are written in this order; absent ones are `null`.
///
/// Scores go through JSON as shortest round-trip decimals, so a reader gets the same `f64`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputRecord {
    /// Schema version.
    pub v: u32,
    pub id: ScoreId,
    pub status: ItemStatus,
    /// `None` only for a record too malformed to name an object; so is `key`.
    pub bucket: Option<String>,
    pub key: Option<String>,
    pub version_id: Option<String>,
    pub etag: Option<String>,
    pub sequencer: Option<String>,
    /// Bytes of the object.
    pub size: Option<u64>,
    /// Pixels of the image as stored.
    pub width: Option<u32>,
    pub height: Option<u32>,
    /// The first of `scores`.
    pub score: Option<f64>,
    /// One for each score token of the answer; empty unless `scored`.
    pub scores: Vec<f64>,
    /// For each of `scores`, the probability of every score bin.
    pub distributions: Vec<Vec<f32>>,
    /// The model's answer.
    pub text: Option<String>,
    pub model: String,
    pub model_version: String,
    pub preprocess_rev: u32,
    /// Whether the score was there before: that of this very object, or of another one with identical bytes.
    pub reused: bool,
    /// Tries it took, the last one included.
    pub attempts: u32,
    pub error: Option<ItemError>,
    /// `None` for an item that came over HTTP.
    pub source: Option<Position>,
    #[serde(with = "millisecond_rfc3339")]
    pub scored_at: OffsetDateTime,
}

impl OutputRecord {
    /// The only schema version there is.
    pub const SCHEMA: u32 = 1;

    /// A record with everything known before an item is worked on; the caller sets the rest.
    pub fn new(
        id: ScoreId,
        status: ItemStatus,
        object: Option<&ObjectRef>,
        model: &ModelVersion,
        source: impl Into<Option<Position>>,
        scored_at: OffsetDateTime,
    ) -> Self {
        Self {
            v: Self::SCHEMA,
            id,
            status,
            bucket: object.map(|object| object.bucket.clone()),
            key: object.map(|object| object.key.clone()),
            version_id: object.and_then(|object| object.version_id.clone()),
            etag: object.and_then(|object| object.etag.clone()),
            sequencer: object.and_then(|object| object.sequencer.clone()),
            size: object.and_then(|object| object.size),
            width: None,
            height: None,
            score: None,
            scores: Vec::new(),
            distributions: Vec::new(),
            text: None,
            model: model.model.clone(),
            model_version: model.version.clone(),
            preprocess_rev: model.preprocess_revision,
            reused: false,
            attempts: 1,
            error: None,
            source: source.into(),
            scored_at,
        }
    }

    /// Key, value and headers as they are produced.
    ///
    /// The key is `bucket/key`; for a record too malformed to name an object it is `record_key`, the
    /// input record's own. Where the whole would be larger than `limit` bytes, detail goes first
    /// (distributions, then text), so that a small topic limit costs detail and never an output.
    pub fn encode(
        &self,
        record_key: Option<&[u8]>,
        trace: &TraceContext,
        limit: usize,
    ) -> Result<WireRecord, serde_json::Error> {
        let full = self.encode_whole(record_key, trace)?;
        if full.encoded_len() <= limit {
            return Ok(full);
        }
        let mut trimmed = self.clone();
        trimmed.distributions.clear();
        let without_distributions = trimmed.encode_whole(record_key, trace)?;
        if without_distributions.encoded_len() <= limit {
            return Ok(without_distributions);
        }
        trimmed.text = None;
        trimmed.encode_whole(record_key, trace)
    }

    fn encode_whole(
        &self,
        record_key: Option<&[u8]>,
        trace: &TraceContext,
    ) -> Result<WireRecord, serde_json::Error> {
        let key = match (&self.bucket, &self.key) {
            (Some(bucket), Some(key)) => Some(format!("{bucket}/{key}").into_bytes()),
            _ => record_key.map(<[u8]>::to_vec),
        };
        let mut headers = vec![
            Header::new("id", self.id.to_string()),
            Header::new("status", self.status.as_str()),
            Header::new("content-type", "application/json"),
        ];
        headers.extend(trace.headers());
        Ok(WireRecord { key, payload: Some(serde_json::to_vec(self)?), headers })
    }
}

/// RFC 3339 in UTC with milliseconds, such as `2026-11-23T05:44:00.123Z`.
mod millisecond_rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _, ser::Error as _};
    use time::format_description::BorrowedFormatItem;
    use time::format_description::well_known::Rfc3339;
    use time::macros::format_description;
    use time::{OffsetDateTime, UtcOffset};

    const FORMAT: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

    pub fn serialize<S: Serializer>(moment: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
        let text = moment.to_offset(UtcOffset::UTC).format(FORMAT).map_err(S::Error::custom)?;
        serializer.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OffsetDateTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        OffsetDateTime::parse(&text, &Rfc3339).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{ErrorCode, Stage};
    use crate::record::header_text;
    use proptest::prelude::*;
    use time::macros::datetime;

    fn model() -> ModelVersion {
        ModelVersion { model: "mplug_owl2".into(), version: "sha256:ab".into(), preprocess_revision: 3 }
    }

    fn source() -> Position {
        Position { topic: "uploads".into(), partition: 7, offset: 123_456, item: 0 }
    }

    fn scored() -> OutputRecord {
        let mut object = ObjectRef::new("b", "a/ü +.jpg");
        object.etag = Some("9b2c".into());
        object.size = Some(482_113);
        let id = ScoreId::derive(&object, &model());
        let at = datetime!(2026-11-23 05:44:00.1234 UTC);
        let mut record = OutputRecord::new(id, ItemStatus::Scored, Some(&object), &model(), source(), at);
        record.score = Some(0.1 + 0.2);
        record.scores = vec![0.1 + 0.2];
        record.distributions = vec![vec![0.25; 40]];
        record.text = Some("The aesthetic rate of the image is 0.3000 .".into());
        record
    }

    #[test]
    fn the_fields_stand_in_the_documented_order() {
        let wire = scored().encode(None, &TraceContext::root(), usize::MAX).unwrap();
        let text = String::from_utf8(wire.payload.unwrap()).unwrap();
        let order = [
            "\"v\":1,",
            "\"id\":",
            "\"status\":\"scored\"",
            "\"bucket\":",
            "\"key\":",
            "\"version_id\":null",
            "\"etag\":",
            "\"sequencer\":null",
            "\"size\":482113",
            "\"score\":0.30000000000000004,",
            "\"scores\":[",
            "\"distributions\":[[",
            "\"text\":",
            "\"model\":",
            "\"model_version\":",
            "\"preprocess_rev\":3",
            "\"reused\":false",
            "\"attempts\":1",
            "\"error\":null",
            "\"source\":{\"topic\":\"uploads\",\"partition\":7,\"offset\":123456,\"item\":0}",
            "\"scored_at\":\"2026-11-23T05:44:00.123Z\"",
        ];
        let mut last = 0;
        for field in order {
            let at = text.find(field).unwrap_or_else(|| panic!("{field} is missing in {text}"));
            assert!(at >= last, "{field} is out of order in {text}");
            last = at;
        }
    }

    #[test]
    fn the_key_and_headers_are_the_documented_ones() {
        let record = scored();
        let trace = TraceContext::root();
        let wire = record.encode(Some(b"other"), &trace, usize::MAX).unwrap();
        assert_eq!(wire.key.as_deref(), Some("b/a/ü +.jpg".as_bytes()));
        assert_eq!(header_text(&wire.headers, "id"), Some(record.id.to_string().as_str()));
        assert_eq!(header_text(&wire.headers, "status"), Some("scored"));
        assert_eq!(header_text(&wire.headers, "content-type"), Some("application/json"));
        assert_eq!(header_text(&wire.headers, "traceparent"), Some(trace.to_string().as_str()));
    }

    #[test]
    fn a_malformed_record_keeps_its_own_key() {
        let id = ScoreId::of_position("uploads", 7, 123_456, 0);
        let at = OffsetDateTime::UNIX_EPOCH;
        let mut record = OutputRecord::new(id, ItemStatus::Rejected, None, &model(), source(), at);
        record.error = Some(ItemError::new(ErrorCode::MalformedEvent, Stage::Parse, "no JSON"));
        let wire = record.encode(Some(&[0xff, 0]), &TraceContext::root(), usize::MAX).unwrap();
        assert_eq!(wire.key, Some(vec![0xff, 0]));
        let value: serde_json::Value = serde_json::from_slice(&wire.payload.unwrap()).unwrap();
        assert!(value["bucket"].is_null() && value["key"].is_null() && value["score"].is_null());
        assert_eq!(value["error"]["code"], "malformed_event");
        assert_eq!(value["error"]["stage"], "parse");
    }

    #[test]
    fn detail_gives_way_to_the_limit() {
        let trace = TraceContext::root();
        let full = scored().encode(None, &trace, usize::MAX).unwrap();
        let trimmed = scored().encode(None, &trace, full.encoded_len() - 1).unwrap();
        let read: OutputRecord = serde_json::from_slice(&trimmed.payload.unwrap()).unwrap();
        assert!(read.distributions.is_empty() && read.text.is_some());
        assert_eq!(read.score, scored().score);
        let least = scored().encode(None, &trace, 0).unwrap();
        let read: OutputRecord = serde_json::from_slice(&least.payload.unwrap()).unwrap();
        assert!(read.text.is_none() && read.score.is_some());
    }

    proptest! {
        #[test]
        fn scores_survive_json(score in -1e6_f64..1e6, distribution in proptest::collection::vec(0.0_f32..1.0, 0..20)) {
            let mut record = scored();
            record.score = Some(score);
            record.scores = vec![score];
            record.distributions = vec![distribution];
            let wire = record.encode(None, &TraceContext::root(), usize::MAX).unwrap();
            let read: OutputRecord = serde_json::from_slice(&wire.payload.unwrap()).unwrap();
            prop_assert_eq!(read.score.unwrap().to_bits(), score.to_bits());
            prop_assert_eq!(read.scores, record.scores);
            prop_assert_eq!(read.distributions, record.distributions);
        }
    }
}
