//! One self-contained HTML page of scores: histogram, gallery and what was rejected.
//!
//! The page loads nothing, and its content security policy forbids it to: styles and script are
//! inline, thumbnails are `data:` addresses. Only encoded thumbnails are held in memory, and the
//! page is written entry by entry.

mod chart;
mod page;
mod statistics;

use crate::{
    fault::ItemError,
    score::{ModelVersion, ScoreValue},
};
use std::{
    cmp::Ordering,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use time::OffsetDateTime;

/// The longest edge of a thumbnail, in pixels: twice what the gallery shows, for dense screens.
pub const THUMBNAIL_EDGE: u32 = 512;

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

/// Whether a report can be written to `path`, tried out before the work that it reports on.
///
/// # Errors
/// When the folder does not exist or takes no file.
pub fn check(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let partial = partial_path(path);
    File::create(&partial)?;
    fs::remove_file(&partial)
}

/// Writes the page. A reader of `path` sees the old page or the whole new one.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, meta: &ReportMeta, mut entries: Vec<Entry>) -> io::Result<()> {
    entries.sort_by(by_score);
    let partial = partial_path(path);
    let written = File::create(&partial).and_then(|file| {
        let mut out = BufWriter::new(file);
        page::write(&mut out, meta, &entries)?;
        out.flush()?;
        fs::rename(&partial, path)
    });
    if written.is_err() {
        // The error to report is the one that came first.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Highest score first, then by name; entries without a score last, by name.
fn by_score(one: &Entry, other: &Entry) -> Ordering {
    let key = |entry: &Entry| entry.score().unwrap_or(f64::NEG_INFINITY);
    key(other).total_cmp(&key(one)).then_with(|| one.image.cmp(&other.image))
}

fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests;
