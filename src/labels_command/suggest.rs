//! What to label next, from every scored photo that nobody has rated.

use super::{LabelsCommandError, SuggestArgs, SuggestionFormat, progress::Progress};
use crate::config::Config;
use crate::labels::suggest::{Ranking, Reason, Suggestion};
use crate::store::Store;
use serde::Serialize;
use std::io::{self, Write};

const PAGE: u32 = 2_000;

/// Writes the suggestions, first the one to label first. How many there are.
///
/// # Errors
/// [`LabelsCommandError`].
pub async fn suggest(
    config: &Config,
    args: &SuggestArgs,
    out: &mut impl Write,
) -> Result<usize, LabelsCommandError> {
    let scale = config.label_scale()?;
    let store = Store::connect(&config.postgres).await?;
    let mut ranking = Ranking::new(args.limit, args.seed, store.score_histogram(scale).await?);
    let mut progress = Progress::new("looked at", None);
    let mut after = None;
    loop {
        let page = store.unlabelled(&scale, after.as_ref(), PAGE).await?;
        progress.advance(page.seen as u64);
        page.candidates.into_iter().for_each(|candidate| ranking.offer(candidate));
        match page.last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    progress.finish();
    store.close().await;
    let suggestions = ranking.finish();
    let rows = suggestions.iter().enumerate().map(|(index, suggestion)| Row::of(index + 1, suggestion));
    match args.format {
        SuggestionFormat::Jsonl => write_jsonl(out, rows),
        SuggestionFormat::Csv => write_csv(out, rows),
    }
    .map_err(LabelsCommandError::Output)?;
    Ok(suggestions.len())
}

/// A suggestion as it is written; those of a sheet that raters fill in come first.
#[derive(Serialize)]
struct Row<'a> {
    rank: usize,
    bucket: &'a str,
    key: &'a str,
    etag: &'a str,
    reason: Reason,
    /// The score that the model gave.
    predicted: f64,
    std: f64,
    disagreement: f64,
    density: f64,
    model_version: &'a str,
}

impl<'a> Row<'a> {
    fn of(rank: usize, suggestion: &'a Suggestion) -> Self {
        let candidate = &suggestion.candidate;
        Self {
            rank,
            bucket: &candidate.object.bucket,
            key: &candidate.object.key,
            etag: &candidate.object.etag,
            reason: suggestion.reason,
            predicted: candidate.score,
            std: candidate.std,
            disagreement: candidate.disagreement,
            density: suggestion.density,
            model_version: &candidate.model_version,
        }
    }
}

fn write_jsonl<'a>(out: &mut impl Write, rows: impl Iterator<Item = Row<'a>>) -> io::Result<()> {
    for row in rows {
        serde_json::to_writer(&mut *out, &row)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// The columns of `labels import`, with `rater`, `score` and `labelled_at` to be filled in, and then the
/// reasons.
fn write_csv<'a>(out: &mut impl Write, rows: impl Iterator<Item = Row<'a>>) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record([
        "bucket",
        "key",
        "etag",
        "rater",
        "score",
        "labelled_at",
        "rank",
        "reason",
        "predicted",
        "std",
        "disagreement",
        "density",
        "model_version",
    ])?;
    for row in rows {
        let Row { rank, predicted, std, disagreement, density, .. } = row;
        writer.write_record([
            row.bucket,
            row.key,
            row.etag,
            "",
            "",
            "",
            &rank.to_string(),
            row.reason.as_str(),
            &predicted.to_string(),
            &std.to_string(),
            &disagreement.to_string(),
            &density.to_string(),
            row.model_version,
        ])?;
    }
    writer.flush()
}
