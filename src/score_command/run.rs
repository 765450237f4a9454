//! The command itself: list, load, score in a bounded window, write in order.

use super::{
    args::{OutputFormat, ScoreArgs},
    error::ScoreCommandError,
    inputs::{Argument, Input},
    output::RowWriter,
    progress::Progress,
    reading::Reader,
    record::Row,
    scoring::Scoring,
};
use crate::{
    inference::InferenceSettings,
    model::ModelSettings,
    report::{self, Entry, EntryScore, ReportMeta},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::io::{self, Write};
use time::OffsetDateTime;
use tokio::sync::Semaphore;

/// What became of the inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub scored: usize,
    pub rejected: usize,
}

impl Summary {
    /// 0 when everything was scored, 3 when something was rejected.
    pub fn exit_code(self) -> u8 {
        if self.rejected == 0 { 0 } else { 3 }
    }
}

/// Scores what `args` name and writes a row each to `out`, in the order of the inputs.
///
/// Ends early and without an error when the reader of `out` has gone.
///
/// # Errors
/// [`ScoreCommandError`] when the command as a whole cannot go on; an input that cannot be scored is
/// a rejected row.
pub async fn run(args: &ScoreArgs, out: &mut dyn Write) -> Result<Summary, ScoreCommandError> {
    let reader = Reader::default();
    let inputs = list(args, &reader).await?;
    if let Some(path) = &args.report {
        report::check(path).map_err(|source| ScoreCommandError::Report { path: path.clone(), source })?;
    }
    let checkpoint = Scoring::resolve(&args.checkpoint).await?;
    let mut progress = Progress::new(inputs.len());
    progress.stage("loading the model");
    let model = ModelSettings {
        precision: args.precision,
        pack: args.scoring.pack.for_images(inputs.len()),
        ..args.scoring.model_settings(&checkpoint.folder)
    };
    let scoring = Scoring::start(model, &args.scoring, reader).await?;
    progress.begin();
    let session = Session {
        scoring: &scoring,
        thumbnailers: Semaphore::new(InferenceSettings::default().decode_thread_count()),
        wants_report: args.report.is_some(),
    };
    let outcome = session.score_all(args.format, inputs, &mut progress, out).await;
    scoring.shut_down().await;
    let (summary, entries) = outcome?;
    progress.finish();
    if let Some(path) = &args.report {
        let model = scoring.model();
        let meta = ReportMeta {
            title: "Aesthetic scores".into(),
            model: (*model.version).clone(),
            score_range: model.score_range,
            settings: shown_settings(args),
            note: None,
            written_at: OffsetDateTime::now_utc(),
            elapsed: Some(progress.elapsed()),
        };
        report::write(path, &meta, entries)
            .map_err(|source| ScoreCommandError::Report { path: path.clone(), source })?;
    }
    Ok(summary)
}

/// Every input, in the order of the arguments.
async fn list(args: &ScoreArgs, reader: &Reader) -> Result<Vec<Input>, ScoreCommandError> {
    // All of them are looked at before anything is listed over the network.
    let arguments = args.inputs.iter().map(|text| Argument::read(text)).collect::<Result<Vec<_>, _>>()?;
    let mut inputs = Vec::new();
    for argument in arguments {
        match argument {
            Argument::Local(found) => inputs.extend(found),
            Argument::Remote(prefix) => inputs.extend(reader.list(&prefix).await?),
        }
    }
    match inputs.is_empty() {
        true => Err(ScoreCommandError::NoImages(args.inputs.join(", "))),
        false => Ok(inputs),
    }
}

fn shown_settings(args: &ScoreArgs) -> Vec<(String, String)> {
    let mut settings = vec![("checkpoint".to_owned(), args.checkpoint.to_string())];
    settings.extend(args.scoring.shown());
    settings
}

/// What the images of one run share.
struct Session<'a> {
    scoring: &'a Scoring,
    /// As many as cores: each holds a decoded photo.
    thumbnailers: Semaphore,
    wants_report: bool,
}

impl Session<'_> {
    async fn score_all(
        &self,
        format: OutputFormat,
        inputs: Vec<Input>,
        progress: &mut Progress,
        out: &mut dyn Write,
    ) -> Result<(Summary, Vec<Entry>), ScoreCommandError> {
        let writer = RowWriter::new(format, inputs.iter().map(|input| input.name.as_str()));
        let (mut summary, mut entries) = (Summary::default(), Vec::new());
        if is_closed(progress.suspended(|| writer.header(out)))? {
            return Ok((summary, entries));
        }
        let mut rows =
            stream::iter(inputs).map(|input| self.score_one(input)).buffered(self.scoring.window());
        while let Some(scored) = rows.next().await {
            let (row, thumbnail) = scored?;
            match &row.outcome {
                Ok(_) => summary.scored += 1,
                Err(_) => summary.rejected += 1,
            }
            progress.advance(row.outcome.is_ok());
            if is_closed(progress.suspended(|| writer.row(&row, out)))? {
                break;
            }
            if self.wants_report {
                entries.push(entry(row, thumbnail));
            }
        }
        Ok((summary, entries))
    }

    /// The row of one input and, for the report, its thumbnail.
    async fn score_one(&self, input: Input) -> Result<(Row, Option<Vec<u8>>), ScoreCommandError> {
        let (outcome, bytes) = self.scoring.score(&input).await?;
        let thumbnail = match bytes.filter(|_| self.wants_report) {
            Some(bytes) => self.thumbnail(bytes).await,
            None => None,
        };
        Ok((Row { image: input.name, outcome }, thumbnail))
    }

    /// A thumbnail, if the file can be decoded.
    async fn thumbnail(&self, bytes: Bytes) -> Option<Vec<u8>> {
        let _one_of_few = self.thumbnailers.acquire().await.ok()?;
        self.scoring.thumbnail(bytes).await
    }
}

fn entry(Row { image, outcome }: Row, thumbnail: Option<Vec<u8>>) -> Entry {
    let size = outcome.as_ref().ok().map(|scored| (scored.width, scored.height));
    let outcome = outcome.map(|scored| EntryScore { scores: scored.answer.scores, text: scored.answer.text });
    Entry { image, size, thumbnail, outcome }
}

/// Whether the reader of standard output has gone, which ends the command quietly.
fn is_closed(written: io::Result<()>) -> Result<bool, ScoreCommandError> {
    match written {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        Err(error) => Err(ScoreCommandError::Output(error)),
    }
}
