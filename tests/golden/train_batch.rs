//! `train_batch.safetensors` and `train_expanded.safetensors`: samples as tensors, and each image in
//! its place.

use crate::{
    network::network,
    support::{assert_close, assert_same, tensors},
    training::{TOLERANCE, batch, samples},
};
use roc4mllm::model::{family::Family, passes::Passes};
use tch::{Kind, Tensor};

/// 1 before each row's end, 0 behind it.
fn attention_mask(lengths: &[i64], count: i64) -> Tensor {
    let lengths = Tensor::from_slice(lengths).view([-1, 1]);
    Tensor::arange(count, (Kind::Int64, tch::Device::Cpu)).lt_tensor(&lengths).to_kind(Kind::Uint8)
}

#[test]
fn golden_train_batch() {
    const FILE: &str = "train_batch.safetensors";
    let golden = tensors(FILE);
    let expected = |name: &str| golden.get(name).unwrap_or_else(|| panic!("{FILE}: no {name}"));
    let samples = samples();
    let batch = batch(&samples);
    assert_same(FILE, "input_ids", &batch.ids, expected("input_ids"));
    assert_same(FILE, "labels", &batch.labels, expected("labels"));
    assert_same(FILE, "images", &batch.pixels, expected("images"));
    let mask = attention_mask(&batch.lengths, batch.ids.size()[1]);
    assert_same(FILE, "attention_mask", &mask, expected("attention_mask"));
    assert_same(FILE, "gt_score", &batch.gt_scores, &expected("gt_score").view(-1));
    let targets = batch.targets.expect("a distribution for each score");
    let bins = targets.size()[1];
    assert_same(FILE, "target", &targets, &expected("target").view([-1, bins]));
}

#[test]
fn golden_train_expanded() {
    const FILE: &str = "train_expanded.safetensors";
    let golden = tensors(FILE);
    let expected = |name: &str| golden.get(name).unwrap_or_else(|| panic!("{FILE}: no {name}"));
    let _no_grad = tch::no_grad_guard();
    let network = network(Kind::Float);
    let batch = batch(&samples());
    let expanded = batch.expand(&network, &mut Passes::Kept).unwrap();
    assert_same(FILE, "labels", &expanded.labels, expected("labels"));
    let modalities = expanded.labels.zeros_like();
    for (row, image) in (0..).zip(&expanded.images) {
        let _ = modalities.get(row).narrow(0, image.start, image.end - image.start).fill_(1);
    }
    assert_same(FILE, "modality_indicators", &modalities, expected("modality_indicators"));
    let lengths: Vec<i64> =
        batch.lengths.iter().map(|length| length - 1 + network.image_positions()).collect();
    let mask = attention_mask(&lengths, expanded.labels.size()[1]);
    assert_same(FILE, "attention_mask", &mask, expected("attention_mask"));
    assert_close(FILE, "inputs_embeds", &expanded.embeddings, expected("inputs_embeds"), TOLERANCE);
}
