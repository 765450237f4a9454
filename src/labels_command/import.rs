//! Votes from a file. It is read twice: to check all of it, and to write it.

use super::{ImportArgs, LabelFormat, LabelsCommandError, progress::Progress};
use crate::config::Config;
use crate::fault::Disposition;
use crate::labels::csv::{CsvLabel, CsvReader, Place};
use crate::labels::{LabelFileError, Origin, Refusal, SampleReader, Scale, Vote, label, vote};
use crate::recovery::Report;
use crate::retry::retry;
use crate::store::{Store, StoreError, VoteOutcome};
use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::path::Path;
use time::OffsetDateTime;
use tokio::sync::mpsc;

/// Refusals named one by one; the rest are only counted.
const NAMED: u64 = 50;
/// Votes written in one transaction, which no other may write votes during.
const BATCH: usize = 1_000;
/// Votes between the reading thread and the writer.
const CHANNEL: usize = 4 * BATCH;

/// Stores the votes of a file.
///
/// # Errors
/// [`LabelsCommandError`]; `Refused` where the file has errors that are not to be passed over, and then
/// nothing has been written.
pub async fn import(config: &Config, args: &ImportArgs) -> Result<Report, LabelsCommandError> {
    let source = Source::new(config, args)?;
    let checking = {
        let source = source.clone();
        tokio::task::spawn_blocking(move || source.check())
    };
    let checked = checking.await.map_err(|error| LabelsCommandError::Thread(error.to_string()))??;
    if checked.refused > 0 && !args.skip_invalid {
        let (refused, labels) = (checked.refused, checked.refused + checked.labels);
        return Err(LabelsCommandError::Refused { file: args.file.clone(), refused, labels });
    }
    let mut report = Report::new("votes imported", args.dry_run);
    let Checked { votes: right, refused, unlabelled, .. } = checked;
    report.refused.extend((refused > 0).then(|| ("passed over".to_owned(), refused)));
    report.left.extend((unlabelled > 0).then(|| ("not labelled yet".to_owned(), unlabelled)));
    if args.dry_run {
        report.done.insert("right".into(), right);
        return Ok(report);
    }
    let store = Store::connect(&config.postgres).await?;
    let mut progress = Progress::new("imported", Some(right));
    let scale = source.scale;
    let (sender, mut votes) = mpsc::channel(CHANNEL);
    let reading = tokio::task::spawn_blocking(move || source.send(&sender));
    let mut batch = Vec::with_capacity(BATCH);
    while votes.recv_many(&mut batch, BATCH).await > 0 {
        // A full batch costs one transaction, and so does a single vote.
        while let missing @ 1.. = BATCH - batch.len()
            && votes.recv_many(&mut batch, missing).await > 0
        {}
        let write = || store.write_votes(&batch, &scale);
        let outcomes = retry(&config.retry, write, passing).await.map_err(|gave_up| gave_up.error)?;
        for outcome in outcomes {
            match outcome {
                VoteOutcome::Stored => report.did(outcome.as_str()),
                VoteOutcome::Superseded => report.left("there already, or an older vote"),
            }
        }
        progress.advance(batch.len() as u64);
        batch.clear();
    }
    reading.await.map_err(|error| LabelsCommandError::Thread(error.to_string()))??;
    progress.finish();
    store.close().await;
    Ok(report)
}

/// A command waits for what passes by itself, and for nothing that somebody has to mend.
fn passing(error: &StoreError) -> Disposition {
    match error.disposition() {
        Disposition::Retry => Disposition::Retry,
        Disposition::Hold | Disposition::Reject | Disposition::Stop => Disposition::Stop,
    }
}

/// A file, and what it leaves unsaid.
#[derive(Clone)]
struct Source {
    args: ImportArgs,
    format: LabelFormat,
    origin: Origin,
    scale: Scale,
    now: OffsetDateTime,
}

/// What a file holds.
#[derive(Debug, Default)]
struct Checked {
    /// Samples or lines that are right.
    labels: u64,
    votes: u64,
    refused: u64,
    unlabelled: u64,
}

impl Source {
    fn new(config: &Config, args: &ImportArgs) -> Result<Self, LabelsCommandError> {
        let scale = config.label_scale()?;
        if args.rater.is_empty() || args.rater.len() > 255 {
            return Err(LabelsCommandError::Rater(args.rater.clone()));
        }
        let format = match args.format {
            Some(format) => format,
            None => told_by_name(&args.file).ok_or_else(|| LabelsCommandError::Format(args.file.clone()))?,
        };
        let now = OffsetDateTime::now_utc();
        let labelled_at = match args.labelled_at {
            Some(given) => given.resolve(now),
            None => changed_at(&args.file)?,
        };
        let origin = Origin {
            bucket: args.bucket.clone(),
            prefix: args.prefix.clone(),
            buckets: config.s3.buckets.clone(),
            rater: args.rater.clone(),
            labelled_at: vote::whole_microseconds(labelled_at),
        };
        Ok(Self { args: args.clone(), format, origin, scale, now })
    }

    /// Reads the whole file and names what is wrong with it.
    fn check(&self) -> Result<Checked, LabelsCommandError> {
        let mut checked = Checked::default();
        let mut progress = Progress::new("checked", None);
        checked.unlabelled = self.read(|label| {
            match label {
                Ok(votes) => {
                    checked.labels += 1;
                    checked.votes += votes.len() as u64;
                }
                Err(error) => {
                    checked.refused += 1;
                    if checked.refused <= NAMED {
                        progress.suspended(|| eprintln!("refused {error}"));
                    }
                }
            }
            progress.advance(1);
            true
        })?;
        progress.finish();
        if checked.refused > NAMED {
            eprintln!("refused {} more", checked.refused - NAMED);
        }
        Ok(checked)
    }

    /// Reads the file again and sends what is right of it.
    fn send(&self, votes: &mpsc::Sender<Vote>) -> Result<(), LabelsCommandError> {
        // Ends early where the writer has, whose error is the one that matters.
        self.read(|label| label.into_iter().flatten().all(|vote| votes.blocking_send(vote).is_ok()))?;
        Ok(())
    }

    /// Calls `each` with the votes of every label, or why it is refused, until it says no. How many lines
    /// are not labelled yet.
    fn read(
        &self,
        mut each: impl FnMut(Result<Vec<Vote>, LabelFileError>) -> bool,
    ) -> Result<u64, LabelsCommandError> {
        let file = self.args.file.display().to_string();
        let mut seen = Seen::default();
        let mut judge = |line: usize, votes: Result<Vec<Vote>, Refusal>| {
            let judged = votes.and_then(|votes| {
                votes.iter().try_for_each(|vote| self.admit(vote))?;
                votes.iter().try_for_each(|vote| seen.first_time(vote, line))?;
                Ok(votes)
            });
            judged.map_err(|refusal| LabelFileError::Refused { file: file.clone(), line, refusal })
        };
        match self.format {
            LabelFormat::Json => {
                let samples = SampleReader::open(&self.args.file).map_err(LabelsCommandError::File)?;
                for sample in samples.checked(self.scale) {
                    let votes = match one(sample)? {
                        Ok(sample) => judge(sample.line, label::votes(sample, &self.origin, &self.scale)),
                        Err(refused) => Err(refused),
                    };
                    if !each(votes) {
                        break;
                    }
                }
                Ok(0)
            }
            LabelFormat::Csv => {
                let mut labels =
                    CsvReader::open(&self.args.file, self.scale).map_err(LabelsCommandError::File)?;
                for label in labels.by_ref() {
                    let votes = match one(label)? {
                        Ok(label) => judge(label.line, self.vote(label).map(|vote| vec![vote])),
                        Err(refused) => Err(refused),
                    };
                    if !each(votes) {
                        break;
                    }
                }
                Ok(labels.unlabelled())
            }
        }
    }

    fn vote(&self, label: CsvLabel) -> Result<Vote, Refusal> {
        Ok(Vote {
            object: match label.place {
                Place::Object(object) => object,
                Place::Image(image) => self.origin.object(&image, None)?,
            },
            rater: label.rater.unwrap_or_else(|| self.origin.rater.clone()),
            opinion: label.opinion,
            conversation: Vec::new(),
            labelled_at: label.labelled_at.unwrap_or(self.origin.labelled_at),
        })
    }

    fn admit(&self, vote: &Vote) -> Result<(), Refusal> {
        vote.check(&self.scale, self.now)?;
        let (bucket, buckets) = (&vote.object.bucket, &self.origin.buckets);
        match buckets.is_empty() || buckets.contains(bucket) {
            true => Ok(()),
            false => Err(Refusal::Bucket(bucket.clone())),
        }
    }
}

/// A label, or why it is refused; an error that ends the file ends the command.
fn one<T>(read: Result<T, LabelFileError>) -> Result<Result<T, LabelFileError>, LabelsCommandError> {
    match read {
        Ok(label) => Ok(Ok(label)),
        Err(refused @ LabelFileError::Refused { .. }) => Ok(Err(refused)),
        Err(error) => Err(LabelsCommandError::File(error)),
    }
}

fn told_by_name(file: &Path) -> Option<LabelFormat> {
    match file.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "json" | "jsonl" | "ndjson" => Some(LabelFormat::Json),
        "csv" => Some(LabelFormat::Csv),
        _ => None,
    }
}

fn changed_at(file: &Path) -> Result<OffsetDateTime, LabelsCommandError> {
    match file.metadata().and_then(|metadata| metadata.modified()) {
        Ok(changed) => Ok(changed.into()),
        Err(source) => {
            let file = file.display().to_string();
            Err(LabelsCommandError::File(LabelFileError::Read { file, source }))
        }
    }
}

/// Which votes a file has had so far, by a hash of 64 bits: of two that agree in object, rater and time nobody
/// could say which one counts.
#[derive(Default)]
struct Seen {
    hasher: RandomState,
    lines: HashMap<u64, u32>,
}

impl Seen {
    fn first_time(&mut self, vote: &Vote, line: usize) -> Result<(), Refusal> {
        let hash = self.hasher.hash_one((&vote.object, &vote.rater, vote.labelled_at));
        match self.lines.entry(hash) {
            Entry::Vacant(vacant) => {
                vacant.insert(u32::try_from(line).unwrap_or(u32::MAX));
                Ok(())
            }
            Entry::Occupied(earlier) => {
                Err(Refusal::Repeated { line: usize::try_from(*earlier.get()).unwrap_or(usize::MAX) })
            }
        }
    }
}
