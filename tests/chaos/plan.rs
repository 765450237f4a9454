//! What `make chaos` was asked to run.

use crate::row::Row;
use crate::rows;
use anyhow::{Context, Result, bail};
use roc4mllm::failpoint::Rule;

const EVERYTHING: &str = "all";
const DEFAULT_SEEDS: u64 = 3;
const DEFAULT_LANES: usize = 2;
const RULES: [(&str, Rule); 5] = [
    ("epoch", Rule::Epoch),
    ("sort", Rule::Sort),
    ("reemit", Rule::Reemit),
    ("compare", Rule::Compare),
    ("revoke", Rule::Revoke),
];

pub struct Plan {
    /// Rows with their seeds, counted from 1.
    pub jobs: Vec<(Row, u64)>,
    /// The rule that is taken away from every worker.
    pub rule: Option<Rule>,
    /// Runs at a time.
    pub lanes: usize,
}

impl Plan {
    /// `ROC4MLLM_CHAOS`: `all`, or row numbers with commas. `_SEEDS`: how many of each. `_BREAK`: the
    /// rule to take away; then only runs that must notice it are made, unless rows are named. `_LANES`.
    pub fn from_environment() -> Result<Option<Self>> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(wanted) = variable("ROC4MLLM_CHAOS") else { return Ok(None) };
        let number = |name: &str, default: u64| match variable(name) {
            None => Ok(default),
            Some(text) => text.parse().with_context(|| format!("{name}={text}: use a number")),
        };
        let seeds = number("ROC4MLLM_CHAOS_SEEDS", DEFAULT_SEEDS)?;
        let lanes = number("ROC4MLLM_CHAOS_LANES", DEFAULT_LANES as u64)?.max(1) as usize;
        let rule = variable("ROC4MLLM_CHAOS_BREAK").map(|name| parse_rule(&name)).transpose()?;
        let rows = chosen(&wanted)?;
        let needless = |row: &Row, seed| {
            let blind = |rule| !row.must_notice(rule, seed);
            wanted == EVERYTHING && rule.is_some_and(blind)
        };
        // Seed by seed, so that proxied rows and others alternate.
        let most = rows.iter().map(|row| seeds * row.variants).max().unwrap_or(0);
        let jobs = (1..=most).flat_map(|seed| {
            let due = rows.iter().filter(move |row| seed <= seeds * row.variants);
            due.map(move |row| (row.clone(), seed))
        });
        let jobs = jobs.filter(|(row, seed)| !needless(row, *seed));
        Ok(Some(Self { jobs: jobs.collect(), rule, lanes }))
    }
}

fn parse_rule(name: &str) -> Result<Rule> {
    let found = RULES.iter().find(|(known, _)| *known == name).map(|(_, rule)| *rule);
    found.with_context(|| format!("there is no rule {name:?}; use epoch, sort, reemit, compare or revoke"))
}

fn chosen(wanted: &str) -> Result<Vec<Row>> {
    let rows = rows::all();
    if wanted == EVERYTHING {
        return Ok(rows);
    }
    let mut chosen = Vec::new();
    for number in wanted.split(',') {
        let number: u32 = number.trim().parse().with_context(|| format!("{number:?} is no row's number"))?;
        let found: Vec<_> = rows.iter().filter(|row| row.number == number).cloned().collect();
        if found.is_empty() {
            bail!("there is no row {number}");
        }
        chosen.extend(found);
    }
    Ok(chosen)
}
