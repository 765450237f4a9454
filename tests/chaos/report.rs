//! What is known of the runs at the end: a file for programs, a table for people.

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Something that a row expects, and what it saw.
#[derive(Clone, Debug, Serialize)]
pub struct Claim {
    pub claim: String,
    pub observed: Value,
    pub limit: Value,
    #[serde(skip)]
    pub holds: bool,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    pub row: u32,
    pub fault: String,
    pub seed: u64,
    pub items: usize,
    pub lost: usize,
    pub doubled: usize,
    pub mismatched: usize,
    /// From the end of the fault to no lag.
    pub recovery_s: f64,
    pub broker: &'static str,
    /// Injected faults that took effect.
    pub fired: usize,
    /// The item around which the fault struck.
    pub at_item: usize,
    pub expected: Vec<Claim>,
    /// Everything that is wrong with the run, for people.
    #[serde(skip)]
    pub complaints: Vec<String>,
    #[serde(skip)]
    pub family: &'static str,
}

impl RunReport {
    pub fn is_clean(&self) -> bool {
        self.complaints.is_empty()
    }

    /// The row, the seed, and everything that is wrong.
    pub fn complaint(&self) -> String {
        format!("row {} ({}), seed {}: {}", self.row, self.fault, self.seed, self.complaints.join("; "))
    }
}

/// The runs of each row, summed up.
pub fn table(runs: &[RunReport]) -> String {
    let mut rows: BTreeMap<u32, Vec<&RunReport>> = BTreeMap::new();
    for run in runs {
        rows.entry(run.row).or_default().push(run);
    }
    let mut table = String::from(
        "| # | Fault | Broker | Runs | Items | Lost | Duplicated | Mismatched | Worst recovery |\n\
         |--:|:--|:--|--:|--:|--:|--:|--:|--:|\n",
    );
    for (number, runs) in rows {
        let sum = |count: fn(&RunReport) -> usize| runs.iter().map(|run| count(run)).sum::<usize>();
        let worst = runs.iter().map(|run| run.recovery_s).fold(0.0, f64::max);
        let unclean = runs.iter().filter(|run| !run.is_clean()).count();
        let mark = if unclean == 0 { String::new() } else { format!(" ({unclean} NOT CLEAN)") };
        let mut brokers: Vec<_> = runs.iter().map(|run| run.broker).collect();
        brokers.sort_unstable();
        brokers.dedup();
        // Writing to a String cannot fail.
        let _infallible = writeln!(
            table,
            "| {number} | {}{mark} | {} | {} | {} | {} | {} | {} | {worst:.1} s |",
            runs[0].family,
            brokers.join(", "),
            runs.len(),
            sum(|run| run.items),
            sum(|run| run.lost),
            sum(|run| run.doubled),
            sum(|run| run.mismatched),
        );
    }
    table
}
