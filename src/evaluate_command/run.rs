//! The command itself: read labels, score with one model or two, measure, write.

use super::{
    args::{EvaluateArgs, EvaluateFormat},
    error::EvaluateCommandError,
    labelled::{self, Labelled, LabelledPhotos},
    output::{self, Results},
};
use crate::{
    evaluate::{Comparison, ComparisonError, Deviation, Evaluation, Outcome, Photo},
    labels::Scale,
    model::{ModelSettings, config::ModelConfig, device::Quantize},
    registry::{CheckpointSource, ResolvedCheckpoint},
    report::{
        self,
        evaluation::{Against, EvaluationReport, SetReport, Thumbnails, WORST},
    },
    score_command::{ScoreCommandError, progress::Progress, reading::Reader, scoring::Scoring},
};
use futures_util::{StreamExt, stream};
use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};
use time::OffsetDateTime;

/// Thumbnails that are made at once.
const THUMBNAILS_AT_ONCE: usize = 4;

/// What became of the labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Photos that the model, or both of them, scored.
    pub scored: usize,
    /// Photos that it, or one of them, did not score.
    pub unscored: usize,
    /// Labels of the file that can't be used.
    pub refused: usize,
}

impl Summary {
    /// 0 when everything was scored, 3 when something was rejected.
    pub fn exit_code(self) -> u8 {
        if self.unscored == 0 && self.refused == 0 { 0 } else { 3 }
    }
}

/// One model's answers, and what can still read the photos.
struct Answers {
    evaluation: Evaluation,
    scoring: Scoring,
    elapsed: Duration,
}

/// Evaluates what `args` name and writes the results to `out`.
///
/// # Errors
/// [`EvaluateCommandError`] when the command as a whole cannot go on; a photo that cannot be scored is part of
/// the results.
pub async fn run(args: &EvaluateArgs, out: &mut dyn Write) -> Result<Summary, EvaluateCommandError> {
    if let Some(path) = &args.report {
        report::check(path).map_err(|source| ScoreCommandError::Report { path: path.clone(), source })?;
    }
    let checkpoint = Scoring::resolve(&args.checkpoint).await?;
    let champion = match &args.against {
        Some(source) => Some((source, Scoring::resolve(source).await?)),
        None => None,
    };
    let scale = scale(&args.checkpoint, &checkpoint)?;
    let LabelledPhotos { photos, refused } = labelled::read(&args.labels, args.images.as_deref(), &scale)?;
    for label in &refused {
        tracing::warn!("{label}");
    }
    // One model at a time: two may not fit. The champion goes first, so that what can't be compared is found
    // out before the other is loaded.
    let champion = match &champion {
        Some((source, resolved)) => {
            check_range(source, resolved, &scale)?;
            Some(answer(args, resolved, args.scoring.quantize, &photos, "loading the champion").await?)
        }
        None => None,
    };
    // What a quantised model loses is what this one, computed in its own type, says otherwise.
    let exact = match args.scoring.quantize {
        Quantize::None => None,
        _ => Some(
            answer(args, &checkpoint, Quantize::None, &photos, "loading the model at full precision")
                .await?
                .evaluation,
        ),
    };
    let challenger = answer(args, &checkpoint, args.scoring.quantize, &photos, "loading the model").await?;
    let deviation = exact.map(|exact| Deviation::of(&exact, &challenger.evaluation));
    let comparison = match &champion {
        Some(champion) => {
            Some(Comparison::of(&champion.evaluation, &challenger.evaluation, &args.bootstrap())?)
        }
        None => None,
    };
    let results = Results {
        labels: args.labels.display().to_string(),
        refused,
        evaluation: &challenger.evaluation,
        champion: champion.as_ref().map(|champion| &champion.evaluation),
        comparison: comparison.as_ref(),
        deviation: deviation.as_ref(),
    };
    let written = match args.format {
        EvaluateFormat::Table => output::table(&results, out),
        EvaluateFormat::Json => output::json(&results, out),
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(EvaluateCommandError::output(error));
        }
        _ => {}
    }
    let against = champion
        .as_ref()
        .zip(comparison.as_ref())
        .map(|(champion, comparison)| Against { champion: &champion.evaluation, comparison });
    if let Some(path) = &args.report {
        let elapsed =
            challenger.elapsed + champion.as_ref().map_or(Duration::ZERO, |champion| champion.elapsed);
        let thumbnails = thumbnails(&challenger, &photos).await;
        let report = EvaluationReport {
            title: if against.is_some() { "Challenger against champion" } else { "Scores against labels" }
                .into(),
            note: None,
            verdict: None,
            sets: vec![SetReport {
                name: results.labels.clone(),
                evaluation: &challenger.evaluation,
                against,
                thumbnails: &thumbnails,
            }],
            settings: shown_settings(args),
            written_at: OffsetDateTime::now_utc(),
            elapsed: Some(elapsed),
        };
        report::evaluation::write(path, &report)
            .map_err(|source| ScoreCommandError::Report { path: path.clone(), source })?;
    }
    Ok(summary(&challenger.evaluation, results.champion, results.refused.len()))
}

fn summary(evaluation: &Evaluation, champion: Option<&Evaluation>, refused: usize) -> Summary {
    let is_scored = |photo: &Photo| matches!(photo.outcome, Outcome::Scored { .. });
    let scored = (0..evaluation.photos.len())
        .filter(|&index| {
            is_scored(&evaluation.photos[index])
                && champion.is_none_or(|champion| is_scored(&champion.photos[index]))
        })
        .count();
    Summary { scored, unscored: evaluation.photos.len() - scored, refused }
}

/// The scale that a checkpoint scores on.
fn scale(source: &CheckpointSource, checkpoint: &ResolvedCheckpoint) -> Result<Scale, EvaluateCommandError> {
    let head = ModelConfig::read(Path::new(&checkpoint.folder))?.score;
    head.and_then(|head| Scale::new(head.min_score, head.max_score, usize::try_from(head.num_tokens).ok()?))
        .ok_or_else(|| EvaluateCommandError::NoScoreHead(source.to_string()))
}

/// Labels are checked against one range, and differences of two mean nothing.
fn check_range(
    source: &CheckpointSource,
    champion: &ResolvedCheckpoint,
    expected: &Scale,
) -> Result<(), EvaluateCommandError> {
    let found = scale(source, champion)?;
    let range = |scale: &Scale| (scale.min_score, scale.max_score);
    if range(&found) == range(expected) {
        return Ok(());
    }
    let (champion, challenger) = (range(&found), range(expected));
    Err(ComparisonError::Range { champion, challenger }.into())
}

/// Scores every photo with one model, and measures.
async fn answer(
    args: &EvaluateArgs,
    checkpoint: &ResolvedCheckpoint,
    quantize: Quantize,
    photos: &[Labelled],
    stage: &'static str,
) -> Result<Answers, EvaluateCommandError> {
    let mut progress = Progress::new(photos.len());
    progress.stage(stage);
    let model = ModelSettings { quantize, ..args.scoring.model_settings(&checkpoint.folder) };
    let scoring = Scoring::start(model, &args.scoring, Reader::default()).await?;
    progress.begin();
    let scored = score_all(&scoring, photos, &mut progress).await;
    scoring.shut_down().await;
    let photos = scored?;
    progress.finish();
    let elapsed = progress.elapsed();
    let (version, range) = ((*scoring.model().version).clone(), scoring.model().score_range);
    let evaluation = Evaluation::measure(version, range, photos, &args.bootstrap());
    Ok(Answers { evaluation, scoring, elapsed })
}

async fn score_all(
    scoring: &Scoring,
    photos: &[Labelled],
    progress: &mut Progress,
) -> Result<Vec<Photo>, EvaluateCommandError> {
    let mut answered = Vec::with_capacity(photos.len());
    let mut outcomes = stream::iter(photos)
        .map(|photo| async move { scoring.score(&photo.input).await.map(|(outcome, _)| (photo, outcome)) })
        .buffered(scoring.window());
    while let Some(scored) = outcomes.next().await {
        let (Labelled { input, label }, outcome) = scored?;
        progress.advance(outcome.is_ok());
        let outcome = Outcome::of(outcome.map(|scored| scored.answer.scores));
        answered.push(Photo { image: input.name.clone(), group: None, label: label.clone(), outcome });
    }
    Ok(answered)
}

/// Those that the report shows.
async fn thumbnails(answers: &Answers, photos: &[Labelled]) -> Thumbnails {
    let evaluation = &answers.evaluation;
    let shown: Vec<&str> = evaluation
        .worst(WORST)
        .into_iter()
        .chain(evaluation.failures().take(report::evaluation::MOST_FAILURES).map(|(photo, _)| photo))
        .map(|photo| photo.image.as_str())
        .collect();
    stream::iter(photos.iter().filter(|photo| shown.contains(&photo.input.name.as_str())))
        .map(|Labelled { input, .. }| async {
            Some((input.name.clone(), answers.scoring.thumbnail_of(input).await?))
        })
        .buffer_unordered(THUMBNAILS_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

fn shown_settings(args: &EvaluateArgs) -> Vec<(String, String)> {
    let mut settings = vec![("checkpoint".to_owned(), args.checkpoint.to_string())];
    settings.extend(args.against.as_ref().map(|champion| ("against".to_owned(), champion.to_string())));
    settings.push(("labels".to_owned(), args.labels.display().to_string()));
    settings.extend(args.scoring.shown());
    settings
}
