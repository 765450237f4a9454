//! From what is stored of an item to the records that say so.

use super::Routes;
use crate::{
    fault::{ErrorCode, ItemError},
    kafka::{ConsumedRecord, StagedRecord},
    object::ObjectRef,
    record::{
        Position,
        dead_letter::{Cause, DeadLetterClass, Original, dead_letter},
        output::OutputRecord,
        trace::TraceContext,
    },
    score::{ItemStatus, ModelVersion},
    store::{ScoreRow, StoredScore},
    telemetry::metrics::ReuseSource,
};
use std::sync::Arc;

/// What is known of an item at its end, beside its row.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// As the event and the fetched object name it; the row's has neither size nor raw sequencer.
    pub object: Option<ObjectRef>,
    /// Width and height of the decoded image.
    pub pixels: Option<(u32, u32)>,
    /// Where its score came from, if not from the model.
    pub reused: Option<ReuseSource>,
    pub attempts: u32,
    /// Milliseconds since the Unix epoch of the first failed attempt.
    pub first_failed_ms: Option<i64>,
}

/// The output record and, for an item that is rejected or dead, the dead letter.
///
/// # Errors
/// When the output cannot be written as JSON, which no stored value causes.
pub(super) fn stage(
    stored: &StoredScore,
    facts: Facts,
    preprocess_revision: u32,
    record: &ConsumedRecord,
    position: Position,
    trace: &TraceContext,
    routes: &Routes,
) -> Result<Vec<StagedRecord>, serde_json::Error> {
    let row = &stored.row;
    let model =
        ModelVersion { model: row.model.clone(), version: row.model_version.clone(), preprocess_revision };
    let object = facts.object.as_ref();
    let mut output = OutputRecord::new(row.id, row.status, object, &model, position.clone(), row.scored_at);
    output.score = row.score;
    output.scores.clone_from(&row.scores);
    output.distributions.clone_from(&row.distributions);
    output.text.clone_from(&row.text);
    output.error.clone_from(&row.error);
    output.reused = stored.reused || facts.reused.is_some();
    output.attempts = facts.attempts.max(1);
    (output.width, output.height) = facts.pixels.unzip();
    let encoded = output.encode(record.key.as_deref(), trace, routes.max_record_bytes)?;
    let mut staged = vec![StagedRecord { topic: Arc::clone(&routes.output_topic), record: encoded }];
    if let (Some(class), Some(error)) = (dead_letter_class(row), &row.error) {
        staged.push(letter(record, &position, class, error, &facts, &row.model_version, routes));
    }
    Ok(staged)
}

/// The dead letter of one item.
pub(super) fn letter(
    record: &ConsumedRecord,
    position: &Position,
    class: DeadLetterClass,
    error: &ItemError,
    facts: &Facts,
    model_version: &str,
    routes: &Routes,
) -> StagedRecord {
    let original =
        Original { key: record.key.as_deref(), payload: record.payload.as_deref(), headers: &record.headers };
    let cause = Cause {
        class,
        error,
        position,
        attempts: facts.attempts.max(1),
        first_failed_ms: facts.first_failed_ms.unwrap_or_else(now_ms),
        group: &routes.group,
        worker_version: env!("CARGO_PKG_VERSION"),
        model_version,
    };
    let letter = dead_letter(original, &cause, routes.max_record_bytes);
    StagedRecord { topic: Arc::clone(&routes.dead_letter_topic), record: letter }
}

/// Whether an item that ends so gets a dead letter.
pub(super) fn is_dead_letter(row: &ScoreRow) -> bool {
    dead_letter_class(row).is_some()
}

fn dead_letter_class(row: &ScoreRow) -> Option<DeadLetterClass> {
    match row.status {
        ItemStatus::Rejected if row.error.as_ref().is_some_and(|error| error.code == ErrorCode::Poison) => {
            Some(DeadLetterClass::Poison)
        }
        ItemStatus::Rejected => Some(DeadLetterClass::Rejected),
        ItemStatus::Dead => Some(DeadLetterClass::Dead),
        // An object that is gone is nobody's mistake: there is nothing to redrive.
        ItemStatus::Scored | ItemStatus::Gone | ItemStatus::Deleted => None,
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn now_ms() -> i64 {
    let now = time::OffsetDateTime::now_utc();
    now.unix_timestamp() * 1000 + i64::from(now.millisecond())
}

/// An error that names the object in front of its message.
pub(super) fn named(object: &ObjectRef, error: ItemError) -> ItemError {
    let name = object.to_string();
    if error.message.contains(&name) {
        return error;
    }
    ItemError::new(error.code, error.stage, format!("{name}: {}", error.message))
}
