//! How a run ends, as people read it.

use crate::store::HeldRun;
use std::fmt;

/// What became of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// The challenger is the champion.
    Accepted { run: i64, version: String, verdict: String, report: String },
    /// The champion stays.
    Rejected { run: i64, version: String, verdict: String, report: String },
    /// There are too few new labels.
    NothingToDo { run: i64, reason: String },
    /// Another process is at it.
    Held(HeldRun),
}

impl fmt::Display for Finish {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted { run, version, verdict, report } => {
                write!(formatter, "run {run}: {verdict}\n{version} is the champion")?;
                shown(report, formatter)
            }
            Self::Rejected { run, version, verdict, report } => {
                write!(formatter, "run {run}: {verdict}\n{version} is not promoted")?;
                shown(report, formatter)
            }
            Self::NothingToDo { run, reason } => write!(formatter, "run {run}: nothing to do: {reason}"),
            Self::Held(held) => write!(formatter, "nothing to do: {held}"),
        }
    }
}

fn shown(report: &str, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    if report.is_empty() { Ok(()) } else { write!(formatter, "\nthe report is {report}") }
}
