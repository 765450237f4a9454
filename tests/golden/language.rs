//! Logits of every prompt position and of every greedy step.

use crate::{
    network::{Tolerance, assert_close, embed, logits, network, pixels, step},
    support,
};
use roc4mllm::model::family::Family;
use tch::{Kind, Tensor};

fn compare_prefill(file: &str, kind: Kind, tolerance: Tolerance) {
    let _no_grad = tch::no_grad_guard();
    let model = network(kind);
    let pictures = support::tensors("pixel_values.safetensors");
    for (name, golden) in support::tensors(file) {
        let (prompt, stem) = name.split_once('/').unwrap_or_else(|| panic!("{file}: {name}: no prompt"));
        let (embeddings, image) = embed(&model, prompt, &pixels(&pictures, stem));
        let mut cache = model.new_cache(1, embeddings.size()[1]).unwrap();
        let ours = logits(&model, &embeddings, image, &mut cache);
        assert_close(file, &name, &golden, &ours, tolerance);
    }
}

/// Follows the golden steps: row 0 is the prompt's last position, and the largest logit of each row
/// is the token that goes in next.
fn compare_steps(file: &str, kind: Kind, tolerance: Tolerance) {
    let _no_grad = tch::no_grad_guard();
    let model = network(kind);
    let pictures = support::tensors("pixel_values.safetensors");
    for (name, golden) in support::tensors(file) {
        let (prompt, stem) = name.split_once('/').unwrap_or_else(|| panic!("{file}: {name}: no prompt"));
        let (embeddings, image) = embed(&model, prompt, &pixels(&pictures, stem));
        let mut cache = model.new_cache(1, embeddings.size()[1]).unwrap();
        let prefill = logits(&model, &embeddings, image, &mut cache);
        let mut rows = vec![prefill.narrow(0, prefill.size()[0] - 1, 1)];
        for chosen in Vec::<i64>::try_from(golden.argmax(-1, false)).unwrap() {
            if rows.len() as i64 == golden.size()[0] {
                break;
            }
            rows.push(step(&model, chosen, &mut cache));
        }
        assert_close(file, &name, &golden, &Tensor::cat(&rows, 0), tolerance);
    }
}

#[test]
fn golden_prefill_logits_f32() {
    compare_prefill("prefill_logits_f32.safetensors", Kind::Float, Tolerance::Absolute(1e-4));
}

#[test]
fn golden_prefill_logits_bf16() {
    compare_prefill("prefill_logits_bf16.safetensors", Kind::BFloat16, Tolerance::Bf16Units(2.0));
}

#[test]
fn golden_decode_logits_f32() {
    compare_steps("decode_logits_f32.safetensors", Kind::Float, Tolerance::Absolute(1e-4));
}

#[test]
fn golden_decode_logits_bf16() {
    compare_steps("decode_logits_bf16.safetensors", Kind::BFloat16, Tolerance::Bf16Units(2.0));
}
