//! What a command did, for standard output and the exit code.

use std::collections::BTreeMap;
use std::fmt;

/// Exit code of a command that refused something and named it.
const REFUSED: u8 = 3;

/// Counts by what was done and to what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What a unit of work is called, such as `letters put back`.
    pub done_as: &'static str,
    /// By kind, such as `dead retry_exhausted`.
    pub done: BTreeMap<String, u64>,
    /// Named on standard error, and not done.
    pub refused: BTreeMap<String, u64>,
    /// Looked at and rightly left alone, by reason.
    pub left: BTreeMap<String, u64>,
    pub dry_run: bool,
}

impl Report {
    pub fn new(done_as: &'static str, dry_run: bool) -> Self {
        Self { done_as, dry_run, ..Self::default() }
    }

    pub fn did(&mut self, kind: impl Into<String>) {
        *self.done.entry(kind.into()).or_default() += 1;
    }

    pub fn left(&mut self, reason: impl Into<String>) {
        *self.left.entry(reason.into()).or_default() += 1;
    }

    /// Counts a refusal and names what was refused on standard error.
    pub fn refuse(&mut self, reason: &'static str, name: impl fmt::Display, detail: impl fmt::Display) {
        eprintln!("refused {name}: {detail}");
        *self.refused.entry(reason.to_owned()).or_default() += 1;
    }

    /// How much was done.
    pub fn total(&self) -> u64 {
        self.done.values().sum()
    }

    /// How much was refused.
    pub fn total_refused(&self) -> u64 {
        self.refused.values().sum()
    }

    /// 0, or 3 where something was refused.
    pub fn exit_code(&self) -> u8 {
        if self.total_refused() > 0 { REFUSED } else { 0 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let would = if self.dry_run { " (dry run: nothing was written)" } else { "" };
        writeln!(formatter, "{} {}{would}", self.total(), self.done_as)?;
        for (kind, count) in &self.done {
            writeln!(formatter, "  {count:>8}  {kind}")?;
        }
        for (title, counts) in [("refused", &self.refused), ("left", &self.left)] {
            if !counts.is_empty() {
                writeln!(formatter, "{} {title}", counts.values().sum::<u64>())?;
            }
            for (reason, count) in counts {
                writeln!(formatter, "  {count:>8}  {reason}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_in_text_and_exit_code() {
        let mut report = Report::new("letters put back", true);
        report.did("dead retry_exhausted");
        report.did("dead retry_exhausted");
        assert_eq!(report.exit_code(), 0);
        report.refuse("put back three times", "dead[0]@4", "put back three times already");
        report.left("another class");
        assert_eq!((report.exit_code(), report.total(), report.total_refused()), (3, 2, 1));
        let expected = "2 letters put back (dry run: nothing was written)\n         2  dead retry_exhausted\n\
                        1 refused\n         1  put back three times\n1 left\n         1  another class\n";
        assert_eq!(report.to_string(), expected);
    }
}
