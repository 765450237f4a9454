//! One row of `scores`.

use crate::failpoint::Rule;
use crate::fault::ItemError;
use crate::object::{ContentDigest, ObjectRef, ScoreId};
use crate::score::{Answer, ItemStatus, ModelVersion};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use std::collections::HashMap;
use time::OffsetDateTime;
use uuid::Uuid;

/// Where in Kafka the item was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePosition {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Index within the record.
    pub item: u32,
}

/// One item's terminal state, as it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRow {
    pub id: ScoreId,
    /// `None` where the record was too malformed to name one.
    ///
    /// A deletion that names a version marks that version alone.
    pub object: Option<ObjectRef>,
    pub model: String,
    pub model_version: String,
    pub status: ItemStatus,
    /// Set if, and only if, the status is scored.
    pub score: Option<f64>,
    /// One per `[SCORE]`; empty unless scored.
    pub scores: Vec<f64>,
    /// Bin probabilities, one list per score.
    pub distributions: Vec<Vec<f32>>,
    /// The model's answer, where there was one.
    pub text: Option<String>,
    pub error: Option<ItemError>,
    /// Of the bytes that were scored, where they are known.
    pub content: Option<ContentDigest>,
    /// The way in which pixels were read; `None` in rows of releases that did not say.
    pub preprocess_revision: Option<u32>,
    /// In whole milliseconds, so that the output and Postgres agree on it.
    pub scored_at: OffsetDateTime,
    pub source: Option<SourcePosition>,
}

/// What a row keeps of a model's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownAnswer {
    /// One per `[SCORE]`; never empty.
    pub scores: Vec<f64>,
    /// Bin probabilities, one list per score.
    pub distributions: Vec<Vec<f32>>,
    pub text: Option<String>,
}

impl From<&Answer> for KnownAnswer {
    fn from(answer: &Answer) -> Self {
        Self {
            scores: answer.scores.iter().map(|value| value.score).collect(),
            distributions: answer.scores.iter().map(|value| value.distribution.clone()).collect(),
            text: Some(answer.text.clone()),
        }
    }
}

impl ScoreRow {
    /// The row of an item that the model scored.
    pub fn scored(
        id: ScoreId,
        object: ObjectRef,
        model: &ModelVersion,
        answer: &Answer,
        source: Option<SourcePosition>,
    ) -> Self {
        Self::known(id, object, model, answer.into(), None, source)
    }

    /// The row of an item whose content has a score, of this item or of another one.
    pub fn known(
        id: ScoreId,
        object: ObjectRef,
        model: &ModelVersion,
        answer: KnownAnswer,
        content: Option<ContentDigest>,
        source: Option<SourcePosition>,
    ) -> Self {
        let KnownAnswer { scores, distributions, text } = answer;
        Self {
            score: scores.first().copied(),
            scores,
            distributions,
            text,
            content,
            ..Self::unscored(id, Some(object), model, ItemStatus::Scored, None, source)
        }
    }

    /// The row of an item that ended without a score.
    pub fn unscored(
        id: ScoreId,
        object: Option<ObjectRef>,
        model: &ModelVersion,
        status: ItemStatus,
        error: Option<ItemError>,
        source: Option<SourcePosition>,
    ) -> Self {
        Self {
            id,
            object,
            model: model.model.clone(),
            model_version: model.version.clone(),
            status,
            score: None,
            scores: Vec::new(),
            distributions: Vec::new(),
            text: None,
            error,
            content: None,
            preprocess_revision: Some(model.preprocess_revision),
            scored_at: now(),
            source,
        }
    }

    /// The sequencer as the column holds it: two sequencers of one key compare as byte strings
    /// once the shorter one is padded with zeros on the right (S3 documentation, event message
    /// structure).
    pub(super) fn padded_sequencer(&self) -> Option<String> {
        let sequencer = self.object.as_ref()?.sequencer.as_ref()?;
        Some(format!("{sequencer:0<32}"))
    }
}

/// What the table holds for an id.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredScore {
    /// Its sequencer is padded, its object has no size.
    pub row: ScoreRow,
    /// Set once the object is known to be removed.
    pub deleted_at: Option<OffsetDateTime>,
    /// Whether an earlier write, not the caller's row, is what counts.
    pub reused: bool,
}

impl StoredScore {
    /// The names that [`Self::read`] expects, as a `SELECT` list.
    pub(super) const COLUMNS: &'static str = "id, bucket, object_key, version_id, etag, sequencer, model, \
        model_version, status, score, scores, distributions, text, error, content_sha256, \
        preprocess_revision, scored_at, deleted_at, \
        source_topic, source_partition, source_offset, source_item";

    pub(super) fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let bucket: Option<String> = row.try_get("bucket")?;
        let key: Option<String> = row.try_get("object_key")?;
        let object = match (bucket, key) {
            (Some(bucket), Some(key)) => Some(ObjectRef {
                bucket,
                key,
                version_id: row.try_get("version_id")?,
                etag: row.try_get("etag")?,
                size: None,
                sequencer: row.try_get("sequencer")?,
            }),
            _ => None,
        };
        let status: String = row.try_get("status")?;
        let scores: Option<Vec<f64>> = row.try_get("scores")?;
        let distributions: Option<Json<Vec<Vec<f32>>>> = row.try_get("distributions")?;
        let error: Option<Json<ItemError>> = row.try_get("error")?;
        let (topic, item): (Option<String>, Option<i32>) =
            (row.try_get("source_topic")?, row.try_get("source_item")?);
        let source = match (topic, row.try_get("source_partition")?, row.try_get("source_offset")?) {
            (Some(topic), Some(partition), Some(offset)) => Some(SourcePosition {
                topic,
                partition,
                offset,
                item: item.and_then(|item| u32::try_from(item).ok()).unwrap_or_default(),
            }),
            _ => None,
        };
        let id: Uuid = row.try_get("id")?;
        let content: Option<Vec<u8>> = row.try_get("content_sha256")?;
        let revision: Option<i32> = row.try_get("preprocess_revision")?;
        Ok(Self {
            row: ScoreRow {
                id: ScoreId(id),
                object,
                model: row.try_get("model")?,
                model_version: row.try_get("model_version")?,
                status: status.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
                score: row.try_get("score")?,
                scores: scores.unwrap_or_default(),
                distributions: distributions.map(|Json(lists)| lists).unwrap_or_default(),
                text: row.try_get("text")?,
                error: error.map(|Json(error)| error),
                content: content.and_then(|digest| digest.try_into().ok()).map(ContentDigest),
                preprocess_revision: revision.and_then(|revision| u32::try_from(revision).ok()),
                scored_at: row.try_get("scored_at")?,
                source,
            },
            deleted_at: row.try_get("deleted_at")?,
            reused: true,
        })
    }
}

/// One row per id, sorted by id: a duplicate inside one statement is an error in Postgres, and
/// unsorted batches of two writers deadlock. A scored row outranks others of its id; among equals
/// the first one stays, but that the latest deletion counts.
pub(super) fn dedupe(rows: &[ScoreRow]) -> Vec<&ScoreRow> {
    let mut chosen: HashMap<ScoreId, &ScoreRow> = HashMap::with_capacity(rows.len());
    for row in rows {
        let kept = chosen.entry(row.id).or_insert(row);
        let upgrade = row.status == ItemStatus::Scored && kept.status != ItemStatus::Scored;
        let later = row.status == ItemStatus::Deleted
            && kept.status == ItemStatus::Deleted
            && row.padded_sequencer() > kept.padded_sequencer();
        if upgrade || later {
            *kept = row;
        }
    }
    let mut rows: Vec<&ScoreRow> = chosen.into_values().collect();
    if Rule::Sort.holds() {
        rows.sort_by_key(|row| row.id);
    }
    rows
}

fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(now.nanosecond() / 1_000_000 * 1_000_000).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(id: u8, status: ItemStatus, sequencer: Option<&str>) -> ScoreRow {
        let model = ModelVersion { model: "m".into(), version: "1".into(), preprocess_revision: 1 };
        let mut object = ObjectRef::new("b", "k");
        object.sequencer = sequencer.map(str::to_owned);
        let id = ScoreId(Uuid::from_bytes([id; 16]));
        ScoreRow::unscored(id, Some(object), &model, status, None, None)
    }

    #[test]
    fn a_short_sequencer_is_padded_on_the_right() {
        let padded = row(1, ItemStatus::Scored, Some("0055AED6DCD90281E5")).padded_sequencer().unwrap();
        assert_eq!(padded, "0055AED6DCD90281E500000000000000");
        assert_eq!(row(1, ItemStatus::Scored, None).padded_sequencer(), None);
        let long = "F".repeat(40);
        assert_eq!(row(1, ItemStatus::Scored, Some(&long)).padded_sequencer().unwrap(), long);
    }

    #[test]
    fn times_have_whole_milliseconds() {
        assert_eq!(now().nanosecond() % 1_000_000, 0);
    }

    #[test]
    fn the_latest_deletion_of_a_batch_counts() {
        let rows = [
            row(1, ItemStatus::Deleted, Some("1")),
            row(1, ItemStatus::Deleted, Some("3")),
            row(1, ItemStatus::Deleted, Some("2")),
        ];
        assert_eq!(dedupe(&rows), [&rows[1]]);
    }

    proptest! {
        #[test]
        fn dedupe_sorts_keeps_each_id_once_and_prefers_scored(
            items in proptest::collection::vec((0_u8..8, proptest::bool::ANY), 0..40),
        ) {
            let status = |scored| if scored { ItemStatus::Scored } else { ItemStatus::Rejected };
            let rows: Vec<ScoreRow> = items.iter().map(|&(id, scored)| row(id, status(scored), None)).collect();
            let kept = dedupe(&rows);
            prop_assert!(kept.windows(2).all(|pair| pair[0].id < pair[1].id));
            for row in &rows {
                let of_id: Vec<_> = kept.iter().filter(|kept| kept.id == row.id).collect();
                prop_assert_eq!(of_id.len(), 1);
                let any_scored = rows.iter().any(|other| other.id == row.id && other.status == ItemStatus::Scored);
                prop_assert_eq!(of_id[0].status == ItemStatus::Scored, any_scored);
            }
        }
    }
}
