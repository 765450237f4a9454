//! What the batcher and the model's thread count.

use super::{level, perhaps, total};
use crate::{
    inference::metrics::{BATCH_SIZE_BOUNDS, InferenceMetrics},
    serving::Models,
    telemetry::metrics::{Sample, Sampled},
};
use std::sync::Arc;

pub(super) fn inference(models: &Arc<Models>, metrics: &Arc<InferenceMetrics>) -> Vec<Sampled> {
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
