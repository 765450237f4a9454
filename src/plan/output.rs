//! The plan itself, for people and as JSON.

use super::{
    PlanError,
    args::{PlanArgs, WeightType},
    device::Significant,
    estimate::{Estimate, ImageBytes, PartBytes, estimate},
    work::{LanguagePass, PromptLengths, Work},
};
use crate::model::{
    checkpoint::{Role, expected_tensors, is_layer_weight},
    config::ModelConfig,
};
use serde::Serialize;
use std::fmt;

/// What one image costs, what the weights take, and what a device makes of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    pub model: String,
    /// Edge of the input, in pixels.
    pub image_size: i64,
    pub lengths: PromptLengths,
    pub parameters: PartBytes,
    /// Floating-point operations an image.
    pub work: Work,
    /// Those of the reference: the whole prompt, logits at all its positions, a pass a token.
    pub reference: Work,
    /// The passes of the language model that `work` counts.
    pub passes: Vec<LanguagePass>,
    pub weights: WeightBytes,
    pub image: ImageBytes,
    pub estimate: Estimate,
}

/// Bytes of the weights, in each type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WeightBytes {
    pub f32: PartBytes,
    /// Of f16 too.
    pub bf16: PartBytes,
    /// Of W8A8 and of weights alone.
    pub int8: PartBytes,
}

impl Plan {
    /// # Errors
    /// [`PlanError::TooLong`] for a prompt and answer that the network has no positions for.
    pub fn new(config: &ModelConfig, args: &PlanArgs) -> Result<Self, PlanError> {
        let image = config.image_positions().unsigned_abs();
        let lengths = PromptLengths { prefix: args.prefix, image, suffix: args.suffix, answer: args.answer };
        let (positions, limit) = (lengths.prompt() + lengths.answer, config.max_positions());
        if positions > limit.unsigned_abs() {
            return Err(PlanError::TooLong { positions, limit });
        }
        let passes = lengths.verified();
        let work = Work::of(config, &passes);
        let weights = WeightBytes::of(config);
        let (stored, element) = match args.weights {
            WeightType::F32 => (weights.f32, 4),
            WeightType::Bf16 => (weights.bf16, 2),
            WeightType::Int8 => (weights.int8, 2),
        };
        let image = ImageBytes::of(config, &lengths, &passes, element);
        let reserve = args.reserve as u64;
        let estimate =
            estimate(&work, &stored, &image, passes.len(), args.device(), args.efficiency, reserve);
        Ok(Self {
            model: config.model_type.clone(),
            image_size: config.vision.image_size,
            lengths,
            parameters: by_part(config, |_, elements, _| elements),
            work,
            reference: Work::of(config, &lengths.reference()),
            passes,
            weights,
            image,
            estimate,
        })
    }
}

impl WeightBytes {
    fn of(config: &ModelConfig) -> Self {
        Self {
            f32: by_part(config, |_, elements, _| 4 * elements),
            bf16: by_part(config, |_, elements, _| 2 * elements),
            // A byte a weight and an f32 scale a row.
            int8: by_part(config, |name, elements, shape| match is_layer_weight(name, shape) {
                true => elements + 4 * shape[0].unsigned_abs(),
                false => 2 * elements,
            }),
        }
    }
}

/// Sums over all weights, by the part of the network that they belong to.
fn by_part(config: &ModelConfig, count: impl Fn(&str, u64, &[i64]) -> u64) -> PartBytes {
    let mut sums = PartBytes::default();
    for (name, tensor) in expected_tensors(config) {
        if tensor.role != Role::Parameter
            && (tensor.role != Role::Tied || config.language.tie_word_embeddings)
        {
            continue;
        }
        let sum = if name.starts_with("model.vision_model.") {
            &mut sums.vision
        } else if name.starts_with("model.visual_abstractor.") {
            &mut sums.abstractor
        } else {
            &mut sums.language
        };
        *sum += count(&name, tensor.shape.iter().product::<i64>().unsigned_abs(), &tensor.shape);
    }
    sums
}

/// A line of a table: its name, and what it shows of each column.
type Line<C, V> = (&'static str, fn(&C) -> V);

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PromptLengths { prefix, image, suffix, answer } = self.lengths;
        writeln!(
            out,
            "{} at {} px, {:.2} billion parameters; prompt: {prefix} tokens (computed once), image {image}, \
             {suffix} tokens; answer: {answer} tokens",
            self.model,
            self.image_size,
            self.parameters.total() as f64 / 1e9
        )?;
        self.write_work(out)?;
        self.write_bytes(out)?;
        self.write_estimate(out)
    }
}

impl Plan {
    fn write_work(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "\n{:<24} {:>12} {:>12}", "GFLOP AN IMAGE", "ONE PASS", "REFERENCE")?;
        let lines: [Line<Work, f64>; 10] = [
            ("vision model", |work| work.vision.total()),
            ("  patches", |work| work.vision.patch_embedding),
            ("  linear maps", |work| work.vision.linear),
            ("  attention", |work| work.vision.attention),
            ("visual abstractor", |work| work.abstractor),
            ("language model", |work| work.language.total()),
            ("  linear maps", |work| work.language.linear),
            ("  attention", |work| work.language.attention),
            ("  logits", |work| work.language.logits),
            ("total", |work| work.total),
        ];
        for (name, value) in lines {
            writeln!(
                out,
                "{name:<24} {:>12.3} {:>12.3}",
                value(&self.work) / 1e9,
                value(&self.reference) / 1e9
            )?;
        }
        for pass in &self.passes {
            let LanguagePass { cached, new, read, .. } = pass;
            writeln!(
                out,
                "one pass: {new} new positions behind {cached} in the KV cache, {read} of them read"
            )?;
        }
        Ok(())
    }

    fn write_bytes(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WeightBytes { f32, bf16, int8 } = self.weights;
        writeln!(out, "\n{:<24} {:>12} {:>12} {:>12}", "WEIGHTS, GB", "F32", "BF16, F16", "W8A8, INT8")?;
        let lines: [Line<PartBytes, u64>; 4] = [
            ("vision model", |bytes| bytes.vision),
            ("visual abstractor", |bytes| bytes.abstractor),
            ("language model", |bytes| bytes.language),
            ("total", PartBytes::total),
        ];
        for (name, value) in lines {
            let gigabytes = |bytes: &PartBytes| value(bytes) as f64 / 1e9;
            writeln!(
                out,
                "{name:<24} {:>12.3} {:>12.3} {:>12.3}",
                gigabytes(&f32),
                gigabytes(&bf16),
                gigabytes(&int8)
            )?;
        }
        writeln!(
            out,
            "an image in a batch: {:.1} MB, of which KV cache {:.1} MB",
            self.image.total as f64 / 1e6,
            self.image.kv_cache as f64 / 1e6
        )
    }

    fn write_estimate(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Estimate { device, efficiency, largest_batch, bound, batches } = &self.estimate;
        writeln!(out, "\n{device}")?;
        if *largest_batch == 0 {
            return writeln!(out, "largest batch 0: the weights and one image don't fit; bound by memory");
        }
        writeln!(out, "{:>8} {:>14} {:>14}   BOUND BY", "BATCH", "IMAGES/S", "AT MOST")?;
        for line in batches {
            writeln!(
                out,
                "{:>8} {:>14} {:>14}   {}",
                line.batch,
                Significant(line.expected_images_per_second).to_string(),
                Significant(line.at_most_images_per_second).to_string(),
                line.bound.as_str()
            )?;
        }
        writeln!(
            out,
            "largest batch {largest_batch}; bound by {}; expected where {:.0}% of its FLOP/s is reached, at most \
             where all of it is",
            bound.as_str(),
            efficiency * 100.0
        )
    }
}
