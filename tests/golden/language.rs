//! Logits of every prompt position and of every greedy step.

use crate::{
    network::{Tolerance, assert_close, embed, inference_network, logits, network, pixels, step},
    support,
};
use roc4mllm::model::{family::Family, mplug_owl2::MplugOwl2};
use tch::{Kind, Tensor};

/// As it is trained, and as it scores.
fn networks(kind: Kind) -> [MplugOwl2; 3] {
    [network(kind), inference_network(kind, false), inference_network(kind, true)]
}

fn compare_prefill(model: &MplugOwl2, file: &str, tolerance: Tolerance) {
    let _no_grad = tch::no_grad_guard();
    let pictures = support::tensors("pixel_values.safetensors");
    for (name, golden) in support::tensors(file) {
        let (prompt, stem) = name.split_once('/').unwrap_or_else(|| panic!("{file}: {name}: no prompt"));
        let (embeddings, image) = embed(model, prompt, &pixels(&pictures, stem));
        let mut cache = model.new_cache(1, embeddings.size()[1]).unwrap();
        let ours = logits(model, &embeddings, image, &mut cache);
        assert_close(file, &name, &golden, &ours, tolerance);
    }
}

/// Follows the golden steps: row 0 is the prompt's last position, and the largest logit of each row
/// is the token that goes in next.
fn compare_steps(model: &MplugOwl2, file: &str, tolerance: Tolerance) {
    let _no_grad = tch::no_grad_guard();
    let pictures = support::tensors("pixel_values.safetensors");
    for (name, golden) in support::tensors(file) {
        let (prompt, stem) = name.split_once('/').unwrap_or_else(|| panic!("{file}: {name}: no prompt"));
        let (embeddings, image) = embed(model, prompt, &pixels(&pictures, stem));
        let mut cache = model.new_cache(1, embeddings.size()[1]).unwrap();
        let prefill = logits(model, &embeddings, image, &mut cache);
        let mut rows = vec![prefill.narrow(0, prefill.size()[0] - 1, 1)];
        for chosen in Vec::<i64>::try_from(golden.argmax(-1, false)).unwrap() {
            if rows.len() as i64 == golden.size()[0] {
                break;
            }
            rows.push(step(model, &[chosen], &mut cache));
        }
        assert_close(file, &name, &golden, &Tensor::cat(&rows, 0), tolerance);
    }
}

#[test]
fn golden_prefill_logits_f32() {
    for model in networks(Kind::Float) {
        compare_prefill(&model, "prefill_logits_f32.safetensors", Tolerance::F32);
    }
}

#[test]
fn golden_prefill_logits_bf16() {
    for model in networks(Kind::BFloat16) {
        compare_prefill(&model, "prefill_logits_bf16.safetensors", Tolerance::BF16);
    }
}

#[test]
fn golden_decode_logits_f32() {
    for model in networks(Kind::Float) {
        compare_steps(&model, "decode_logits_f32.safetensors", Tolerance::F32);
    }
}

#[test]
fn golden_decode_logits_bf16() {
    for model in networks(Kind::BFloat16) {
        compare_steps(&model, "decode_logits_bf16.safetensors", Tolerance::BF16);
    }
}
