//! `republish`: outputs for rows that have none, such as after an unclean leader election.
//!
//! A row lacks its output only if the worker has committed the record that it came from; before that
//! the worker itself will emit it, sooner or later. So the committed offsets are read first, then the
//! output topic to its end, then the rows: a worker that goes on meanwhile can't be taken for a loss.

use super::error::RecoveryError;
use super::since::milliseconds;
use super::{Report, RepublishArgs};
use crate::config::Config;
use crate::image::PREPROCESS_REVISION;
use crate::kafka::batch_writer::{BatchWriter, committed_offsets, settings_of_command};
use crate::kafka::offsets::CommitMetadata;
use crate::kafka::reader::{Start, TopicReader, spans};
use crate::kafka::{self, KafkaSettings, StagedRecord, TopicPartition, admin};
use crate::object::ScoreId;
use crate::record::output::OutputRecord;
use crate::record::trace::TraceContext;
use crate::record::{Position, WireRecord};
use crate::score::ModelVersion;
use crate::store::{SourcePosition, Store, StoredScore};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

/// Rows of one page, and outputs of one transaction at most.
const PAGE: u32 = 500;
/// For the question how large records of the output topic may be.
const LIMIT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// Outputs are read from so much earlier than the rows: clocks differ.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// Emits what `args` asks for.
///
/// # Errors
/// When Kafka or Postgres does not answer or refuses. Every batch that was written stays, and a
/// further run finds it in the topic.
pub async fn run(config: &Config, args: &RepublishArgs) -> Result<Report, RecoveryError> {
    config.kafka.check()?;
    let limit = admin::record_limit(&config.kafka, LIMIT_TIMEOUT).await;
    let settings = KafkaSettings { max_record_bytes: limit, ..config.kafka.clone() };
    let since = args.since.map(|since| since.resolve(OffsetDateTime::now_utc()));
    let store = Store::connect(&config.postgres).await?;
    let dry_run = args.dry_run;
    let (mut writer, known) = blocking(move || {
        // First, so that no other run commits anything after the topic has been read.
        let writer = match dry_run {
            true => None,
            false => Some(BatchWriter::open(&settings_of_command(&settings, "republish"))?),
        };
        Ok::<_, RecoveryError>((writer, Known::read(&settings, since)?))
    })
    .await??;
    let mut report = Report::new("outputs written", dry_run);
    let topic: Arc<str> = config.kafka.output_topic.as_str().into();
    let mut after = None;
    loop {
        let rows = store.rows_by_id(since, after, PAGE).await?;
        let Some(last) = rows.last() else { break };
        after = Some(last.row.id);
        let mut batch = Vec::new();
        for stored in &rows {
            match known.judge(stored.row.source.as_ref()) {
                Judgement::Emitted => {}
                Judgement::Left(reason) => report.left(reason),
                Judgement::NoSource => {
                    report.refuse(
                        "without a source",
                        stored.row.id,
                        "the row does not say which record it is of",
                    );
                }
                Judgement::Missing(position) => {
                    let record = output_of(stored, position, limit as usize)?;
                    let staged = Arc::new(StagedRecord { topic: Arc::clone(&topic), record });
                    batch.push((staged, stored.row.status));
                }
            }
        }
        if !batch.is_empty()
            && let Some(open) = writer.take()
        {
            let records: Vec<_> = batch.iter().map(|(record, _)| Arc::clone(record)).collect();
            writer = Some(write(open, records).await?);
        }
        for (_, status) in batch {
            report.did(status.as_str());
        }
    }
    store.close().await;
    Ok(report)
}

async fn write(
    mut writer: BatchWriter,
    records: Vec<Arc<StagedRecord>>,
) -> Result<BatchWriter, RecoveryError> {
    blocking(move || writer.write(&records, &[]).map(|()| writer)).await?.map_err(RecoveryError::Kafka)
}

/// Runs what blocks where it holds up no other task.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RecoveryError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| RecoveryError::Thread(error.to_string()))
}

/// What Kafka knows of the records that rows came from.
struct Known {
    /// Of each partition of the topics that the worker reads, if the group has committed there: the
    /// first offset that is not, and those beyond it that are.
    committed: HashMap<TopicPartition, Option<(i64, CommitMetadata)>>,
    /// Hashes of the positions that have an output.
    emitted: HashSet<ScoreId>,
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Emitted,
    Missing(Position),
    Left(&'static str),
    NoSource,
}

/// What is needed of an output.
#[derive(Deserialize)]
struct OutputSource {
    source: Position,
}

impl Known {
    fn read(settings: &KafkaSettings, since: Option<OffsetDateTime>) -> Result<Self, kafka::Error> {
        let mut sources = Vec::new();
        for topic in settings.scored_topics() {
            sources.extend(spans(settings, topic, Start::Beginning)?.into_iter().map(|span| span.source));
        }
        let found = committed_offsets(settings, &sources)?;
        let committed = found
            .into_iter()
            .map(|found| found.map(|(base, metadata)| (base, CommitMetadata::decode(&metadata, base))));
        let committed = sources.into_iter().zip(committed).collect();
        let start = since.map_or(Start::Beginning, |since| Start::Since(milliseconds(since - CLOCK_SKEW)));
        let mut reader = TopicReader::open(settings, &spans(settings, &settings.output_topic, start)?)?;
        let mut emitted = HashSet::new();
        let mut unreadable = 0_u64;
        while let Some(read) = reader.next_record()? {
            let payload = read.record.payload.as_deref().unwrap_or_default();
            match serde_json::from_slice::<OutputSource>(payload) {
                Ok(OutputSource { source }) => {
                    emitted.insert(id_of(&source.topic, source.partition, source.offset, source.item));
                }
                Err(_) => unreadable += 1,
            }
        }
        tracing::info!(outputs = emitted.len(), unreadable, "the output topic has been read");
        Ok(Self { committed, emitted })
    }

    fn judge(&self, source: Option<&SourcePosition>) -> Judgement {
        let Some(source) = source else { return Judgement::NoSource };
        let SourcePosition { topic, partition, offset, item } = source;
        if self.emitted.contains(&id_of(topic, *partition, *offset, *item)) {
            return Judgement::Emitted;
        }
        match self.committed.get(&TopicPartition::new(topic.as_str(), *partition)) {
            None => Judgement::Left("from a topic that this configuration does not read"),
            Some(Some((base, metadata))) if offset < base || metadata.done.contains(offset) => {
                let topic = topic.clone();
                Judgement::Missing(Position { topic, partition: *partition, offset: *offset, item: *item })
            }
            Some(_) => Judgement::Left("not committed yet: the worker will emit them"),
        }
    }
}

fn id_of(topic: &str, partition: i32, offset: i64, item: u32) -> ScoreId {
    ScoreId::of_position(topic, partition, offset, item)
}

/// The output as the worker would repeat it for a replayed record. What a row does not hold is absent:
/// the size of the object and the image's width and height.
fn output_of(stored: &StoredScore, position: Position, limit: usize) -> Result<WireRecord, RecoveryError> {
    let row = &stored.row;
    let model = ModelVersion {
        model: row.model.clone(),
        version: row.model_version.clone(),
        // Rows of releases that read pixels in one way only do not name it.
        preprocess_revision: row.preprocess_revision.unwrap_or(PREPROCESS_REVISION),
    };
    let mut output =
        OutputRecord::new(row.id, row.status, row.object.as_ref(), &model, position, row.scored_at);
    output.score = row.score;
    output.scores.clone_from(&row.scores);
    output.distributions.clone_from(&row.distributions);
    output.text.clone_from(&row.text);
    output.error.clone_from(&row.error);
    output.reused = true;
    output
        .encode(None, &TraceContext::root(), limit)
        .map_err(|error| RecoveryError::Encoding { id: row.id.to_string(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn source(offset: i64, item: u32) -> SourcePosition {
        SourcePosition { topic: "uploads".into(), partition: 0, offset, item }
    }

    #[test]
    fn only_a_committed_record_without_an_output_lacks_one() {
        let metadata = CommitMetadata { starts: 0, done: BTreeSet::from([12]) };
        let known = Known {
            committed: HashMap::from([
                (TopicPartition::new("uploads", 0), Some((10, metadata))),
                (TopicPartition::new("uploads", 1), None),
            ]),
            emitted: HashSet::from([id_of("uploads", 0, 3, 0), id_of("uploads", 0, 11, 0)]),
        };
        assert_eq!(known.judge(Some(&source(3, 0))), Judgement::Emitted);
        assert_eq!(known.judge(Some(&source(11, 0))), Judgement::Emitted);
        assert!(
            matches!(known.judge(Some(&source(3, 1))), Judgement::Missing(position) if position.item == 1)
        );
        assert!(matches!(known.judge(Some(&source(9, 0))), Judgement::Missing(_)));
        assert!(matches!(known.judge(Some(&source(12, 0))), Judgement::Missing(_)));
        for offset in [10, 13] {
            assert!(matches!(known.judge(Some(&source(offset, 0))), Judgement::Left(_)), "{offset}");
        }
        let elsewhere = SourcePosition { topic: "old".into(), ..source(1, 0) };
        assert!(matches!(known.judge(Some(&elsewhere)), Judgement::Left(_)));
        let unread = SourcePosition { partition: 1, ..source(1, 0) };
        assert!(matches!(known.judge(Some(&unread)), Judgement::Left(_)));
        assert_eq!(known.judge(None), Judgement::NoSource);
    }
}
