//! The golden checkpoint as a network, and tensors compared within a tolerance.

use crate::support;
use roc4mllm::model::{
    checkpoint::Checkpoint,
    device::Quantize,
    family::{Block, Family},
    kv_cache::KvCache,
    mplug_owl2::MplugOwl2,
    parameters::{Inference, Parameters},
};
use std::{collections::BTreeMap, ops::Range};
use tch::{Device, Kind, Tensor};

/// The id that stands for the image in `prompts.json`.
const IMAGE: i64 = -200;

/// The network of the golden checkpoint, computing as `kind`.
pub fn network(kind: Kind) -> MplugOwl2 {
    let checkpoint = Checkpoint::open(&support::path("ckpt_safetensors")).unwrap();
    let parameters = Parameters::load(&checkpoint, kind, Device::Cpu).unwrap();
    MplugOwl2::new(checkpoint.config().clone(), parameters).unwrap()
}

/// As [`network`], but with its weights laid out as [`TorchScorer`](roc4mllm::model::TorchScorer) has them; with
/// `pack`, the language model's too.
pub fn inference_network(kind: Kind, pack: bool) -> MplugOwl2 {
    let checkpoint = Checkpoint::open(&support::path("ckpt_safetensors")).unwrap();
    let inference = Inference { kind, device: Device::Cpu, quantize: Quantize::None, pack };
    let parameters = Parameters::load_for_inference(&checkpoint, inference).unwrap();
    MplugOwl2::new(checkpoint.config().clone(), parameters).unwrap()
}

/// The pixel values of one picture, `[1, 3, edge, edge]`.
pub fn pixels(all: &BTreeMap<String, Tensor>, stem: &str) -> Tensor {
    all.get(stem).unwrap_or_else(|| panic!("pixel_values.safetensors lacks {stem}")).unsqueeze(0)
}

/// The embeddings of one of `prompts.json`'s prompts with a picture put in, `[1, positions, hidden]`,
/// and the picture's range.
pub fn embed(model: &MplugOwl2, prompt: &str, pixels: &Tensor) -> (Tensor, Range<i64>) {
    let prompts: serde_json::Value = support::json("prompts.json");
    let ids: Vec<i64> = serde_json::from_value(prompts[prompt]["input_ids"].clone())
        .unwrap_or_else(|error| panic!("prompts.json: {prompt}: {error}"));
    let place = ids.iter().position(|&id| id == IMAGE);
    let place = place.unwrap_or_else(|| panic!("prompts.json: {prompt} has no image"));
    let text = |ids: &[i64]| model.embed(&Tensor::from_slice(ids).view([1, -1])).unwrap();
    let image = model.encode_images(pixels).unwrap();
    let range = place as i64..place as i64 + image.size()[1];
    (Tensor::cat(&[text(&ids[..place]), image, text(&ids[place + 1..])], 1), range)
}

/// Logits `[count, vocabulary]` of a block that is appended to a cache of one row.
pub fn logits(model: &MplugOwl2, embeddings: &Tensor, image: Range<i64>, cache: &mut KvCache) -> Tensor {
    let hidden = model.forward(&Block::new(embeddings, image), cache).unwrap();
    model.logits(&hidden).unwrap().squeeze_dim(0)
}

/// Logits of the next positions, given the tokens on them.
pub fn step(model: &MplugOwl2, tokens: &[i64], cache: &mut KvCache) -> Tensor {
    let embeddings = model.embed(&Tensor::from_slice(tokens).view([1, -1])).unwrap();
    logits(model, &embeddings, 0..0, cache)
}

/// How far results may lie from the golden ones.
#[derive(Clone, Copy)]
pub enum Tolerance {
    /// An absolute difference.
    Absolute(f64),
    /// Units in the last place of a type of so many significant bits, at the largest value of the
    /// golden tensor. Two right implementations add up in another order and round sums of that size
    /// by half a unit each, layer after layer; one to two units is what is seen between them.
    Units { bits: i32, units: f64 },
}

impl Tolerance {
    pub const F32: Self = Self::Absolute(1e-4);
    pub const BF16: Self = Self::Units { bits: 8, units: 3.0 };
    pub const F16: Self = Self::Units { bits: 11, units: 3.0 };

    /// The allowed difference where the largest golden value is `largest`.
    pub fn at(self, largest: f64) -> f64 {
        match self {
            Self::Absolute(limit) => limit,
            Self::Units { bits, units } => {
                units * 2_f64.powf(largest.abs().log2().floor() + 1.0 - f64::from(bits))
            }
        }
    }
}

/// As [`support::assert_close`], and of one type.
pub fn assert_close(file: &str, name: &str, golden: &Tensor, ours: &Tensor, tolerance: Tolerance) {
    assert_eq!(golden.kind(), ours.kind(), "{file}: {name}: type");
    let largest = golden.to_kind(Kind::Double).abs().max().double_value(&[]);
    support::assert_close(file, name, ours, golden, tolerance.at(largest));
}
