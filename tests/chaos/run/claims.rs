//! What a run says of itself: faults that took effect, and what was expected of the workers.

use super::Run;
use crate::report::Claim;
use crate::watch::Peaks;
use anyhow::Result;
use serde_json::{Value, json};
use std::time::Instant;

impl Run {
    /// The fault took effect so many times more.
    pub fn fired(&mut self, times: usize) {
        self.fired += times;
    }

    /// The fault is over: recovery counts from here.
    pub fn heal(&mut self) {
        self.healed = Some(Instant::now());
    }

    pub fn at_most(&mut self, claim: &str, observed: f64, limit: f64) {
        self.claim(format!("{claim}, at most"), json!(round(observed)), json!(limit), observed <= limit);
    }

    pub fn at_least(&mut self, claim: &str, observed: f64, limit: f64) {
        self.claim(format!("{claim}, at least"), json!(round(observed)), json!(limit), observed >= limit);
    }

    pub fn equal(&mut self, claim: &str, observed: impl Into<Value>, limit: impl Into<Value>) {
        let (observed, limit) = (observed.into(), limit.into());
        let holds = observed == limit;
        self.claim(format!("{claim}, exactly"), observed, limit, holds);
    }

    pub(super) fn claim(&mut self, claim: String, observed: Value, limit: Value, holds: bool) {
        self.claims.push(Claim { claim, observed, limit, holds });
    }

    /// The most that any worker held so far.
    pub fn peaks(&self) -> Peaks {
        self.watch.peaks()
    }

    /// Claims that there are as many rows as ids that outputs speak of; the oracle compares the two one
    /// by one.
    pub fn rows_are_ids(&mut self) -> Result<()> {
        let evidence = self.settle()?;
        self.equal("rows", evidence.scores.len(), evidence.output_ids().len());
        Ok(())
    }
}

pub(super) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
