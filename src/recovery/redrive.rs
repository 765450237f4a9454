//! `redrive`: dead letters go back to the topic they came from.
//!
//! The records that go back and what they leave done of the dead-letter topic are one transaction,
//! under a group and a transactional id of the command's own (`{group}-redrive`). So a run that is
//! killed puts nothing back twice, and of two runs at once the later one shuts the earlier one out.

use super::pending::Pending;
use super::since::milliseconds;
use super::{RecoveryError, RedriveArgs, Report};
use crate::kafka::batch_writer::{BatchWriter, CommitOffset, committed_offsets, settings_of_command};
use crate::kafka::reader::{ReadRecord, Span, Start, TopicReader, spans};
use crate::kafka::{KafkaSettings, StagedRecord, TopicPartition};
use crate::record::dead_letter::{DeadLetterClass, Label, redriven};
use crate::record::{Position, WireRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use time::OffsetDateTime;

/// How often one record may be put back.
pub const MAX_REDRIVES: u32 = 3;
/// The highest limit that librdkafka takes for a producer.
const LARGEST_RECORD: u32 = 1_000_000_000;
/// Letters in one transaction at most, and their bytes.
const BATCH_LETTERS: usize = 500;
const BATCH_BYTES: usize = 4 << 20;

/// Puts back what `args` asks for of `settings.dead_letter_topic`, up to its end as it is now; blocks.
///
/// # Errors
/// When Kafka does not answer or refuses, or the bookkeeping is of another release. What was put back
/// before is committed, and a further run goes on behind it.
pub fn run(settings: &KafkaSettings, args: &RedriveArgs) -> Result<Report, RecoveryError> {
    settings.check()?;
    let own = KafkaSettings {
        // What goes back fitted its topic before, whatever limit workers keep for what they write.
        max_record_bytes: LARGEST_RECORD,
        ..settings_of_command(settings, "redrive")
    };
    // First, so that no other run commits anything after the offsets have been read.
    let writer = if args.dry_run { None } else { Some(BatchWriter::open(&own)?) };
    let spans = spans(settings, &settings.dead_letter_topic, Start::Beginning)?;
    let sources: Vec<TopicPartition> = spans.iter().map(|span| span.source.clone()).collect();
    let committed = committed_offsets(&own, &sources)?;
    let mut partitions = BTreeMap::new();
    let mut wanted = Vec::with_capacity(spans.len());
    for (span, committed) in spans.into_iter().zip(committed) {
        let pending = match &committed {
            None => Pending::from_offset(span.from),
            Some((offset, metadata)) => {
                Pending::decode(*offset, metadata).ok_or_else(|| RecoveryError::Bookkeeping {
                    group: own.group.clone(),
                    source_partition: span.source.to_string(),
                })?
            }
        };
        let pending = pending.within(span.from, span.to);
        let from = pending.base();
        wanted.push(Span { source: span.source.clone(), from, to: span.to });
        partitions.insert(span.source, Partition { pending, committed, scanned: from, to: span.to });
    }
    let mut redrive = Redrive {
        settings: settings.clone(),
        filter: Filter::new(settings, args),
        partitions,
        batch: Vec::new(),
        batch_bytes: 0,
        changed: BTreeSet::new(),
        writer,
        report: Report::new("dead letters put back", args.dry_run),
    };
    let mut reader = TopicReader::open(settings, &wanted)?;
    let limit = args.limit.unwrap_or(u64::MAX);
    while redrive.taken() < limit {
        let Some(letter) = reader.next_record()? else {
            redrive.reached_the_end();
            break;
        };
        redrive.take(&letter)?;
    }
    redrive.finish()?;
    Ok(redrive.report)
}

struct Partition {
    pending: Pending,
    /// As read at the start, or as written since.
    committed: Option<(i64, Vec<u8>)>,
    /// Everything below was looked at by this run.
    scanned: i64,
    to: i64,
}

struct Redrive {
    settings: KafkaSettings,
    filter: Filter,
    partitions: BTreeMap<TopicPartition, Partition>,
    batch: Vec<(Arc<StagedRecord>, String)>,
    batch_bytes: usize,
    /// Partitions whose offsets go with the batch.
    changed: BTreeSet<TopicPartition>,
    /// `None` in a dry run.
    writer: Option<BatchWriter>,
    report: Report,
}

impl Redrive {
    /// Letters put back or about to be.
    fn taken(&self) -> u64 {
        self.report.total() + self.batch.len() as u64
    }

    fn take(&mut self, letter: &ReadRecord) -> Result<(), RecoveryError> {
        let Some(partition) = self.partitions.get_mut(&letter.source) else { return Ok(()) };
        let offset = letter.offset;
        // What lies between two records is none: ends of transactions, and what was compacted away.
        partition.pending.finish(partition.scanned, offset);
        partition.scanned = offset + 1;
        if partition.pending.is_done(offset) {
            return Ok(());
        }
        let name = format!("{}@{offset}", letter.source);
        match self.filter.judge(letter) {
            Judgement::Left(reason) => self.report.left(reason),
            Judgement::Refused { reason, detail } => self.report.refuse(reason, name, detail),
            Judgement::PutBack { label, kind } => {
                let original = match label.points {
                    true => read_original(&self.settings, &label.origin)?,
                    false => Some(letter.record.clone()),
                };
                let Some(original) = original else {
                    let Position { topic, partition, offset, .. } = label.origin;
                    let detail = format!("it only points at {topic}[{partition}]@{offset}, which is deleted");
                    self.report.refuse("original deleted", name, detail);
                    return Ok(());
                };
                let before = partition.pending.clone();
                partition.pending.finish(offset, offset + 1);
                if !partition.pending.fits() {
                    partition.pending = before;
                    let detail = "too many letters around it were left, so that it could not be noted as put \
                                  back; redrive the older ones first, without a filter";
                    self.report.refuse("no room to note it", name, detail);
                    return Ok(());
                }
                self.stage(letter.source.clone(), redriven(&original, &label), &label.origin.topic, kind)?;
            }
        }
        Ok(())
    }

    fn stage(
        &mut self,
        source: TopicPartition,
        record: WireRecord,
        topic: &str,
        kind: String,
    ) -> Result<(), RecoveryError> {
        self.batch_bytes += record.encoded_len();
        self.batch.push((Arc::new(StagedRecord { topic: topic.into(), record }), kind));
        self.changed.insert(source);
        match self.batch.len() >= BATCH_LETTERS || self.batch_bytes >= BATCH_BYTES {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// Nothing but ends of transactions follows the last record of a partition.
    fn reached_the_end(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.pending.finish(partition.scanned, partition.to);
        }
    }

    /// Writes the last batch, and where nothing is left commits the end, so that lag is none.
    fn finish(&mut self) -> Result<(), RecoveryError> {
        for (source, partition) in &self.partitions {
            let (offset, metadata) = partition.pending.encode();
            let known = match &partition.committed {
                Some((offset, metadata)) => (*offset, metadata.as_slice()),
                None => (-1, &b""[..]),
            };
            if metadata.is_empty() && offset == partition.to && known != (offset, b"") {
                self.changed.insert(source.clone());
            }
        }
        self.write()
    }

    fn write(&mut self) -> Result<(), RecoveryError> {
        if let Some(writer) = &mut self.writer
            && !(self.batch.is_empty() && self.changed.is_empty())
        {
            let mut offsets = Vec::with_capacity(self.changed.len());
            for source in &self.changed {
                let Some(partition) = self.partitions.get_mut(source) else { continue };
                let (offset, metadata) = partition.pending.encode();
                partition.committed = Some((offset, metadata.clone().into_bytes()));
                offsets.push(CommitOffset { source: source.clone(), offset, metadata });
            }
            let records: Vec<Arc<StagedRecord>> =
                self.batch.iter().map(|(record, _)| Arc::clone(record)).collect();
            writer.write(&records, &offsets)?;
        }
        for (_, kind) in self.batch.drain(..) {
            self.report.did(kind);
        }
        self.batch_bytes = 0;
        self.changed.clear();
        Ok(())
    }
}

/// The record that a letter only points at; `None` once retention has deleted it.
fn read_original(settings: &KafkaSettings, origin: &Position) -> Result<Option<WireRecord>, RecoveryError> {
    let source = TopicPartition::new(origin.topic.as_str(), origin.partition);
    let spans = spans(settings, &origin.topic, Start::Beginning)?;
    let there = |span: &&Span| span.source == source && (span.from..span.to).contains(&origin.offset);
    let Some(_) = spans.iter().find(there) else { return Ok(None) };
    let one = Span { source, from: origin.offset, to: origin.offset + 1 };
    let read = TopicReader::open(settings, &[one])?.next_record()?;
    Ok(read.map(|read| read.record))
}

/// What a run wants, and where letters may go.
struct Filter {
    class: Option<DeadLetterClass>,
    code: Option<String>,
    since_ms: Option<i64>,
    /// The topics that this configuration reads: a letter goes nowhere else, whatever its header says.
    topics: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    PutBack { label: Label, kind: String },
    Left(&'static str),
    Refused { reason: &'static str, detail: String },
}

impl Filter {
    fn new(settings: &KafkaSettings, args: &RedriveArgs) -> Self {
        Self {
            class: args.class,
            code: args.code.clone(),
            since_ms: args.since.map(|since| milliseconds(since.resolve(OffsetDateTime::now_utc()))),
            topics: settings.consumed_topics().map(str::to_owned).collect(),
        }
    }

    fn judge(&self, letter: &ReadRecord) -> Judgement {
        if self.since_ms.is_some_and(|since| letter.timestamp_ms.is_some_and(|stamped| stamped < since)) {
            return Judgement::Left("written before --since");
        }
        let label = match Label::read(&letter.record.headers) {
            Ok(label) => label,
            Err(error) => {
                let detail = format!("{error}; it is no dead letter of this worker");
                return Judgement::Refused { reason: "no dead letter", detail };
            }
        };
        if self.class.is_some_and(|class| class != label.class) {
            return Judgement::Left("of another class");
        }
        if self.code.as_ref().is_some_and(|code| *code != label.code) {
            return Judgement::Left("of another code");
        }
        let kind = format!("{} {}", label.class, label.code);
        if label.redrive_count >= MAX_REDRIVES {
            let detail = format!(
                "{kind}, put back {} times already; mend its cause and produce the record to {} yourself",
                label.redrive_count, label.origin.topic
            );
            return Judgement::Refused { reason: "put back three times", detail };
        }
        if !self.topics.contains(&label.origin.topic) {
            let detail = format!(
                "it came from topic {:?}, which is none that kafka.input_topics, backfill_topic or labels_topic name; use the configuration that reads it",
                label.origin.topic
            );
            return Judgement::Refused { reason: "from another topic", detail };
        }
        Judgement::PutBack { label, kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Header;

    fn letter(changed: &[(&str, &str)]) -> ReadRecord {
        let mut headers = vec![
            ("dlq-class", "dead"),
            ("dlq-code", "retry_exhausted"),
            ("dlq-origin-topic", "uploads"),
            ("dlq-origin-partition", "0"),
            ("dlq-origin-offset", "5"),
            ("dlq-item", "1"),
            ("dlq-redrive-count", "2"),
        ];
        headers.extend(changed);
        let headers = headers.into_iter().map(|(name, value)| Header::new(name, value)).collect();
        let record = WireRecord { key: None, payload: Some(b"{}".to_vec()), headers };
        ReadRecord { source: TopicPartition::new("dead", 0), offset: 7, timestamp_ms: Some(1_000), record }
    }

    fn filter(args: RedriveArgs) -> Filter {
        Filter::new(&KafkaSettings::default(), &args)
    }

    fn refusal(letter: &ReadRecord) -> &'static str {
        match filter(RedriveArgs::default()).judge(letter) {
            Judgement::Refused { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_third_time_is_the_last() {
        let judged = filter(RedriveArgs::default()).judge(&letter(&[]));
        assert!(matches!(judged, Judgement::PutBack { kind, .. } if kind == "dead retry_exhausted"));
        assert_eq!(refusal(&letter(&[("dlq-redrive-count", "3")])), "put back three times");
        assert_eq!(refusal(&letter(&[("dlq-redrive-count", "many")])), "no dead letter");
    }

    #[test]
    fn a_header_sends_nothing_to_a_topic_that_is_no_input() {
        assert_eq!(refusal(&letter(&[("dlq-origin-topic", "payments")])), "from another topic");
        assert_eq!(refusal(&letter(&[("dlq-class", "odd")])), "no dead letter");
    }

    #[test]
    fn filters_leave_the_others() {
        for args in [
            RedriveArgs { class: Some(DeadLetterClass::Poison), ..RedriveArgs::default() },
            RedriveArgs { code: Some("unsupported".into()), ..RedriveArgs::default() },
            RedriveArgs { since: Some("1h".parse().unwrap()), ..RedriveArgs::default() },
        ] {
            assert!(matches!(filter(args).judge(&letter(&[])), Judgement::Left(_)));
        }
        let args = RedriveArgs {
            class: Some(DeadLetterClass::Dead),
            code: Some("retry_exhausted".into()),
            since: Some("1970-01-01".parse().unwrap()),
            ..RedriveArgs::default()
        };
        assert!(matches!(filter(args).judge(&letter(&[])), Judgement::PutBack { .. }));
    }
}
