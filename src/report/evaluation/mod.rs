//! A page on how well a model predicts labels: metrics with their intervals, predictions beside labels, and
//! the worst mistakes; a challenger beside the champion, and what the gate said, where there are such.

mod chart;
mod figures;
mod page;
mod scatter;

use crate::evaluate::{Comparison, Evaluation, Verdict};
use std::{collections::HashMap, io, path::Path, time::Duration};
use time::OffsetDateTime;

/// How many of the worst mistakes a page shows: whose thumbnails it needs, see [`Evaluation::worst`].
pub const WORST: usize = 12;

/// Photos without a score that a page lists; the rest is counted.
pub const MOST_FAILURES: usize = 50;

/// A JPEG for each photo by its name, upright and without metadata, as [`thumbnail`](crate::image::thumbnail)
/// makes them.
pub type Thumbnails = HashMap<String, Vec<u8>>;

/// What the page shows.
#[derive(Debug)]
pub struct EvaluationReport<'a> {
    pub title: String,
    /// A remark set apart at the top, such as what the labels are.
    pub note: Option<String>,
    /// What was decided, and why.
    pub verdict: Option<&'a Verdict>,
    /// At least one, in the order to show.
    pub sets: Vec<SetReport<'a>>,
    /// Name and value of each setting, in the order to show.
    pub settings: Vec<(String, String)>,
    pub written_at: OffsetDateTime,
    /// How long scoring took.
    pub elapsed: Option<Duration>,
}

/// One set of labelled photos.
#[derive(Debug)]
pub struct SetReport<'a> {
    /// What people call it, such as a file's name or "gold set".
    pub name: String,
    pub evaluation: &'a Evaluation,
    /// What `evaluation`'s model challenges.
    pub against: Option<Against<'a>>,
    /// Photos that are shown and have none are shown without.
    pub thumbnails: &'a Thumbnails,
}

/// The champion on the same photos.
#[derive(Clone, Copy, Debug)]
pub struct Against<'a> {
    pub champion: &'a Evaluation,
    pub comparison: &'a Comparison,
}

/// Writes the page. A reader of `path` sees the old page or the whole new one.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, report: &EvaluationReport<'_>) -> io::Result<()> {
    super::replace(path, |out| page::write(out, report))
}

#[cfg(test)]
mod tests;
