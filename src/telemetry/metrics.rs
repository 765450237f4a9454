//! Every metric's name, in one place. Labels are closed sets, so cardinality is bounded.

use crate::{
    fault::{ErrorCode, Stage},
    score::ItemStatus,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use std::{
    fmt::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

type FloatCounter = Counter<f64, AtomicU64>;

/// A label whose value is how the enum is written everywhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shown<T>(T);

impl<T: std::fmt::Display> EncodeLabelValue for Shown<T> {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        write!(encoder, "{}", self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: Shown<Stage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: Shown<ItemStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    stage: Shown<Stage>,
    code: Shown<ErrorCode>,
}

/// A Kafka partition as labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PartitionLabel {
    pub topic: String,
    pub partition: i32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ResultLabel(&'static str);

impl EncodeLabelSet for ResultLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), std::fmt::Error> {
        ("result", self.0).encode(encoder.encode_label())
    }
}

use prometheus_client::encoding::EncodeLabel;

/// The process's metrics.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Records read, whatever they held.
    pub records: Counter,
    /// Records with nothing to score: tombstones, test events, other event kinds.
    pub records_skipped: Counter,
    /// Items answered with a score that a row already held.
    pub reused: Counter,
    /// Kafka transactions (or offset commits) that succeeded.
    pub commits: Counter,
    /// Partitions paused because the pipeline is full; 1 while any is.
    pub paused: Gauge,
    /// Encoded images in memory.
    pub bytes_in_flight: Gauge,
    /// Seconds the model spent computing.
    pub model_busy: FloatCounter,
    /// Images a batch.
    pub batch_size: Histogram,
    /// From the record's timestamp to its row in Postgres.
    pub record_age: Histogram,
    items: Family<StatusLabel, Counter>,
    errors: Family<ErrorLabel, Counter>,
    retries: Family<StageLabel, Counter>,
    stage_seconds: Family<StageLabel, Histogram>,
    in_flight: Family<StageLabel, Gauge>,
    lag: Family<PartitionLabel, Gauge>,
    commit_failures: Family<ResultLabel, Counter>,
}

impl Metrics {
    /// A fresh registry; the worker makes one a process.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("roc4mllm");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running version", build);
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let metrics = Self {
            records: Counter::default(),
            records_skipped: Counter::default(),
            reused: Counter::default(),
            commits: Counter::default(),
            paused: Gauge::default(),
            bytes_in_flight: Gauge::default(),
            model_busy: FloatCounter::default(),
            batch_size: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]),
            record_age: Histogram::new(exponential_buckets(0.01, 2.0, 18)),
            items: Family::default(),
            errors: Family::default(),
            retries: Family::default(),
            stage_seconds: Family::new_with_constructor(seconds),
            in_flight: Family::default(),
            lag: Family::default(),
            commit_failures: Family::default(),
            registry: Mutex::new(Registry::default()),
        };
        registry.register("records", "Input records read", metrics.records.clone());
        registry.register("records_skipped", "Input records with nothing to score", metrics.records_skipped.clone());
        registry.register("items", "Items finished, by status", metrics.items.clone());
        registry.register("item_errors", "Items that ended without a score, by stage and code", metrics.errors.clone());
        registry.register("reused", "Items answered from a row that already held the score", metrics.reused.clone());
        registry.register("retries", "Attempts repeated after a passing fault, by stage", metrics.retries.clone());
        registry.register_with_unit("stage_duration", "Time an item spends in a stage", Unit::Seconds, metrics.stage_seconds.clone());
        registry.register("stage_in_flight", "Items in a stage", metrics.in_flight.clone());
        registry.register("batch_size", "Images a model batch", metrics.batch_size.clone());
        registry.register_with_unit("model_busy", "Time the model spent computing", Unit::Seconds, metrics.model_busy.clone());
        registry.register_with_unit("record_age", "From a record's timestamp to its durable row", Unit::Seconds, metrics.record_age.clone());
        registry.register("lag_records", "Records behind the end of the partition, less those already done", metrics.lag.clone());
        registry.register("commits", "Kafka commits that succeeded", metrics.commits.clone());
        registry.register("commit_failures", "Kafka commits that did not succeed, by result", metrics.commit_failures.clone());
        registry.register("paused", "1 while back-pressure pauses the input", metrics.paused.clone());
        registry.register_with_unit("encoded_in_flight", "Encoded images in memory", Unit::Bytes, metrics.bytes_in_flight.clone());
        Arc::new(Self { registry: Mutex::new(registry), ..metrics })
    }

    /// Names the serving model in `roc4mllm_model_info`.
    pub fn serve_model(&self, model: &crate::score::ModelVersion) {
        let info = Info::new(vec![("model", model.model.clone()), ("version", model.version.clone())]);
        self.lock().register("model", "The serving model", info);
    }

    /// Counts one finished item.
    pub fn item(&self, status: ItemStatus) {
        self.items.get_or_create(&StatusLabel { status: Shown(status) }).inc();
    }

    /// Counts one item that ended without a score.
    pub fn error(&self, stage: Stage, code: ErrorCode) {
        self.errors.get_or_create(&ErrorLabel { stage: Shown(stage), code: Shown(code) }).inc();
    }

    /// Counts one repeated attempt.
    pub fn retry(&self, stage: Stage) {
        self.retries.get_or_create(&StageLabel { stage: Shown(stage) }).inc();
    }

    /// Counts one commit that did not succeed.
    pub fn commit_failure(&self, result: &'static str) {
        self.commit_failures.get_or_create(&ResultLabel(result)).inc();
    }

    /// Sets a partition's lag, or forgets it once it is no longer assigned.
    pub fn set_lag(&self, label: PartitionLabel, lag: Option<i64>) {
        match lag {
            Some(lag) => {
                self.lag.get_or_create(&label).set(lag);
            }
            None => {
                self.lag.remove(&label);
            }
        }
    }

    /// Counts the item in `stage` until the guard drops, then records how long it was there.
    pub fn enter(&self, stage: Stage) -> StageGuard {
        let label = StageLabel { stage: Shown(stage) };
        let gauge = self.in_flight.get_or_create(&label).clone();
        gauge.inc();
        StageGuard { gauge, histogram: self.stage_seconds.get_or_create(&label).clone(), since: Instant::now() }
    }

    /// All metrics in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut rendered = String::new();
        if let Err(error) = text::encode(&mut rendered, &self.lock()) {
            tracing::error!(%error, "metrics could not be rendered");
        }
        rendered
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// An item's stay in one stage; the gauge cannot leak.
pub struct StageGuard {
    gauge: Gauge,
    histogram: Histogram,
    since: Instant,
}

impl Drop for StageGuard {
    fn drop(&mut self) {
        self.gauge.dec();
        self.histogram.observe(self.since.elapsed().as_secs_f64());
    }
}

/// Turns a total that another part keeps into increments of a counter.
#[derive(Default)]
pub struct Delta(AtomicU64);

impl Delta {
    /// What `total` has grown by since the last call.
    pub fn since_last(&self, total: u64) -> u64 {
        total.saturating_sub(self.0.swap(total, Ordering::Relaxed))
    }

    /// The same for a duration, in seconds.
    pub fn seconds_since_last(&self, total: Duration) -> f64 {
        self.since_last(u64::try_from(total.as_micros()).unwrap_or(u64::MAX)) as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_read_as_everywhere_else() {
        let metrics = Metrics::new();
        metrics.error(Stage::Decode, ErrorCode::ImageTruncated);
        metrics.item(ItemStatus::Rejected);
        metrics.set_lag(PartitionLabel { topic: "t".into(), partition: 3 }, Some(7));
        drop(metrics.enter(Stage::Fetch));
        metrics.commit_failure("aborted");
        let text = metrics.render();
        for line in [
            r#"roc4mllm_item_errors_total{stage="decode",code="image_truncated"} 1"#,
            r#"roc4mllm_items_total{status="rejected"} 1"#,
            r#"roc4mllm_lag_records{topic="t",partition="3"} 7"#,
            r#"roc4mllm_stage_in_flight{stage="fetch"} 0"#,
            r#"roc4mllm_stage_duration_seconds_count{stage="fetch"} 1"#,
            r#"roc4mllm_commit_failures_total{result="aborted"} 1"#,
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn a_revoked_partition_shows_no_lag() {
        let metrics = Metrics::new();
        let label = PartitionLabel { topic: "t".into(), partition: 0 };
        metrics.set_lag(label.clone(), Some(1));
        metrics.set_lag(label, None);
        assert!(!metrics.render().contains("roc4mllm_lag_records{"));
    }
}
