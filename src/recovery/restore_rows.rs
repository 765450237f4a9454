//! `backfill-pg`: rows for outputs that have none, such as after a failover to a standby that lagged.

use super::since::milliseconds;
use super::{RecoveryError, Report, RestoreRowsArgs};
use crate::config::Config;
use crate::fault::Disposition;
use crate::kafka::reader::{ReadRecord, Start, TopicReader, spans};
use crate::object::{ObjectRef, ScoreId};
use crate::record::Position;
use crate::record::output::OutputRecord;
use crate::retry::{RetrySettings, retry};
use crate::score::ItemStatus;
use crate::store::{ScoreRow, SourcePosition, Store, StoreError, StoredScore};
use std::collections::{HashMap, HashSet};
use time::OffsetDateTime;

/// Outputs looked up and rows written at once.
const BATCH: usize = 500;

/// Writes what `args` asks for.
///
/// # Errors
/// When Kafka or Postgres does not answer or refuses. Every row that was written stays, and a further
/// run finds it there.
pub async fn run(config: &Config, args: &RestoreRowsArgs) -> Result<Report, RecoveryError> {
    let settings = config.kafka.clone();
    settings.check()?;
    let store = Store::connect(&config.postgres).await?;
    let start = match args.since {
        Some(since) => Start::Since(milliseconds(since.resolve(OffsetDateTime::now_utc()))),
        None => Start::Beginning,
    };
    let reader = tokio::task::spawn_blocking(move || {
        TopicReader::open(&settings, &spans(&settings, &settings.output_topic, start)?)
    });
    let reader = reader.await.map_err(|error| RecoveryError::Thread(error.to_string()))??;
    let mut records = reader.into_channel();
    let mut restore = Restore {
        store,
        retry: config.retry.clone(),
        batch: Vec::with_capacity(BATCH),
        planned: HashSet::new(),
        report: Report::new("rows written", args.dry_run),
    };
    while let Some(record) = records.recv().await {
        restore.take(record?).await?;
    }
    restore.flush().await?;
    restore.store.close().await;
    Ok(restore.report)
}

struct Restore {
    store: Store,
    retry: RetrySettings,
    /// Of outputs in their order, either all removals or none.
    batch: Vec<ScoreRow>,
    /// In a dry run, what would have been written.
    planned: HashSet<ScoreId>,
    report: Report,
}

impl Restore {
    async fn take(&mut self, read: ReadRecord) -> Result<(), RecoveryError> {
        let row = match row_of(read.record.payload.as_deref()) {
            Ok(row) => row,
            Err(detail) => {
                let name = format!("{}@{}", read.source, read.offset);
                self.report.refuse("no readable output", name, detail);
                return Ok(());
            }
        };
        // A removal marks the rows that are there: those before it must be, those after it not yet.
        let removal = |row: &ScoreRow| row.status == ItemStatus::Deleted;
        let turn = self.batch.last().is_some_and(|last| removal(last) != removal(&row));
        if turn || self.batch.len() >= BATCH {
            self.flush().await?;
        }
        self.batch.push(row);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RecoveryError> {
        let rows = std::mem::take(&mut self.batch);
        let ids: Vec<ScoreId> = rows.iter().map(|row| row.id).collect();
        let found = retry(&self.retry, || self.store.lookup(&ids), passing).await;
        let stored = found.map_err(|gave_up| gave_up.error)?;
        let missing: Vec<ScoreRow> = rows.into_iter().filter(|row| lacks(&stored, row)).collect();
        if self.report.dry_run {
            for row in missing {
                if self.planned.insert(row.id) {
                    self.report.did(row.status.as_str());
                }
            }
            return Ok(());
        }
        let mut pending = vec![missing];
        while let Some(mut rows) = pending.pop() {
            let upserted = retry(&self.retry, || self.store.upsert(&rows), passing).await;
            match upserted.map_err(|gave_up| gave_up.error) {
                Ok(written) => {
                    for stored in written.values().filter(|stored| !stored.reused) {
                        self.report.did(stored.row.status.as_str());
                    }
                }
                Err(error) if error.disposition() != Disposition::Reject => return Err(error.into()),
                Err(_) if rows.len() > 1 => {
                    let second = rows.split_off(rows.len() / 2);
                    pending.extend([second, rows]);
                }
                Err(error) => {
                    for row in rows {
                        self.report.refuse("refused by Postgres", row.id, &error);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Deadlocks and timeouts are waited out; a Postgres that is away ends the command.
fn passing(error: &StoreError) -> Disposition {
    match error.disposition() {
        Disposition::Hold => Disposition::Stop,
        other => other,
    }
}

/// Whether Postgres lacks what the output says.
fn lacks(stored: &HashMap<ScoreId, StoredScore>, row: &ScoreRow) -> bool {
    match stored.get(&row.id) {
        None => true,
        Some(stored) => stored.row.status != ItemStatus::Scored && row.status == ItemStatus::Scored,
    }
}

/// The row that an output was made from, or why it is none.
fn row_of(payload: Option<&[u8]>) -> Result<ScoreRow, String> {
    let payload = payload.ok_or("it has no value")?;
    let output: OutputRecord = serde_json::from_slice(payload)
        .map_err(|error| format!("it is no output of this worker ({error})"))?;
    if output.v != OutputRecord::SCHEMA {
        return Err(format!("it has schema version {}; use the release that knows it", output.v));
    }
    if (output.status == ItemStatus::Scored) != output.score.is_some() {
        return Err(format!("it is {} and its score is {:?}", output.status, output.score));
    }
    let object = output.bucket.zip(output.key).map(|(bucket, key)| ObjectRef {
        bucket,
        key,
        version_id: output.version_id,
        etag: output.etag,
        size: output.size,
        sequencer: output.sequencer,
    });
    let source = output.source.map(|Position { topic, partition, offset, item }| SourcePosition {
        topic,
        partition,
        offset,
        item,
    });
    Ok(ScoreRow {
        id: output.id,
        object,
        model: output.model,
        model_version: output.model_version,
        status: output.status,
        score: output.score,
        scores: output.scores,
        distributions: output.distributions,
        text: output.text,
        error: output.error,
        content: None,
        preprocess_revision: Some(output.preprocess_rev),
        scored_at: output.scored_at,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Position;
    use crate::record::trace::TraceContext;
    use crate::score::ModelVersion;
    use serde_json::{Value, json};

    fn output() -> OutputRecord {
        let model = ModelVersion { model: "m".into(), version: "1".into(), preprocess_revision: 1 };
        let object = ObjectRef { sequencer: Some("0055AE".into()), ..ObjectRef::new("b", "k") };
        let source = Position { topic: "uploads".into(), partition: 3, offset: 9, item: 2 };
        let id = ScoreId::derive(&object, &model);
        let at = OffsetDateTime::UNIX_EPOCH;
        let mut output = OutputRecord::new(id, ItemStatus::Scored, Some(&object), &model, source, at);
        output.score = Some(5.0 + 1.0 / 3.0);
        output.scores = vec![5.0 + 1.0 / 3.0];
        output.distributions = vec![vec![0.25, 0.75]];
        output.text = Some("fine".into());
        output
    }

    fn read(change: impl FnOnce(&mut Value)) -> Result<ScoreRow, String> {
        let mut value = serde_json::to_value(output()).unwrap();
        change(&mut value);
        row_of(Some(value.to_string().as_bytes()))
    }

    #[test]
    fn an_output_gives_its_row_back() {
        let wire = output().encode(None, &TraceContext::root(), usize::MAX).unwrap();
        let row = row_of(wire.payload.as_deref()).unwrap();
        let expected = output();
        assert_eq!((row.id, row.status, row.score), (expected.id, expected.status, expected.score));
        assert_eq!(
            (row.scores, row.distributions, row.text),
            (expected.scores, expected.distributions, expected.text)
        );
        assert_eq!(row.object.unwrap().sequencer.as_deref(), Some("0055AE"));
        assert_eq!(row.source.map(|source| (source.partition, source.offset, source.item)), Some((3, 9, 2)));
        assert_eq!(row.scored_at, expected.scored_at);
    }

    #[test]
    fn what_is_no_output_says_why() {
        assert!(row_of(None).unwrap_err().contains("no value"));
        assert!(row_of(Some(b"{}")).unwrap_err().contains("no output"));
        assert!(read(|value| value["v"] = json!(2)).unwrap_err().contains("version 2"));
        assert!(read(|value| value["score"] = Value::Null).unwrap_err().contains("None"));
        assert!(read(|value| value["status"] = json!("rejected")).is_err());
    }
}
