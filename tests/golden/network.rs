//! The golden checkpoint as a network, and tensors compared within a tolerance.

use crate::support;
use roc4mllm::model::{
    checkpoint::Checkpoint,
    family::{Block, Family},
    kv_cache::KvCache,
    mplug_owl2::MplugOwl2,
    parameters::Parameters,
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

/// The pixel values of one picture, `[1, 3, edge, edge]`.
pub fn pixels(all: &BTreeMap<String, Tensor>, stem: &str) -> Tensor {
    all.get(stem).unwrap_or_else(|| panic!("pixel_values.safetensors lacks {stem}")).unsqueeze(0)
}

/// The embeddings of one of `prompts.json`'s prompts with a picture put in, `[1, positions, hidden]`,
/// and the picture's range.
pub fn embed(model: &MplugOwl2, prompt: &str, pixels: &Tensor) -> (Tensor, Range<i64>) {
    let prompts = support::json("prompts.json");
    let ids: Vec<i64> = serde_json::from_value(prompts[prompt]["input_ids"].clone())
        .unwrap_or_else(|error| panic!("prompts.json: {prompt}: {error}"));
    let place = ids.iter().position(|&id| id == IMAGE).expect("prompts.json: a prompt has no image");
    let text = |ids: &[i64]| model.embed(&Tensor::from_slice(ids).view([1, -1])).unwrap();
    let image = model.encode_images(pixels).unwrap();
    let range = place as i64..place as i64 + image.size()[1];
    (Tensor::cat(&[text(&ids[..place]), image, text(&ids[place + 1..])], 1), range)
}

/// Logits `[count, vocabulary]` of a block that is appended to a cache of one row.
pub fn logits(model: &MplugOwl2, embeddings: &Tensor, image: Range<i64>, cache: &mut KvCache) -> Tensor {
    let hidden = model.forward(&Block { embeddings, image }, cache).unwrap();
    model.logits(&hidden).unwrap().squeeze_dim(0)
}

/// The next pass over one chosen token.
pub fn step(model: &MplugOwl2, token: i64, cache: &mut KvCache) -> Tensor {
    let embeddings = model.embed(&Tensor::from_slice(&[token]).view([1, 1])).unwrap();
    logits(model, &embeddings, 0..0, cache)
}

/// How far results may lie from the golden ones.
#[derive(Clone, Copy)]
pub enum Tolerance {
    /// An absolute difference.
    Absolute(f64),
    /// Units in the last place of bf16 (8 significant bits) at the tensor's largest value. Two right
    /// implementations round after different sums, and each such rounding moves a value by up to half
    /// a unit of its own scale.
    Bf16Units(f64),
}

impl Tolerance {
    fn of(self, golden: &Tensor) -> f64 {
        match self {
            Self::Absolute(limit) => limit,
            Self::Bf16Units(units) => {
                let largest = golden.to_kind(Kind::Double).abs().max().double_value(&[]);
                units * 2_f64.powf(largest.log2().floor() - 7.0)
            }
        }
    }
}

/// # Panics
/// Naming file and tensor, where shape or type differ or a value lies further off than allowed.
pub fn assert_close(file: &str, name: &str, golden: &Tensor, ours: &Tensor, tolerance: Tolerance) {
    assert_eq!(golden.size(), ours.size(), "{file}: {name}: shape");
    assert_eq!(golden.kind(), ours.kind(), "{file}: {name}: type");
    let difference = (golden.to_kind(Kind::Double) - ours.to_kind(Kind::Double)).abs().max().double_value(&[]);
    let limit = tolerance.of(golden);
    if std::env::var_os("GOLDEN_PRINT").is_some() {
        let unit = Tolerance::Bf16Units(1.0).of(golden);
        eprintln!("{file} {name} {difference:.3e} {:.2}u", difference / unit);
    }
    // Not `>`: a NaN must fail too.
    assert!(difference <= limit, "{file}: {name}: differs by {difference:e}, more than {limit:e}");
}
