//! A page of scores: histogram, gallery and what was rejected, written entry by entry.

mod chart;
mod page;

use crate::{
    fault::ItemError,
    score::{ModelVersion, ScoreValue},
};
use std::{cmp::Ordering, io, path::Path, time::Duration};
use time::OffsetDateTime;

/// What the page says about the run as a whole.
#[derive(Clone, Debug)]
pub struct ReportMeta {
    pub title: String,
    pub model: ModelVersion,
    /// The lowest and the highest score the model can give.
    pub score_range: (f64, f64),
    /// Name and value of each setting, in the order to show.
    pub settings: Vec<(String, String)>,
    /// A remark set apart at the top, such as that the weights are untrained.
    pub note: Option<String>,
    pub written_at: OffsetDateTime,
    /// How long scoring took.
    pub elapsed: Option<Duration>,
}

/// One image of the page.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name, shown as text whatever it contains.
    pub image: String,
    /// Width and height in pixels.
    pub size: Option<(u32, u32)>,
    /// A JPEG, upright and without metadata.
    pub thumbnail: Option<Vec<u8>>,
    pub outcome: Result<EntryScore, ItemError>,
}

/// What the model said about an image.
#[derive(Clone, Debug)]
pub struct EntryScore {
    /// One a `[SCORE]`; the first one ranks the image.
    pub scores: Vec<ScoreValue>,
    pub text: String,
}

impl Entry {
    fn score(&self) -> Option<f64> {
        self.outcome.as_ref().ok()?.scores.first().map(|value| value.score)
    }
}

/// Writes the page. A reader of `path` sees the old page or the whole new one.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, meta: &ReportMeta, mut entries: Vec<Entry>) -> io::Result<()> {
    entries.sort_by(by_score);
    super::replace(path, |out| page::write(out, meta, &entries))
}

/// Highest score first, then by name; entries without a score last, by name.
fn by_score(one: &Entry, other: &Entry) -> Ordering {
    let key = |entry: &Entry| entry.score().unwrap_or(f64::NEG_INFINITY);
    key(other).total_cmp(&key(one)).then_with(|| one.image.cmp(&other.image))
}

#[cfg(test)]
mod tests;
