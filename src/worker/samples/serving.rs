//! Which models serve, and how one takes the place of another.

use super::{perhaps, total};
use crate::{
    serving::{Models, ServingMetrics, metrics::Stage},
    telemetry::metrics::{Sample, Sampled},
};
use std::sync::Arc;

pub(in crate::worker) fn serving(models: &Arc<Models>, metrics: &Arc<ServingMetrics>) -> Vec<Sampled> {
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
