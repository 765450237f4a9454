//! What this worker does just now, and has done in the last minutes, from its own metrics.

use super::exposition::Exposition;
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// How often the metrics are read.
pub const EVERY: Duration = Duration::from_secs(2);
/// Readings that rates and means are over: the last ten seconds.
const WINDOW: usize = 5;
/// Readings that curves are drawn of: the last five minutes.
const HISTORY: usize = 150;

/// The stages of an item's way, in order, as metrics name them.
const STAGES: [&str; 4] = ["lookup", "fetch", "infer", "pg"];

/// Readings of one process.
#[derive(Debug, Default)]
pub struct Readings {
    recent: VecDeque<(Instant, Exposition)>,
    scored: VecDeque<f64>,
    lag: VecDeque<f64>,
}

/// The numbers of one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Live {
    /// Items that came to an end, a second.
    pub items_per_second: f64,
    /// Items that got a score, a second.
    pub scored_per_second: f64,
    /// Records that wait in this worker's partitions; `None` before it was measured.
    pub lag: Option<f64>,
    pub partitions: usize,
    /// Items of this process that came to an end, by status.
    pub items: BTreeMap<String, u64>,
    pub stages: Vec<StageNow>,
    /// Decoded images that wait for a batch.
    pub batch_queue: f64,
    /// Images in a batch, on average.
    pub batch_size: Option<f64>,
    pub in_flight: f64,
    /// Finished items that wait for a commit.
    pub uncommitted: f64,
    /// Items that wait for a broken dependency.
    pub held: f64,
    /// Whether back-pressure pauses the input.
    pub paused: bool,
    /// Dependencies whose breaker is open.
    pub broken: Vec<String>,
    pub models: Vec<LoadedModel>,
    pub history: History,
}

/// What one stage does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageNow {
    pub stage: &'static str,
    pub in_flight: f64,
    pub per_second: f64,
    /// Milliseconds that an item spends in it; `None` while none does.
    pub mean_ms: Option<f64>,
}

/// A model that this process has loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadedModel {
    pub model: String,
    pub version: String,
    /// `champion`, `canary` or `shadow`.
    pub role: String,
}

/// The last minutes, oldest first, one value every [`EVERY`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct History {
    pub every_seconds: f64,
    /// Items that got a score, a second.
    pub scored_per_second: Vec<f64>,
    /// Records that wait.
    pub lag: Vec<f64>,
}

impl Readings {
    /// Takes note of a scrape.
    pub fn read(&mut self, at: Instant, scrape: &str) {
        let now = Exposition::parse(scrape);
        if let Some((before, last)) = self.recent.back() {
            let seconds = (at - *before).as_secs_f64();
            push(&mut self.scored, rate(scored(&now) - scored(last), seconds));
        }
        push(&mut self.lag, lag(&now).unwrap_or_default());
        self.recent.push_back((at, now));
        if self.recent.len() > WINDOW + 1 {
            self.recent.pop_front();
        }
    }

    /// The numbers as of the last scrape.
    pub fn now(&self) -> Live {
        let Some((at, now)) = self.recent.back() else { return Live::default() };
        let (since, first) = self.recent.front().map_or((at, now), |(since, first)| (since, first));
        let seconds = (*at - *since).as_secs_f64();
        let grown = |name: &str, label: &str, value: &str| {
            let of = |one: &Exposition| one.labelled(name, label, value).unwrap_or_default();
            of(now) - of(first)
        };
        let stage = |stage: &'static str| {
            let count = grown("stage_duration_seconds_count", "stage", stage);
            let sum = grown("stage_duration_seconds_sum", "stage", stage);
            StageNow {
                stage,
                in_flight: now.labelled("stage_in_flight", "stage", stage).unwrap_or_default(),
                per_second: rate(count, seconds),
                mean_ms: (count > 0.0).then(|| sum / count * 1000.0),
            }
        };
        let total = |name: &str| now.one(name).unwrap_or_default() - first.one(name).unwrap_or_default();
        let batches = total("model_batches_total");
        let level = |name: &str| now.one(name).unwrap_or_default();
        let is_on = |name: &str| now.one(name) == Some(1.0);
        let opened = now.all("breaker_open").iter().filter(|sample| sample.value == 1.0);
        let models = now.all("model_info").iter().map(|sample| LoadedModel {
            model: sample.label("model").into(),
            version: sample.label("version").into(),
            role: sample.label("role").into(),
        });
        Live {
            items_per_second: rate(all_items(now) - all_items(first), seconds),
            scored_per_second: rate(scored(now) - scored(first), seconds),
            lag: lag(now),
            partitions: now.all("lag_records").len(),
            items: now
                .all("items_total")
                .iter()
                .map(|sample| (sample.label("status").to_owned(), sample.value as u64))
                .collect(),
            stages: STAGES.map(stage).into(),
            batch_queue: level("batch_queue_images"),
            batch_size: (batches > 0.0).then(|| total("model_images_total") / batches),
            in_flight: level("items_in_flight"),
            uncommitted: level("uncommitted_records"),
            held: level("items_held"),
            paused: is_on("paused"),
            broken: opened.map(|sample| sample.label("dependency").to_owned()).collect(),
            models: models.collect(),
            history: History {
                every_seconds: EVERY.as_secs_f64(),
                scored_per_second: self.scored.iter().copied().collect(),
                lag: self.lag.iter().copied().collect(),
            },
        }
    }
}

fn push(history: &mut VecDeque<f64>, value: f64) {
    history.push_back(value);
    if history.len() > HISTORY {
        history.pop_front();
    }
}

fn rate(grown: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { grown.max(0.0) / seconds } else { 0.0 }
}

fn scored(scrape: &Exposition) -> f64 {
    scrape.labelled("items_total", "status", "scored").unwrap_or_default()
}

fn all_items(scrape: &Exposition) -> f64 {
    scrape.all("items_total").iter().map(|sample| sample.value).sum()
}

fn lag(scrape: &Exposition) -> Option<f64> {
    let partitions = scrape.all("lag_records");
    (!partitions.is_empty()).then(|| partitions.iter().map(|sample| sample.value).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::Stage, score::ItemStatus, telemetry::metrics::Metrics};

    #[test]
    fn rates_are_over_the_last_seconds() {
        let metrics = Metrics::new();
        let mut readings = Readings::default();
        let start = Instant::now();
        assert_eq!(readings.now(), Live::default());
        for second in 0..20_u64 {
            // Ten a reading at first, later none.
            for _ in 0..if second < 10 { 10 } else { 0 } {
                metrics.item(ItemStatus::Scored);
                drop(metrics.enter(Stage::Fetch));
            }
            readings.read(start + EVERY * second as u32, &metrics.render());
            if second == 9 {
                let now = readings.now();
                assert_eq!((now.scored_per_second, now.items_per_second), (5.0, 5.0));
                assert_eq!((now.stages[1].stage, now.stages[1].per_second), ("fetch", 5.0));
                assert!(now.stages[1].mean_ms.is_some() && now.stages[0].mean_ms.is_none());
            }
        }
        let now = readings.now();
        assert_eq!((now.scored_per_second, now.items["scored"]), (0.0, 100));
        assert_eq!(now.history.scored_per_second.len(), 19);
        assert_eq!((now.history.scored_per_second[0], now.history.scored_per_second[18]), (5.0, 0.0));
        assert_eq!(now.lag, None);
    }

    #[test]
    fn history_is_bounded() {
        let mut readings = Readings::default();
        let start = Instant::now();
        for reading in 0..2 * HISTORY {
            readings.read(start + EVERY * reading as u32, "roc4mllm_lag_records{partition=\"0\"} 3\n");
        }
        let now = readings.now();
        assert_eq!(now.history.lag.len(), HISTORY);
        assert_eq!((now.lag, now.partitions), (Some(3.0), 1));
        assert!(readings.recent.len() <= WINDOW + 1);
    }
}
