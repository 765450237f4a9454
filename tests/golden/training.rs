//! What the comparisons of training share: samples, batches, hyperparameters and tolerances.

use crate::{network::network, support};
use roc4mllm::{
    image::{Fit, ImageSettings, Preprocessor},
    labels::{Sample, SampleReader},
    model::{
        checkpoint::Checkpoint,
        config::{ModelConfig, ScoreHeadConfig},
        family::Family,
        mplug_owl2::MplugOwl2,
        tokenizer::Tokenizer,
    },
    train::{
        batch::Batch,
        dataset::{Dataset, DatasetError, Demands, Example},
        images::{ImageFolder, PixelLoader},
        loss::{EmdReduction, LossSettings},
        optimizer::AdamW,
    },
};
use serde::Deserialize;
use std::{collections::BTreeMap, path::PathBuf};
use tch::{Kind, Tensor};

pub const DATA: &str = "train_data.json";
pub const RESULTS: &str = "train_results.json";
pub const WEIGHTS: &str = "train_weights_after_3_steps.safetensors";

/// Losses, gradients and weights are to be the reference's within this.
pub const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
pub struct Results {
    /// By `eval/l1=1,ce=0,emd=0` and the like.
    pub losses: BTreeMap<String, f64>,
    /// `null` for a parameter that isn't trained.
    pub grad_norm_l1_ce_emd_111: BTreeMap<String, Option<f64>>,
    pub grad_norm_total_111: f64,
    pub max_abs_grad_difference_train_vs_eval_mode: f64,
    pub adamw: AdamWRun,
    pub per_tensor_noise: BTreeMap<String, Noise>,
}

#[derive(Deserialize)]
pub struct AdamWRun {
    pub lr: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
    pub clip: Option<f64>,
    pub weights: String,
    pub loss_before_step_1_2_3_and_after: Vec<f64>,
    pub same_in_float64: Vec<f64>,
    pub same_with_2_threads: Vec<f64>,
}

#[derive(Deserialize)]
pub struct Noise {
    pub max_abs_change: f64,
    pub f32_vs_f64: f64,
    pub f32_1_vs_2_threads: f64,
}

pub fn results() -> Results {
    support::json(RESULTS)
}

/// `l1=1,ce=10,emd=0`, with the reference's reduction.
pub fn loss_settings(weights: &str) -> LossSettings {
    let weight = |name: &str| {
        let term = weights.split(',').find_map(|term| term.strip_prefix(name)?.strip_prefix('='));
        let term = term.unwrap_or_else(|| panic!("{RESULTS}: `{weights}` has no weight for {name}"));
        term.parse().unwrap_or_else(|error| panic!("{RESULTS}: `{weights}`: {error}"))
    };
    LossSettings {
        l1_weight: weight("l1"),
        ce_weight: weight("ce"),
        emd_weight: weight("emd"),
        emd_reduction: EmdReduction::Batch,
    }
}

pub fn checkpoint() -> PathBuf {
    support::path("ckpt_safetensors")
}

pub fn head() -> ScoreHeadConfig {
    let config = ModelConfig::read(&checkpoint()).unwrap();
    config.score.expect("ckpt_safetensors/config.json: no score tokens")
}

/// The padding token of the golden checkpoint's tokenizer, or what training pads with where it has none.
pub fn pad() -> i64 {
    let tokenizer = Tokenizer::open(&checkpoint()).unwrap();
    i64::from(tokenizer.pad().unwrap_or(tokenizer.unknown()))
}

pub fn samples() -> Vec<Sample> {
    let samples = SampleReader::open(&support::path(DATA)).unwrap();
    let samples: Vec<Sample> =
        samples.map(|sample| sample.unwrap_or_else(|error| panic!("{DATA}: {error}"))).collect();
    assert!(!samples.is_empty(), "{DATA}: no samples");
    samples
}

pub fn dataset(samples: &[Sample]) -> Result<Dataset, DatasetError> {
    let config = ModelConfig::read(&checkpoint()).unwrap();
    let demands = Demands {
        head: head(),
        pad: pad(),
        image_positions: usize::try_from(config.image_positions()).unwrap(),
        max_positions: usize::try_from(config.max_positions()).unwrap(),
        needs_targets: false,
    };
    Dataset::new(samples, &Tokenizer::open(&checkpoint()).unwrap(), &demands)
}

/// Samples as examples; none may be left out.
pub fn examples(samples: &[Sample]) -> Vec<Example> {
    let dataset = dataset(samples).unwrap_or_else(|error| panic!("{DATA}: {error}"));
    assert!(dataset.masked.is_empty(), "{DATA}: {:?}", dataset.masked);
    dataset.examples
}

/// One batch of samples, their images read from `images/`.
pub fn batch(samples: &[Sample]) -> Batch {
    let examples = examples(samples);
    let preprocessor = Preprocessor::open(&checkpoint()).unwrap().with_fit(Fit::Pad);
    let loader = PixelLoader {
        source: &ImageFolder { path: support::path("images") },
        preprocessor: &preprocessor,
        settings: &ImageSettings::local(),
    };
    let all: Vec<usize> = (0..examples.len()).collect();
    let (mut loaded, failed) = loader.load(&examples, &[all]);
    assert!(failed.is_empty(), "{DATA}: {failed:?}");
    let loaded = loaded.remove(0);
    let edge = preprocessor.image_size() as i64;
    let pixels = Tensor::from_slice(&loaded.pixels).view([-1, 3, edge, edge]);
    Batch::new(&loaded.examples, pixels, pad()).unwrap()
}

/// The golden network in f32 with an optimizer over everything that the reference trains.
pub fn trainable(run: &AdamWRun) -> (MplugOwl2, AdamW) {
    let network = network(Kind::Float);
    let checkpoint = Checkpoint::open(&checkpoint()).unwrap();
    let weight = |name: &str| !checkpoint.expected()[name].role.may_be_absent();
    let parameters = network.parameters().iter().filter(|(name, _)| weight(name));
    let parameters = parameters.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
    let optimizer = AdamW::new(parameters, run.adamw()).unwrap();
    (network, optimizer)
}

impl AdamWRun {
    pub fn adamw(&self) -> roc4mllm::train::optimizer::AdamWSettings {
        roc4mllm::train::optimizer::AdamWSettings {
            beta1: self.betas[0],
            beta2: self.betas[1],
            epsilon: self.eps,
            weight_decay: self.weight_decay,
        }
    }

    /// Fails unless `found` is what each of the reference's runs gives after so many steps.
    pub fn assert_loss(&self, steps: usize, found: f64) {
        for (run, losses) in [
            ("loss_before_step_1_2_3_and_after", &self.loss_before_step_1_2_3_and_after),
            ("same_in_float64", &self.same_in_float64),
            ("same_with_2_threads", &self.same_with_2_threads),
        ] {
            let golden = losses.get(steps).unwrap_or_else(|| panic!("{RESULTS}: adamw: {run} is short"));
            assert!(
                (found - golden).abs() <= TOLERANCE,
                "{RESULTS}: adamw: {run}: {found} after {steps} steps, not {golden}"
            );
        }
    }

    pub fn steps(&self) -> usize {
        self.loss_before_step_1_2_3_and_after.len() - 1
    }
}

/// Fails, naming the tensor, unless weights are the golden ones of the last step. `start` are those
/// before the first.
///
/// Key biases have no gradient (a softmax doesn't see what is added to all of its logits), and AdamW
/// makes full steps of its rounding noise: they are held to the length of these steps alone.
pub fn assert_trained(found: &BTreeMap<String, Tensor>, start: &BTreeMap<String, Tensor>, results: &Results) {
    let golden = support::tensors(WEIGHTS);
    assert!(found.keys().eq(golden.keys()), "{WEIGHTS}: other tensors");
    let longest = 2.0 * results.adamw.steps() as f64 * results.adamw.lr;
    let heads = ModelConfig::read(&checkpoint()).unwrap().vision.num_attention_heads;
    for (name, golden) in &golden {
        let noise = results.per_tensor_noise.get(name);
        let noise = noise.unwrap_or_else(|| panic!("{RESULTS}: per_tensor_noise lacks {name}"));
        let found = &found[name];
        let change = support::largest_difference(golden, &start[name]);
        assert!(
            (change - noise.max_abs_change).abs() < 1e-6,
            "{WEIGHTS}: {name} changes by {change}, and by {} in {RESULTS}",
            noise.max_abs_change
        );
        if noise.max_abs_change == 0.0 {
            support::assert_same(WEIGHTS, name, found, golden);
            support::assert_same(WEIGHTS, name, found, &start[name]);
        } else if name.ends_with(".query_key_value.bias") {
            // [head, (query, key, value), dim].
            let part = |tensor: &Tensor, part| tensor.view([heads, 3, -1]).select(1, part);
            for (which, tolerance) in [(0, TOLERANCE), (1, longest), (2, TOLERANCE)] {
                let name = format!("{name} part {which}");
                support::assert_close(WEIGHTS, &name, &part(found, which), &part(golden, which), tolerance);
            }
        } else if name.ends_with(".key.bias") {
            support::assert_close(WEIGHTS, name, found, golden, longest);
        } else {
            let wander = noise.f32_vs_f64.max(noise.f32_1_vs_2_threads);
            assert!(wander <= TOLERANCE, "{RESULTS}: per_tensor_noise: {name} wanders by {wander}");
            support::assert_close(WEIGHTS, name, found, golden, TOLERANCE);
        }
    }
}
