//! How many images a device scores at once, how many a second, and what keeps it from more.

use super::{
    device::DeviceFigures,
    work::{LanguagePass, PromptLengths, Work},
};
use crate::model::config::ModelConfig;
use serde::Serialize;

/// Bytes that the weights take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PartBytes {
    pub vision: u64,
    pub abstractor: u64,
    pub language: u64,
}

impl PartBytes {
    pub fn total(&self) -> u64 {
        self.vision + self.abstractor + self.language
    }
}

/// Bytes that one image adds to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ImageBytes {
    /// Keys and values of all layers at every position of prompt and answer.
    pub kv_cache: u64,
    /// Pixels, the keys and values, and the largest activations of one layer.
    pub total: u64,
    /// Read and written on the way through the network, weights aside: inputs and outputs of every linear
    /// map and the keys and values.
    pub moved: PartBytes,
}

impl ImageBytes {
    /// For an element of `element` bytes.
    pub fn of(config: &ModelConfig, lengths: &PromptLengths, passes: &[LanguagePass], element: u64) -> Self {
        let positions = lengths.prompt() + lengths.answer;
        let (language, vision, abstractor) = (&config.language, &config.vision, &config.abstractor);
        let wide = |value: i64| value.unsigned_abs();
        let key_value = wide(language.num_hidden_layers) * 2 * wide(language.key_value_width()) * element;
        let edge = wide(vision.image_size);
        let pixels = wide(vision.num_channels) * edge * edge * element;

        let patches = wide(vision.positions());
        let vision_layer = 8 * wide(vision.hidden_size) + 2 * wide(vision.intermediate_size);
        let queries = wide(abstractor.num_learnable_queries);
        let abstractor_layer = 4 * (queries + patches) * wide(abstractor.hidden_size)
            + queries * (7 * wide(abstractor.hidden_size) + 3 * wide(abstractor.intermediate_size));
        let language_layer = 8 * wide(language.hidden_size)
            + 2 * wide(language.key_value_width())
            + 3 * wide(language.intermediate_size);
        let (new, seen) =
            passes.iter().fold((0, 0), |(new, seen), pass| (new + pass.new, seen + pass.cached + pass.new));
        Self {
            kv_cache: positions * key_value,
            total: pixels + config.activation_bytes(1, positions, element),
            moved: PartBytes {
                vision: pixels + wide(vision.num_hidden_layers) * patches * vision_layer * element,
                abstractor: wide(abstractor.num_hidden_layers) * abstractor_layer * element,
                language: wide(language.num_hidden_layers) * new * language_layer * element
                    + seen * key_value,
            },
        }
    }
}

/// What keeps a device from scoring faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Its arithmetic.
    Compute,
    /// Reading weights and activations.
    Bandwidth,
    /// Its memory: a larger batch would be faster and does not fit, or not even one image does.
    Memory,
}

impl Bound {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Bandwidth => "memory bandwidth",
            Self::Memory => "memory",
        }
    }
}

/// What one batch size gives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BatchEstimate {
    pub batch: u64,
    /// At the figures of the data sheet: no kernel reaches more.
    pub at_most_images_per_second: f64,
    /// At the share of its arithmetic that matrix multiplication is taken to reach.
    pub expected_images_per_second: f64,
    pub bound: Bound,
}

/// What a device makes of the work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub device: DeviceFigures,
    /// Share of `device.flops` that matrix multiplication is taken to reach.
    pub efficiency: f64,
    /// 0 where the weights and one image don't fit.
    pub largest_batch: u64,
    /// Of the largest batch; [`Bound::Memory`] where it is 0.
    pub bound: Bound,
    /// From one image to the largest batch.
    pub batches: Vec<BatchEstimate>,
}

/// Larger batches change nothing.
const LARGEST_SHOWN: u64 = 4096;

/// The roofline (Williams et al. 2009) of each part of the network in turn: it takes as long as its
/// arithmetic or its reading and writing, whichever is longer. `passes` is how often a batch reads the
/// language model's weights; `reserved` bytes of the device are not for the model.
pub fn estimate(
    work: &Work,
    weights: &PartBytes,
    image: &ImageBytes,
    passes: usize,
    device: DeviceFigures,
    efficiency: f64,
    reserved: u64,
) -> Estimate {
    let free = device.memory.saturating_sub(reserved).saturating_sub(weights.total());
    let largest_batch = (free / image.total.max(1)).min(LARGEST_SHOWN);
    let parts = [
        (work.vision.total(), weights.vision, image.moved.vision),
        (work.abstractor, weights.abstractor, image.moved.abstractor),
        (work.language.total(), weights.language * passes as u64, image.moved.language),
    ];
    // Seconds of a batch, and those of its arithmetic alone.
    let seconds = |batch: u64, efficiency: f64| {
        parts.iter().fold((0.0, 0.0), |(all, arithmetic), &(flops, weights, moved)| {
            let compute = batch as f64 * flops / (device.flops * efficiency);
            let bytes = weights as f64 + batch as f64 * moved as f64;
            (all + compute.max(bytes / device.bandwidth), arithmetic + compute)
        })
    };
    let rate = |batch: u64, efficiency| batch as f64 / seconds(batch, efficiency).0;
    let bound_at = |batch: u64| {
        let (all, arithmetic) = seconds(batch, efficiency);
        // Less than a tenth is spent waiting for memory.
        if arithmetic >= 0.9 * all { Bound::Compute } else { Bound::Bandwidth }
    };
    let batches: Vec<BatchEstimate> = (0..)
        .map(|power| 1_u64 << power)
        .take_while(|&batch| batch < largest_batch)
        .chain((largest_batch > 0).then_some(largest_batch))
        .map(|batch| BatchEstimate {
            batch,
            at_most_images_per_second: rate(batch, 1.0),
            expected_images_per_second: rate(batch, efficiency),
            bound: bound_at(batch),
        })
        .collect();
    let bound = match batches.last() {
        None => Bound::Memory,
        // Twice the batch would be more than a tenth faster, but there is no room for it.
        Some(last)
            if last.bound == Bound::Bandwidth
                && last.batch < LARGEST_SHOWN
                && rate(2 * last.batch, efficiency) > 1.1 * last.expected_images_per_second =>
        {
            Bound::Memory
        }
        Some(last) => last.bound,
    };
    Estimate { device, efficiency, largest_batch, bound, batches }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::synthetic, plan::device::KnownGpu};
    use proptest::prelude::*;

    fn device(memory: u64, bandwidth: f64, flops: f64) -> DeviceFigures {
        DeviceFigures { name: "one".into(), memory, bandwidth, flops }
    }

    fn image(bytes: u64) -> ImageBytes {
        ImageBytes { kv_cache: 0, total: bytes, moved: PartBytes::default() }
    }

    fn work(flops: f64) -> Work {
        Work { abstractor: flops, total: flops, ..Work::default() }
    }

    const WEIGHTS: PartBytes = PartBytes { vision: 0, abstractor: 1000, language: 0 };

    #[test]
    fn each_bound_is_named() {
        let of = |memory, bandwidth, flops| {
            estimate(&work(100.0), &WEIGHTS, &image(10), 1, device(memory, bandwidth, flops), 1.0, 0)
        };
        let too_small = of(1009, 1.0, 1.0);
        assert_eq!((too_small.largest_batch, too_small.bound), (0, Bound::Memory));
        assert!(too_small.batches.is_empty());
        // 100 operations an image against 1000 bytes a batch: even at 10 images, compute from 11 on.
        let compute = of(2000, 1.0, 1.0);
        assert_eq!((compute.largest_batch, compute.bound), (100, Bound::Compute));
        assert_eq!(compute.batches[0].bound, Bound::Bandwidth);
        assert_eq!(compute.batches.last().unwrap().expected_images_per_second, 0.01);
        let memory = of(1020, 1.0, 1.0);
        assert_eq!((memory.largest_batch, memory.bound), (2, Bound::Memory));
        // Moving an image's own bytes is what a larger batch cannot help.
        let moving =
            ImageBytes { moved: PartBytes { abstractor: 1000, ..PartBytes::default() }, ..image(10) };
        let bandwidth = estimate(&work(100.0), &WEIGHTS, &moving, 1, device(2000, 1.0, 1.0), 1.0, 0);
        assert_eq!((bandwidth.largest_batch, bandwidth.bound), (100, Bound::Bandwidth));
    }

    #[test]
    fn reserved_memory_and_every_pass_count() {
        let reserved = estimate(&work(1.0), &WEIGHTS, &image(10), 1, device(2000, 1.0, 1.0), 1.0, 500);
        assert_eq!(reserved.largest_batch, 50);
        let weights = PartBytes { language: 1000, ..PartBytes::default() };
        let of = |passes| estimate(&work(1.0), &weights, &image(10), passes, device(1010, 1.0, 1.0), 1.0, 0);
        let rate = |estimate: Estimate| estimate.batches[0].expected_images_per_second;
        assert!(rate(of(1)) > 13.9 * rate(of(14)));
    }

    proptest! {
        #[test]
        fn a_larger_batch_is_never_slower_and_no_batch_beats_the_data_sheet(
            flops in 1e3_f64..1e15, bandwidth in 1e3_f64..1e13, efficiency in 0.1_f64..1.0
        ) {
            let config = synthetic::config();
            let lengths = PromptLengths { prefix: 4, image: 5, suffix: 6, answer: 7 };
            let passes = lengths.verified();
            let work = Work::of(&config, &passes);
            let image = ImageBytes::of(&config, &lengths, &passes, 2);
            let device = device(10_000_000, bandwidth, flops);
            let estimate = estimate(&work, &WEIGHTS, &image, passes.len(), device, efficiency, 0);
            for pair in estimate.batches.windows(2) {
                let rates = [pair[0].expected_images_per_second, pair[1].expected_images_per_second];
                prop_assert!(rates[1] >= rates[0] * (1.0 - 1e-9));
            }
            for batch in &estimate.batches {
                prop_assert!(batch.expected_images_per_second <= batch.at_most_images_per_second);
                prop_assert!(batch.at_most_images_per_second <= flops / work.total * (1.0 + 1e-9));
            }
        }
    }

    #[test]
    fn a_known_gpu_has_room_for_a_small_network() {
        let config = synthetic::config();
        let lengths = PromptLengths { prefix: 4, image: 5, suffix: 6, answer: 7 };
        let passes = lengths.verified();
        let image = ImageBytes::of(&config, &lengths, &passes, 2);
        // 2 layers, keys and values of width 16, 22 positions, 2 bytes.
        assert_eq!(image.kv_cache, 2 * 2 * 16 * 22 * 2);
        let work = Work::of(&config, &passes);
        let estimate = estimate(&work, &WEIGHTS, &image, 1, KnownGpu::L4.figures(), 0.6, 1 << 30);
        assert_eq!(estimate.largest_batch, LARGEST_SHOWN);
    }
}
