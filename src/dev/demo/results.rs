//! The rows as people and programs read them.

use super::photos::Photo;
use crate::{
    fault::ItemError,
    image::{self, ImageSettings},
    record::output::OutputRecord,
    report::{self, Entry, EntryScore},
    score::{ItemStatus, ScoreValue},
    score_command::output::printable,
    store::ScoreRow,
};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
};
use unicode_width::UnicodeWidthStr;

/// The longest table that is shown whole.
const TABLE_LIMIT: usize = 60;
/// Rows at either end of a longer one.
const TABLE_END: usize = 20;
/// The widest that the column of keys gets; longer keys push their own row aside.
const KEY_WIDTH_LIMIT: usize = 48;

/// A photo and its row.
pub struct Outcome {
    pub photo: Photo,
    pub row: ScoreRow,
    /// Width and height, which the output tells.
    pub size: Option<(u32, u32)>,
}

impl Outcome {
    /// Pairs photos with rows, best scores first; a photo without a row is left out.
    pub fn pair(photos: Vec<Photo>, rows: Vec<ScoreRow>, outputs: &[OutputRecord]) -> Vec<Self> {
        let mut photos: std::collections::HashMap<String, Photo> =
            photos.into_iter().map(|photo| (photo.key.clone(), photo)).collect();
        let sizes: std::collections::HashMap<_, _> =
            outputs.iter().filter_map(|output| Some((output.id, (output.width?, output.height?)))).collect();
        rows.into_iter()
            .filter_map(|row| {
                let photo = photos.remove(&row.object.as_ref()?.key)?;
                Some(Self { photo, size: sizes.get(&row.id).copied(), row })
            })
            .collect()
    }

    /// The error's message with the key for the object's address.
    fn reason(&self) -> Option<String> {
        let error = self.row.error.as_ref()?;
        let object = self.row.object.as_ref().map(ToString::to_string).unwrap_or_default();
        let rest = error.message.strip_prefix(&object).and_then(|rest| rest.strip_prefix(": "));
        Some(rest.unwrap_or(&error.message).to_owned())
    }
}

/// Prints the table; of a long one, both ends.
pub fn print(out: &mut dyn Write, outcomes: &[Outcome]) -> io::Result<()> {
    let widest = outcomes.iter().map(|outcome| printable(&outcome.photo.key).width()).max().unwrap_or(0);
    let width = widest.clamp("KEY".len(), KEY_WIDTH_LIMIT);
    line(out, width, ["SCORE", "STATUS", "KEY", ""])?;
    let scored = outcomes.partition_point(|outcome| outcome.row.status == ItemStatus::Scored);
    let (scored, others) = outcomes.split_at(scored);
    let whole = outcomes.len() <= TABLE_LIMIT;
    let hidden = |rows: &[Outcome], shown: usize| if whole { 0 } else { rows.len().saturating_sub(shown) };
    let hidden_scored = hidden(scored, 2 * TABLE_END);
    for (index, outcome) in scored.iter().enumerate() {
        if hidden_scored > 0 && index == TABLE_END {
            writeln!(out, "          ({hidden_scored} more)")?;
        }
        if hidden_scored == 0 || index < TABLE_END || index >= TABLE_END + hidden_scored {
            row(out, width, outcome)?;
        }
    }
    let hidden_others = hidden(others, TABLE_END);
    for outcome in &others[..others.len() - hidden_others] {
        row(out, width, outcome)?;
    }
    if hidden_others > 0 {
        writeln!(out, "          ({hidden_others} more without a score)")?;
    }
    Ok(())
}

fn row(out: &mut dyn Write, width: usize, outcome: &Outcome) -> io::Result<()> {
    let score = outcome.row.score.map(|score| format!("{score:.4}")).unwrap_or_default();
    let reason = outcome.reason().unwrap_or_default();
    line(out, width, [&score, outcome.row.status.as_str(), &outcome.photo.key, &reason])
}

fn line(out: &mut dyn Write, width: usize, [score, status, key, reason]: [&str; 4]) -> io::Result<()> {
    let key = printable(key);
    let padding = width.saturating_sub(key.width());
    let text = format!("{score:>8}  {status:<8}  {key}{:padding$}  {}", "", printable(reason));
    writeln!(out, "{}", text.trim_end())
}

/// One row as `--rows` writes it, with the names that outputs use.
#[derive(Serialize)]
struct Line<'a> {
    /// What `score` calls the file.
    image: &'a str,
    key: &'a str,
    id: String,
    status: ItemStatus,
    score: Option<f64>,
    scores: &'a [f64],
    error: Option<&'a ItemError>,
}

/// Writes a JSON object a row.
pub fn write_rows(path: &Path, outcomes: &[Outcome]) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for Outcome { photo, row, .. } in outcomes {
        let line = Line {
            image: &photo.image,
            key: &photo.key,
            id: row.id.to_string(),
            status: row.status,
            score: row.score,
            scores: &row.scores,
            error: row.error.as_ref(),
        };
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// The rows as entries of the HTML page, with thumbnails of their files. `range` is the lowest and
/// the highest score of the model.
pub async fn entries(outcomes: Vec<Outcome>, range: (f64, f64)) -> Vec<Entry> {
    let at_once = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    stream::iter(outcomes)
        .map(|outcome| async move {
            let path = outcome.photo.path.clone();
            let thumbnail = tokio::task::spawn_blocking(move || thumbnail(path)).await.ok().flatten();
            entry(outcome, thumbnail, range)
        })
        .buffered(at_once)
        .collect()
        .await
}

fn thumbnail(path: PathBuf) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    image::thumbnail(&bytes, &ImageSettings::local(), report::THUMBNAIL_EDGE).ok()
}

fn entry(outcome: Outcome, thumbnail: Option<Vec<u8>>, (lowest, highest): (f64, f64)) -> Entry {
    let reason = outcome.reason();
    let Outcome { photo, row, size } = outcome;
    let result = match row.error {
        Some(error) => Err(ItemError { message: reason.unwrap_or(error.message.clone()), ..error }),
        None => {
            let values = row.scores.iter().zip(row.distributions).map(|(&score, distribution)| ScoreValue {
                score,
                ..ScoreValue::from_distribution(distribution, lowest, highest)
            });
            Ok(EntryScore { scores: values.collect(), text: row.text.unwrap_or_default() })
        }
    };
    Entry { image: photo.key, size, thumbnail, outcome: result }
}
