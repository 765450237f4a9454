//! Metrics whose values other parts keep.

use crate::{
    fetch::Fetcher,
    inference::metrics::{BATCH_SIZE_BOUNDS, InferenceMetrics},
    kafka::{Backlog, KafkaStats, Ledger, Progress, TopicPartition},
    pipeline::{Admission, Hold, Reuse},
    quarantine::QuarantineMetrics,
    serving::{Models, ServingMetrics, metrics::Stage},
    store::RetrainSummary,
    telemetry::{
        metrics::{Sample, Sampled},
        traces::Traces,
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
    time::Instant,
};

/// Everything that is read at a scrape rather than counted along the way.
pub(super) fn all(
    models: &Arc<Models>,
    serving: &Arc<ServingMetrics>,
    stats: &Arc<KafkaStats>,
    ledger: &Arc<Ledger>,
    admission: &Arc<Admission>,
) -> Vec<Sampled> {
    let mut sampled = inference(models, &serving.inference);
    sampled.extend(kafka(stats, ledger));
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

fn inference(models: &Arc<Models>, metrics: &Arc<InferenceMetrics>) -> Vec<Sampled> {
    let metrics = || Arc::clone(metrics);
    let (batches, images, decoded, memory) = (metrics(), metrics(), metrics(), metrics());
    let (model_busy, decode_busy, sizes) = (metrics(), metrics(), metrics());
    let (cap, bisections, drafts) = (metrics(), metrics(), metrics());
    let (waiting, golden, age) = (Arc::clone(models), metrics(), metrics());
    let (running, empty) = (Arc::clone(models), metrics());
    vec![
        total("model_batches", "Runs of the model", move || batches.batches.get() as f64),
        total("model_images", "Images that the model answered for", move || images.images.get() as f64),
        total("model_busy_seconds", "Time the model spent computing", move || {
            model_busy.model_busy.total().as_secs_f64()
        }),
        total("model_out_of_memory", "Batches halved for want of memory", move || {
            memory.out_of_memory.get() as f64
        }),
        level("model_running_seconds", "How long the run of the model under way has taken", move || {
            running.running_for().unwrap_or_default().as_secs_f64()
        }),
        total("batch_empty_places", "Places in runs of the model that no image took", move || {
            empty.empty_places.get() as f64
        }),
        level("model_batch_cap", "The most images in one run of the model now", move || {
            cap.batch_cap.get() as f64
        }),
        total("model_bisections", "Batches split to find the image that makes them fail", move || {
            bisections.bisections.get() as f64
        }),
        Sampled {
            name: "model_drafts",
            help: "Draft answers tried on an image, by how they fared",
            read: Box::new(move || {
                let outcome = |outcome: &str, count: f64| (vec![("outcome", outcome.to_owned())], count);
                Sample::Totals(vec![
                    outcome("accepted", drafts.drafts_accepted.get() as f64),
                    outcome("rejected", drafts.drafts_rejected.get() as f64),
                ])
            }),
        },
        total("images_decoded", "Images decoded and preprocessed", move || decoded.decoded.get() as f64),
        total("decode_busy_seconds", "Time of the decode threads, summed", move || {
            decode_busy.decode_busy.total().as_secs_f64()
        }),
        level("batch_queue_images", "Preprocessed images that wait for a batch", move || {
            waiting.waiting() as f64
        }),
        perhaps(
            "golden_image_ok",
            "1 while the built-in picture gets the score it had at start",
            move || golden.golden.last().map(|(right, _)| f64::from(u8::from(right))),
        ),
        perhaps("golden_image_age_seconds", "Since the built-in picture was scored last", move || {
            age.golden.last().map(|(_, age)| age.as_secs_f64())
        }),
        Sampled {
            name: "batch_size",
            help: "Images a model batch",
            read: Box::new(move || {
                let bounds = BATCH_SIZE_BOUNDS.iter().map(|&bound| bound as f64).chain([f64::INFINITY]);
                let buckets = bounds.zip(sizes.batch_sizes()).collect();
                Sample::Distribution { sum: sizes.images.get() as f64, buckets }
            }),
        },
    ]
}

fn kafka(stats: &Arc<KafkaStats>, ledger: &Arc<Ledger>) -> Vec<Sampled> {
    let counted = |name, help, counter: fn(&KafkaStats) -> &AtomicU64| {
        let stats = Arc::clone(stats);
        total(name, help, move || counter(&stats).load(Ordering::Relaxed) as f64)
    };
    let (paused, committed, uncommitted) = (Arc::clone(stats), Arc::clone(stats), Arc::clone(ledger));
    let (backfill, untouched, oldest) = (Arc::clone(stats), Arc::clone(stats), Arc::clone(ledger));
    vec![
        counted("commits", "Kafka commits that succeeded", |stats| &stats.commits),
        counted("commit_aborts", "Transactions aborted and plain commits that failed", |stats| &stats.aborts),
        counted("producer_replacements", "Producers replaced because an outcome was in doubt", |stats| {
            &stats.producer_replacements
        }),
        counted("outputs_committed", "Outputs and dead letters committed", |stats| &stats.outputs),
        counted(
            "records_already_done",
            "Records passed over because an earlier owner finished them",
            |stats| &stats.already_done,
        ),
        counted("partitions_assigned", "Partitions that rebalances gave", |stats| &stats.assigned),
        counted("partitions_revoked", "Partitions that rebalances took", |stats| &stats.revoked),
        counted("partitions_lost", "Partitions lost without notice", |stats| &stats.lost),
        level("paused", "1 while back-pressure pauses the input", move || {
            f64::from(u8::from(paused.paused.load(Ordering::Relaxed)))
        }),
        level("backfill_paused", "1 while the backfill topic waits for uploads", move || {
            f64::from(u8::from(backfill.backfill_paused.load(Ordering::Relaxed)))
        }),
        level("uncommitted_records", "Finished records that wait for a commit", move || {
            uncommitted.uncommitted() as f64
        }),
        level(
            "last_commit_seconds",
            "Since a commit, or the finding that there is none to make",
            move || committed.since_commit().as_secs_f64(),
        ),
        by_partition("lag_records", "Records behind the end of the partition, less those already done", {
            let stats = Arc::clone(stats);
            move || stats.backlog().into_iter().map(|(source, backlog)| (source, backlog.records)).collect()
        }),
        by_partition("records_done_ahead", "Records done beyond the first that is not", {
            let stats = Arc::clone(stats);
            move || {
                stats.backlog().into_iter().map(|(source, backlog)| (source, backlog.done_ahead)).collect()
            }
        }),
        Sampled {
            name: "oldest_unscored_seconds",
            help: "Age of the oldest record that is not finished",
            read: Box::new(move || {
                let ages = oldest_ages(&oldest.progress(), &untouched.backlog(), now_ms(), Instant::now());
                let labelled = ages.into_iter().map(|(topic, age)| (vec![("topic", topic)], age));
                Sample::Levels(labelled.collect())
            }),
        },
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

/// Which models serve, and how one takes the place of another.
pub(super) fn serving(models: &Arc<Models>, metrics: &Arc<ServingMetrics>) -> Vec<Sampled> {
    let of = |read: fn(&ServingMetrics) -> f64| {
        let metrics = Arc::clone(metrics);
        move || read(&metrics)
    };
    let (info, shares, shadows) = (Arc::clone(models), Arc::clone(models), Arc::clone(models));
    let (stage, last) = (Arc::clone(metrics), Arc::clone(metrics));
    vec![
        Sampled {
            name: "model_info",
            help: "1 for each model that is loaded, by what it is for",
            read: Box::new(move || {
                let lineup = info.lineup();
                let canary = lineup.canary.iter().map(|canary| ("canary", &canary.model));
                let shadows = lineup.shadows.iter().map(|shadow| ("shadow", shadow.model()));
                let champion = lineup.champion.iter().map(|champion| ("champion", champion));
                let labelled = champion.chain(canary).chain(shadows).map(|(role, model)| {
                    let version = model.version();
                    let labels = vec![
                        ("model", version.model.clone()),
                        ("version", version.version.clone()),
                        ("role", role.to_owned()),
                    ];
                    (labels, 1.0)
                });
                Sample::Levels(labelled.collect())
            }),
        },
        Sampled {
            name: "model_share",
            help: "The share of keys that a canary scores, or a shadow scores along",
            read: Box::new(move || {
                let lineup = shares.lineup();
                let canary = lineup.canary.iter().map(|canary| ("canary", &canary.model, canary.share));
                let shadows = lineup.shadows.iter().map(|shadow| ("shadow", shadow.model(), shadow.share()));
                let labelled = canary.chain(shadows).map(|(role, model, share)| {
                    let labels =
                        vec![("version", model.version().version.clone()), ("role", role.to_owned())];
                    (labels, share.get())
                });
                Sample::Levels(labelled.collect())
            }),
        },
        total(
            "model_switches",
            "Champions that took the place of another",
            of(|metrics| metrics.switches.get() as f64),
        ),
        total(
            "model_switch_failures",
            "Times that a registered version could not be served",
            of(|metrics| metrics.failures.get() as f64),
        ),
        total(
            "model_registry_unanswered",
            "Times that the registry of models did not answer",
            of(|metrics| metrics.unanswered.get() as f64),
        ),
        perhaps(
            "model_last_switch_seconds",
            "The last switch of champions, from noticing the new one to freeing the old one",
            move || last.last_switch().map(|took| took.as_secs_f64()),
        ),
        Sampled {
            name: "model_switch_stage",
            help: "1 for what the switching of models is busy with",
            read: Box::new(move || {
                let now = stage.stage();
                let levels = Stage::ALL.map(|stage| {
                    (vec![("stage", stage.as_str().to_owned())], f64::from(u8::from(stage == now)))
                });
                Sample::Levels(levels.into())
            }),
        },
        total(
            "shadow_images",
            "Images that a shadow scored",
            of(|metrics| metrics.shadow.scored.get() as f64),
        ),
        total(
            "shadow_unscored",
            "Images that a shadow had no score for",
            of(|metrics| metrics.shadow.unscored.get() as f64),
        ),
        total(
            "shadow_dropped",
            "Sampled images that no shadow scored since the worker was busy",
            of(|metrics| metrics.shadow.dropped.get() as f64),
        ),
        total(
            "shadow_forgotten",
            "Images whose agreement Postgres did not take in time",
            of(|metrics| metrics.shadow.forgotten.get() as f64),
        ),
        Sampled {
            name: "shadow_difference",
            help: "Shadow less published score in this process: its mean, and the mean of its size",
            read: Box::new(move || {
                let lineup = shadows.lineup();
                let found = lineup.shadows.iter().filter(|shadow| shadow.sums().images > 0);
                let levels = found.flat_map(|shadow| {
                    let (sums, version) = (shadow.sums(), &shadow.model().version().version);
                    let level = |of: &str, sum: f64| {
                        let labels = vec![("version", version.clone()), ("of", of.to_owned())];
                        (labels, sum / sums.images as f64)
                    };
                    [
                        level("mean", sums.candidate - sums.champion),
                        level("mean_absolute", sums.absolute_difference),
                    ]
                });
                Sample::Levels(levels.collect())
            }),
        },
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

fn by_partition(
    name: &'static str,
    help: &'static str,
    read: impl Fn() -> BTreeMap<TopicPartition, u64> + Send + Sync + 'static,
) -> Sampled {
    let levels = move || {
        let labels = |source: &TopicPartition| {
            vec![("topic", source.topic.to_string()), ("partition", source.partition.to_string())]
        };
        read().iter().map(|(source, value)| (labels(source), *value as f64)).collect()
    };
    Sampled { name, help, read: Box::new(move || Sample::Levels(levels())) }
}

/// Seconds by topic: of the oldest record that is read and unfinished, by its stamp; or, where there are
/// records and none is read, since that was first seen.
fn oldest_ages(
    progress: &[Progress],
    backlog: &BTreeMap<TopicPartition, Backlog>,
    now_ms: i64,
    now: Instant,
) -> BTreeMap<String, f64> {
    let mut ages = BTreeMap::new();
    for progress in progress {
        let read = progress.oldest_ms.map(|stamped| now_ms.saturating_sub(stamped).max(0) as f64 / 1000.0);
        let since = backlog.get(&progress.source).and_then(|backlog| backlog.untouched_since);
        let untouched = since.filter(|_| progress.unfinished == 0);
        let untouched = untouched.map(|since| now.saturating_duration_since(since).as_secs_f64());
        let age = read.or(untouched).unwrap_or_default();
        let oldest: &mut f64 = ages.entry(progress.source.topic.to_string()).or_default();
        *oldest = oldest.max(age);
    }
    ages
}

fn now_ms() -> i64 {
    let now = time::OffsetDateTime::now_utc();
    now.unix_timestamp() * 1000 + i64::from(now.millisecond())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn progress(partition: i32, oldest_ms: Option<i64>) -> Progress {
        Progress {
            source: TopicPartition::new("t", partition),
            base: 0,
            done_ahead: 0,
            unfinished: usize::from(oldest_ms.is_some()),
            oldest_ms,
            position: 0,
            full: false,
            starts: 0,
            suspicious: false,
        }
    }

    #[test]
    fn a_topic_is_as_old_as_its_oldest_partition() {
        let none = BTreeMap::new();
        let now = Instant::now();
        let age = |progress: &[Progress], backlog| oldest_ages(progress, backlog, 10_000, now)["t"];
        assert_eq!(age(&[progress(0, None)], &none), 0.0);
        assert_eq!(age(&[progress(0, Some(7_000)), progress(1, Some(9_000))], &none), 3.0);
        assert_eq!(age(&[progress(0, Some(12_000))], &none), 0.0, "the producer's clock is ahead");
    }

    #[test]
    fn what_was_never_read_ages_too() {
        let now = Instant::now() + Duration::from_secs(30);
        let since = now - Duration::from_secs(20);
        let backlog = Backlog { records: 5, done_ahead: 0, untouched_since: Some(since) };
        let backlog = BTreeMap::from([(TopicPartition::new("t", 0), backlog)]);
        assert_eq!(oldest_ages(&[progress(0, None)], &backlog, 0, now)["t"], 20.0);
        let read = oldest_ages(&[progress(0, Some(0))], &backlog, 1_000, now);
        assert_eq!(read["t"], 1.0, "the measurement is older than the reading");
    }
}
