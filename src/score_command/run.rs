//! The command itself: list, load, score in a bounded window, write in order.

use super::{
    args::{OutputFormat, ScoreArgs},
    error::ScoreCommandError,
    inputs::{Argument, Input},
    output::RowWriter,
    progress::Progress,
    reading::{RETRY, Reader, s3_settings},
    record::Row,
};
use crate::{
    image::{self, Fit, ImageSettings, PREPROCESS_REVISION, Preprocessor},
    inference::{InferenceSettings, ScoreFailure, Scorer, ScoringService},
    model::scorer::TorchScorer,
    registry::{self, CheckpointSource},
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
    let images = ImageSettings { preprocess: args.preprocess.into(), ..ImageSettings::local() };
    if let CheckpointSource::Folder(folder) = &args.checkpoint
        && !folder.is_dir()
    {
        return Err(ScoreCommandError::NoCheckpoint(folder.clone()));
    }
    let checkpoint = registry::resolve_source(&args.checkpoint, &s3_settings(), &RETRY).await?;
    let preprocessor = Preprocessor::open(&checkpoint.folder)?.with_fit(Fit::Pad);
    // A warm-up would cost as much as a batch of photos, and nobody waits for a first answer here.
    let settings = InferenceSettings {
        batch_size: usize::from(args.batch_size),
        warm_up: false,
        // Whoever waits at a terminal sees for themselves.
        hang_timeout_ms: 0,
        golden_interval_ms: 0,
        ..InferenceSettings::default()
    };

    let mut progress = Progress::new(inputs.len());
    progress.stage("loading the model");
    let model = args.model_settings(&checkpoint.folder);
    let build = move || {
        TorchScorer::load(&model, PREPROCESS_REVISION).map(|scorer| Box::new(scorer) as Box<dyn Scorer>)
    };
    let service = ScoringService::start(build, preprocessor, images.clone(), &settings).await?;
    progress.begin();
    let session = Session {
        service: &service,
        reader: &reader,
        images: &images,
        thumbnailers: Semaphore::new(settings.decode_thread_count()),
        wants_report: args.report.is_some(),
    };
    let outcome =
        session.score_all(args.format, inputs, settings.in_flight_capacity(), &mut progress, out).await;
    service.shut_down().await;
    let (summary, entries) = outcome?;
    progress.finish();
    if let Some(path) = &args.report {
        let model = service.model();
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
    [
        ("checkpoint", args.checkpoint.to_string()),
        ("device", args.device.to_string()),
        ("dtype", args.dtype.to_string()),
        ("prompt", args.prompt.to_string()),
        ("batch size", args.batch_size.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// What the images of one run share.
struct Session<'a> {
    service: &'a ScoringService,
    reader: &'a Reader,
    images: &'a ImageSettings,
    /// As many as cores: each holds a decoded photo.
    thumbnailers: Semaphore,
    wants_report: bool,
}

impl Session<'_> {
    async fn score_all(
        &self,
        format: OutputFormat,
        inputs: Vec<Input>,
        window: usize,
        progress: &mut Progress,
        out: &mut dyn Write,
    ) -> Result<(Summary, Vec<Entry>), ScoreCommandError> {
        let writer = RowWriter::new(format, inputs.iter().map(|input| input.name.as_str()));
        let (mut summary, mut entries) = (Summary::default(), Vec::new());
        if is_closed(progress.suspended(|| writer.header(out)))? {
            return Ok((summary, entries));
        }
        let mut rows = stream::iter(inputs).map(|input| self.score_one(input)).buffered(window);
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
        let bytes = match self.reader.read(&input, self.images.max_bytes).await {
            Ok(bytes) => bytes,
            Err(error) => return Ok((Row { image: input.name, outcome: Err(error) }, None)),
        };
        let outcome = match self.service.score(&input.name, bytes.clone()).await {
            Ok(scored) => Ok(scored),
            Err(ScoreFailure::Rejected { error, .. }) => Err(error),
            Err(ScoreFailure::Engine(failure)) => return Err(failure.into()),
        };
        let thumbnail = match self.wants_report {
            true => self.thumbnail(bytes).await,
            false => None,
        };
        Ok((Row { image: input.name, outcome }, thumbnail))
    }

    /// A thumbnail, if the file can be decoded.
    async fn thumbnail(&self, bytes: Bytes) -> Option<Vec<u8>> {
        let _one_of_few = self.thumbnailers.acquire().await.ok()?;
        let images = self.images.clone();
        let work = move || image::thumbnail(&bytes, &images, report::THUMBNAIL_EDGE);
        tokio::task::spawn_blocking(work).await.ok()?.ok()
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
