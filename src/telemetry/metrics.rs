//! Every metric's name, in one place. Labels are closed sets, so cardinality is bounded.

use super::scores::ScoreMonitor;
use crate::{
    fault::{ErrorCode, Stage},
    score::ItemStatus,
};
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, MetricEncoder, NoLabelSet,
        text,
    },
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use std::{
    fmt::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

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

/// What becomes of votes.
const VOTES: [&str; 3] = ["stored", "superseded", "rejected"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

/// Where a score came from that the model was not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReuseSource {
    /// The item's own row: a replay, or a second notification.
    Row,
    /// Identical content that this process has seen.
    Memory,
    /// Identical content in another object's row.
    Postgres,
}

impl ReuseSource {
    fn as_str(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Memory => "memory",
            Self::Postgres => "postgres",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    stage: Shown<Stage>,
    code: Shown<ErrorCode>,
}

type Labels = Vec<(&'static str, String)>;

/// `(upper bound, count)` each.
pub type Buckets = Vec<(f64, u64)>;

/// One value that another part of the process keeps, read at each scrape.
#[derive(Clone, Debug)]
pub enum Sample {
    /// A total that only grows.
    Total(f64),
    /// Values that go up and down, one a label set.
    Levels(Vec<(Labels, f64)>),
    /// Totals by label set.
    Totals(Vec<(Labels, f64)>),
    /// Observations counted a bucket: `(upper bound, count)`, the last bound infinite, and their sum.
    Distribution { sum: f64, buckets: Buckets },
    /// Such observations by label set: labels, sum and buckets.
    Distributions(Vec<(Labels, f64, Buckets)>),
}

/// A named value with its help text; `read` is called at each scrape.
pub struct Sampled {
    pub name: &'static str,
    pub help: &'static str,
    pub read: Box<dyn Fn() -> Sample + Send + Sync>,
}

impl fmt::Debug for Sampled {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sampled").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Collector for Sampled {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let sample = (self.read)();
        let kind = match &sample {
            Sample::Total(_) | Sample::Totals(_) => MetricType::Counter,
            Sample::Levels(_) => MetricType::Gauge,
            Sample::Distribution { .. } | Sample::Distributions(_) => MetricType::Histogram,
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        match sample {
            Sample::Total(total) => metric.encode_counter::<NoLabelSet, _, f64>(&total, None),
            Sample::Totals(totals) => totals.iter().try_for_each(|(labels, total)| {
                labelled(&mut metric, labels, |metric| {
                    metric.encode_counter::<NoLabelSet, _, f64>(total, None)
                })
            }),
            Sample::Levels(levels) => levels.iter().try_for_each(|(labels, level)| {
                labelled(&mut metric, labels, |metric| metric.encode_gauge(level))
            }),
            Sample::Distribution { sum, buckets } => {
                let count = buckets.iter().map(|(_, count)| count).sum();
                metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            }
            Sample::Distributions(distributions) => {
                distributions.iter().try_for_each(|(labels, sum, buckets)| {
                    let count = buckets.iter().map(|(_, count)| count).sum();
                    labelled(&mut metric, labels, |metric| {
                        metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
                    })
                })
            }
        }
    }
}

/// Encodes one value under its labels. An empty set of them would be written as `name{}`, which not every reader
/// of the format expects.
fn labelled(
    metric: &mut MetricEncoder,
    labels: &Labels,
    encode: impl FnOnce(&mut MetricEncoder) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() { encode(metric) } else { encode(&mut metric.encode_family(labels)?) }
}

/// The process's metrics.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Records read, whatever they held.
    pub records: Counter,
    /// Records with nothing to score: tombstones, test events, other event kinds.
    pub records_skipped: Counter,
    /// From the record's timestamp to its row in Postgres.
    pub record_age: Histogram,
    items: Family<StatusLabel, Counter>,
    reused: Family<SourceLabel, Counter>,
    votes: Family<OutcomeLabel, Counter>,
    errors: Family<ErrorLabel, Counter>,
    failures: Family<StageLabel, Counter>,
    retries: Family<StageLabel, Counter>,
    batch_wait: Histogram,
    /// What the models' scores are like.
    pub scores: Arc<ScoreMonitor>,
    stage_seconds: Family<StageLabel, Histogram>,
    in_flight: Family<StageLabel, Gauge>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// A fresh registry; the worker makes one a process.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("roc4mllm");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running version", build);
        let records = Counter::default();
        registry.register("records", "Input records read", records.clone());
        let records_skipped = Counter::default();
        registry.register("records_skipped", "Input records with nothing to score", records_skipped.clone());
        let items = Family::default();
        registry.register("items", "Items finished, by status", items.clone());
        let votes = Family::default();
        registry.register("votes", "Votes read, by what became of them", votes.clone());
        let errors = Family::default();
        registry.register(
            "item_errors",
            "Items that ended without a score, by stage and code",
            errors.clone(),
        );
        let reused = Family::default();
        registry.register(
            "reused",
            "Items answered with a score that was there already, by where it was found",
            reused.clone(),
        );
        let failures = Family::default();
        registry.register(
            "stage_errors",
            "Attempts that failed in a stage, whether repeated or final",
            failures.clone(),
        );
        let retries = Family::default();
        registry.register("retries", "Attempts repeated after a passing fault, by stage", retries.clone());
        let stage_seconds: Family<StageLabel, Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16)));
        registry.register_with_unit(
            "stage_duration",
            "Time an item spends in a stage",
            Unit::Seconds,
            stage_seconds.clone(),
        );
        let in_flight = Family::default();
        registry.register("stage_in_flight", "Items in a stage", in_flight.clone());
        let batch_wait = Histogram::new(exponential_buckets(0.001, 2.0, 16));
        registry.register_with_unit(
            "batch_wait",
            "Time a preprocessed image waits for a run of the model",
            Unit::Seconds,
            batch_wait.clone(),
        );
        let record_age = Histogram::new(exponential_buckets(0.01, 2.0, 18));
        registry.register_with_unit(
            "record_age",
            "From a record's timestamp to its durable row",
            Unit::Seconds,
            record_age.clone(),
        );
        let metrics = Self {
            registry: Mutex::new(registry),
            records,
            records_skipped,
            record_age,
            items,
            reused,
            votes,
            errors,
            failures,
            retries,
            batch_wait,
            scores: Arc::default(),
            stage_seconds,
            in_flight,
        };
        metrics.preset();
        metrics.sample(metrics.scores.sampled());
        Arc::new(metrics)
    }

    /// Shows every label of the small closed sets from the start: a rate needs a zero to begin at.
    fn preset(&self) {
        for stage in Stage::ALL {
            let label = StageLabel { stage: Shown(stage) };
            drop(self.failures.get_or_create(&label));
            drop(self.retries.get_or_create(&label));
            drop(self.stage_seconds.get_or_create(&label));
            drop(self.in_flight.get_or_create(&label));
        }
        for source in [ReuseSource::Row, ReuseSource::Memory, ReuseSource::Postgres] {
            drop(self.reused.get_or_create(&SourceLabel { source: source.as_str() }));
        }
        for outcome in VOTES {
            drop(self.votes.get_or_create(&OutcomeLabel { outcome }));
        }
        for status in ItemStatus::ALL {
            drop(self.items.get_or_create(&StatusLabel { status: Shown(status) }));
        }
    }

    /// Counts one finished item.
    pub fn item(&self, status: ItemStatus) {
        self.items.get_or_create(&StatusLabel { status: Shown(status) }).inc();
    }

    /// Counts one item whose score the model was not asked for.
    pub fn reused(&self, source: ReuseSource) {
        self.reused.get_or_create(&SourceLabel { source: source.as_str() }).inc();
    }

    /// Counts one vote, by one of the words for what becomes of it.
    pub fn vote(&self, outcome: &'static str) {
        self.votes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Counts one item that ended without a score.
    pub fn error(&self, stage: Stage, code: ErrorCode) {
        self.errors.get_or_create(&ErrorLabel { stage: Shown(stage), code: Shown(code) }).inc();
        self.failures.get_or_create(&StageLabel { stage: Shown(stage) }).inc();
    }

    /// Counts one repeated attempt.
    pub fn retry(&self, stage: Stage) {
        let label = StageLabel { stage: Shown(stage) };
        self.retries.get_or_create(&label).inc();
        self.failures.get_or_create(&label).inc();
    }

    /// Records how long a preprocessed image waited for a run of the model.
    pub fn batch_wait(&self, waited: Duration) {
        self.batch_wait.observe(waited.as_secs_f64());
    }

    /// Adds values that another part keeps.
    pub fn sample(&self, sampled: Vec<Sampled>) {
        let mut registry = self.lock();
        for sampled in sampled {
            registry.register_collector(Box::new(sampled));
        }
    }

    /// Counts the item in `stage` until the guard drops, then records how long it was there.
    pub fn enter(&self, stage: Stage) -> StageGuard {
        let label = StageLabel { stage: Shown(stage) };
        let gauge = self.in_flight.get_or_create(&label).clone();
        gauge.inc();
        StageGuard {
            gauge,
            histogram: self.stage_seconds.get_or_create(&label).clone(),
            since: Instant::now(),
        }
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
#[derive(Debug)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn labels_read_as_everywhere_else() {
        let metrics = Metrics::new();
        metrics.error(Stage::Decode, ErrorCode::ImageTruncated);
        metrics.item(ItemStatus::Rejected);
        metrics.vote("superseded");
        metrics.reused(ReuseSource::Memory);
        drop(metrics.enter(Stage::Fetch));
        let text = metrics.render();
        for line in [
            r#"roc4mllm_item_errors_total{stage="decode",code="image_truncated"} 1"#,
            r#"roc4mllm_items_total{status="rejected"} 1"#,
            r#"roc4mllm_votes_total{outcome="superseded"} 1"#,
            r#"roc4mllm_reused_total{source="memory"} 1"#,
            r#"roc4mllm_stage_in_flight{stage="fetch"} 0"#,
            r#"roc4mllm_stage_errors_total{stage="decode"} 1"#,
            r#"roc4mllm_stage_errors_total{stage="produce"} 0"#,
            r#"roc4mllm_items_total{status="dead"} 0"#,
            r#"roc4mllm_stage_duration_seconds_count{stage="fetch"} 1"#,
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn sampled_values_are_read_at_each_scrape() {
        let metrics = Metrics::new();
        let total = Arc::new(AtomicU64::new(1));
        let read = Arc::clone(&total);
        metrics.sample(vec![
            Sampled {
                name: "batches",
                help: "Model batches",
                read: Box::new(move || Sample::Total(read.load(Ordering::Relaxed) as f64)),
            },
            Sampled {
                name: "lag_records",
                help: "Records behind",
                read: Box::new(|| Sample::Levels(vec![(vec![("partition", "3".into())], 7.0)])),
            },
            Sampled {
                name: "paused",
                help: "1 while paused",
                read: Box::new(|| Sample::Levels(vec![(vec![], 1.0)])),
            },
            Sampled {
                name: "batch_size",
                help: "Images a batch",
                read: Box::new(|| Sample::Distribution {
                    sum: 5.0,
                    buckets: vec![(1.0, 1), (f64::INFINITY, 1)],
                }),
            },
        ]);
        assert!(metrics.render().contains("roc4mllm_batches_total 1.0"), "{}", metrics.render());
        total.store(2, Ordering::Relaxed);
        let text = metrics.render();
        for line in [
            "roc4mllm_batches_total 2.0",
            r#"roc4mllm_lag_records{partition="3"} 7.0"#,
            "roc4mllm_paused 1.0",
            r#"roc4mllm_batch_size_bucket{le="+Inf"} 2"#,
            "roc4mllm_batch_size_count 2",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} not in\n{text}");
        }
        assert!(!text.contains("{}"), "{text}");
    }
}
