//! Metrics whose values other parts keep.

use crate::{
    fetch::Fetcher,
    inference::metrics::{BATCH_SIZE_BOUNDS, InferenceMetrics},
    kafka::{KafkaStats, Ledger},
    pipeline::{Admission, Hold, Reuse},
    quarantine::QuarantineMetrics,
    serving::{Models, ServingMetrics, metrics::Stage},
    telemetry::metrics::{Sample, Sampled},
};
use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};

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
    let (cap, bisections) = (metrics(), metrics());
    let (waiting, golden, age) = (Arc::clone(models), metrics(), metrics());
    vec![
        total("model_batches", "Runs of the model", move || batches.batches.get() as f64),
        total("model_images", "Images that the model answered for", move || images.images.get() as f64),
        total("model_busy_seconds", "Time the model spent computing", move || {
            model_busy.model_busy.total().as_secs_f64()
        }),
        total("model_out_of_memory", "Batches halved for want of memory", move || {
            memory.out_of_memory.get() as f64
        }),
        level("model_batch_cap", "The most images in one run of the model now", move || {
            cap.batch_cap.get() as f64
        }),
        total("model_bisections", "Batches split to find the image that makes them fail", move || {
            bisections.bisections.get() as f64
        }),
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
    let (paused, lag, uncommitted) = (Arc::clone(stats), Arc::clone(stats), Arc::clone(ledger));
    let backfill = Arc::clone(stats);
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
        Sampled {
            name: "lag_records",
            help: "Records behind the end of the partition, less those already done",
            read: Box::new(move || {
                let labels = |topic: &str, partition: i32| {
                    vec![("topic", topic.to_owned()), ("partition", partition.to_string())]
                };
                Sample::Levels(
                    lag.lag()
                        .into_iter()
                        .map(|(place, lag)| (labels(&place.topic, place.partition), lag as f64))
                        .collect(),
                )
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
