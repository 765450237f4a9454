//! Metrics whose values other parts keep.

mod inference;
mod kafka;
mod serving;

pub(super) use serving::serving;

use crate::{
    fetch::Fetcher,
    kafka::{KafkaStats, Ledger},
    pipeline::{Admission, Hold, Reuse},
    quarantine::QuarantineMetrics,
    serving::{Models, ServingMetrics},
    store::RetrainSummary,
    telemetry::{
        metrics::{Sample, Sampled},
        traces::Traces,
    },
};
use std::sync::Arc;

/// Everything that is read at a scrape rather than counted along the way.
pub(super) fn all(
    models: &Arc<Models>,
    serving: &Arc<ServingMetrics>,
    stats: &Arc<KafkaStats>,
    ledger: &Arc<Ledger>,
    admission: &Arc<Admission>,
) -> Vec<Sampled> {
    let mut sampled = inference::inference(models, &serving.inference);
    sampled.extend(kafka::kafka(stats, ledger));
    let (bytes, items) = (Arc::clone(admission), Arc::clone(admission));
    sampled.push(level(
        "encoded_in_flight_bytes",
        "Encoded images in memory, promised ones included",
        move || bytes.bytes_held() as f64,
    ));
    sampled.push(level("items_in_flight", "Items between their record and their durable row", move || {
        items.items_held() as f64
    }));
    sampled
}

/// How the dependencies are, as far as the pipeline can see.
pub(super) fn surroundings(hold: &Arc<Hold>, fetcher: &Fetcher) -> Vec<Sampled> {
    let (breakers, held, letters) = (Arc::clone(hold), Arc::clone(hold), Arc::clone(hold));
    let (limit, hedges) = (fetcher.clone(), fetcher.clone());
    vec![
        Sampled {
            name: "breaker_open",
            help: "1 while a dependency is broken and what needs it is held",
            read: Box::new(move || {
                let open = breakers.dependencies().map(|dependency| {
                    let labels = vec![("dependency", dependency.name().to_owned())];
                    (labels, f64::from(u8::from(dependency.is_open())))
                });
                Sample::Levels(open.into())
            }),
        },
        level(
            "items_held",
            "Items that wait for a broken dependency, or with a held dead letter",
            move || held.items_held() as f64,
        ),
        level("dead_letters_held", "1 while dead letters are held because there are too many", move || {
            f64::from(u8::from(letters.holds_dead_letters()))
        }),
        level("s3_concurrency_limit", "Objects fetched at once at most, just now", move || {
            limit.concurrency_limit() as f64
        }),
        total("s3_hedged_requests", "Second requests for objects that were slow to come", move || {
            hedges.hedged() as f64
        }),
    ]
}

/// What is kept of scores for identical content.
pub(super) fn reuse(reuse: Option<&Arc<Reuse>>) -> Vec<Sampled> {
    let Some(reuse) = reuse else { return Vec::new() };
    let (entries, bytes) = (Arc::clone(reuse), Arc::clone(reuse));
    vec![
        level("reuse_entries", "Scores kept in memory for identical content", move || {
            entries.held().0 as f64
        }),
        level("reuse_bytes", "Memory that those scores take", move || bytes.held().1 as f64),
    ]
}

/// What is kept away from this process, and why.
pub(super) fn quarantine(quarantine: &Arc<QuarantineMetrics>, ledger: &Arc<Ledger>) -> Vec<Sampled> {
    let (images, deaths, ledger) = (Arc::clone(quarantine), Arc::clone(quarantine), Arc::clone(ledger));
    vec![
        total("quarantine_images", "Suspected images that came to an end in a child process", move || {
            images.images.get() as f64
        }),
        total("quarantine_deaths", "Child processes that ended over an image", move || {
            deaths.deaths.get() as f64
        }),
        level(
            "partitions_quarantined",
            "Partitions whose records are suspected of killing workers",
            move || ledger.progress().iter().filter(|progress| progress.suspicious).count() as f64,
        ),
    ]
}

/// What Postgres says of retraining; nothing where it says nothing.
pub(super) fn retraining(summary: &tokio::sync::watch::Receiver<Option<RetrainSummary>>) -> Vec<Sampled> {
    let of = |name, help, read: fn(&RetrainSummary) -> Option<f64>| {
        let summary = summary.clone();
        perhaps(name, help, move || summary.borrow().as_ref().and_then(read))
    };
    let runs = summary.clone();
    vec![
        Sampled {
            name: "retrain_runs",
            help: "Retraining runs that have ended, by outcome",
            read: Box::new(move || {
                let summary = runs.borrow();
                let runs = summary.iter().flat_map(|summary| &summary.outcomes);
                let levels = runs.map(|(outcome, runs)| (vec![("outcome", outcome.clone())], *runs as f64));
                Sample::Levels(levels.collect())
            }),
        },
        of("retrain_running", "Retraining runs that somebody works on", |summary| {
            Some(summary.running as f64)
        }),
        of(
            "retrain_last_success_timestamp_seconds",
            "Unix time at which the last retraining run ended that did not fail",
            |summary| Some(summary.last_success.map_or(f64::NAN, |ended| ended.unix_timestamp() as f64)),
        ),
        of(
            "retrain_rejections_in_a_row",
            "Retrained models that were rejected since the last one that was not",
            |summary| Some(summary.rejections_in_a_row as f64),
        ),
    ]
}

/// What became of spans.
pub(super) fn traces(traces: &Traces) -> Vec<Sampled> {
    let traces = traces.clone();
    vec![Sampled {
        name: "trace_spans",
        help: "Spans for the trace collector, by what became of them",
        read: Box::new(move || {
            let counted = |outcome: &str, spans: u64| (vec![("outcome", outcome.to_owned())], spans as f64);
            let (ended, exported, failed) = traces
                .counts()
                .map_or((0, 0, 0), |counts| (counts.ended(), counts.exported(), counts.failed()));
            Sample::Totals(vec![
                counted("ended", ended),
                counted("exported", exported),
                counted("failed", failed),
            ])
        }),
    }]
}

fn total(name: &'static str, help: &'static str, read: impl Fn() -> f64 + Send + Sync + 'static) -> Sampled {
    Sampled { name, help, read: Box::new(move || Sample::Total(read())) }
}

fn level(name: &'static str, help: &'static str, read: impl Fn() -> f64 + Send + Sync + 'static) -> Sampled {
    Sampled { name, help, read: Box::new(move || Sample::Levels(vec![(Vec::new(), read())])) }
}

/// A level that may not be there at all.
fn perhaps(
    name: &'static str,
    help: &'static str,
    read: impl Fn() -> Option<f64> + Send + Sync + 'static,
) -> Sampled {
    let levels = move || read().into_iter().map(|level| (Vec::new(), level)).collect();
    Sampled { name, help, read: Box::new(move || Sample::Levels(levels())) }
}
