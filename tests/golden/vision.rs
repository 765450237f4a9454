//! Vision model and abstractor against `vision_*.safetensors`, layer by layer against `layers_*`.

use crate::{
    network::{Tolerance, assert_close, embed, inference_network, network, pixels},
    support,
};
use roc4mllm::model::{
    checkpoint::Checkpoint,
    family::{Block, Family},
    mplug_owl2::MplugOwl2,
    parameters::Parameters,
};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

fn compare_vision(file: &str, kind: Kind, tolerance: Tolerance) {
    let _no_grad = tch::no_grad_guard();
    let pictures = support::tensors("pixel_values.safetensors");
    for model in [network(kind), inference_network(kind, false)] {
        for (name, golden) in support::tensors(file) {
            let (stage, stem) = name.split_once('/').unwrap_or_else(|| panic!("{file}: {name}: no stage"));
            let patches = model.vision().forward(&pixels(&pictures, stem).to_kind(kind)).unwrap();
            let ours = match stage {
                "vision" => patches,
                "abstractor" => model.abstractor().forward(&patches).unwrap(),
                _ => panic!("{file}: {name}: unknown stage"),
            };
            assert_close(file, &name, &golden, &ours.squeeze_dim(0), tolerance);
        }
    }
}

#[test]
fn golden_vision_f32() {
    compare_vision("vision_f32.safetensors", Kind::Float, Tolerance::F32);
}

#[test]
fn golden_vision_bf16() {
    compare_vision("vision_bf16.safetensors", Kind::BFloat16, Tolerance::BF16);
}

/// `layers_<stem>_f32.safetensors`, whichever picture it is of.
#[test]
fn golden_layers_f32() {
    let _no_grad = tch::no_grad_guard();
    let model = network(Kind::Float);
    let pictures = support::tensors("pixel_values.safetensors");
    let folder = support::folder();
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let names = entries.map(|entry| support::file_name(&entry.unwrap().path()));
    let files: Vec<String> = names.filter(|name| stem_of(name).is_some()).collect();
    assert!(!files.is_empty(), "{}: no layers_*_f32.safetensors", folder.display());
    for file in files {
        let stem = stem_of(&file).unwrap();
        let ours = activations(&model, &pixels(&pictures, stem));
        for (name, golden) in support::tensors(&file) {
            let ours = ours.get(&name).unwrap_or_else(|| panic!("{file}: {name}: unknown stage"));
            assert_close(&file, &name, &golden, ours, Tolerance::F32);
        }
    }
}

/// The picture that a file of layers is of.
fn stem_of(file: &str) -> Option<&str> {
    file.strip_prefix("layers_")?.strip_suffix("_f32.safetensors")
}

/// Every intermediate result for one picture under the `assess` prompt, by its golden name.
fn activations(model: &MplugOwl2, pixels: &Tensor) -> BTreeMap<String, Tensor> {
    let mut named = BTreeMap::new();
    let mut note = |name: String, tensor: &Tensor| named.insert(name, tensor.squeeze_dim(0));
    let vision = model.vision().activations(pixels).unwrap();
    note("vision/embeddings".into(), &vision[0]);
    for (layer, hidden) in vision[1..].iter().enumerate() {
        note(format!("vision/layer{layer}"), hidden);
    }
    let patches = model.vision().forward(pixels).unwrap();
    for (layer, hidden) in model.abstractor().activations(&patches).unwrap().iter().enumerate() {
        note(format!("abstractor/layer{layer}"), hidden);
    }
    let (embeddings, image) = embed(model, "assess", pixels);
    note("llama/inputs_embeds".into(), &embeddings);
    let mut cache = model.new_cache(1, embeddings.size()[1]).unwrap();
    let mut outputs = Vec::new();
    let block = Block::new(&embeddings, image);
    let _ = model
        .language()
        .forward_observed(&block, &mut cache, |hidden| outputs.push(hidden.shallow_clone()))
        .unwrap();
    let normed = outputs.pop().unwrap();
    note("llama/final_norm".into(), &normed);
    for (layer, hidden) in outputs.iter().enumerate() {
        note(format!("llama/layer{layer}"), hidden);
        let (keys, values) = cache.layer(layer).unwrap();
        note(format!("llama/k_cache{layer}"), &keys);
        note(format!("llama/v_cache{layer}"), &values);
    }
    named
}

/// A checkpoint may lack its position tables: computed from the dimensions they give the same.
#[test]
fn golden_vision_without_stored_tables() {
    let _no_grad = tch::no_grad_guard();
    let checkpoint = Checkpoint::open(&support::path("ckpt_safetensors")).unwrap();
    let stored = Parameters::load(&checkpoint, Kind::Float, Device::Cpu).unwrap();
    let tables = |name: &str| name.ends_with("_pos_embed") || name.ends_with("inv_freq");
    let without = stored.iter().filter(|(name, _)| !tables(name));
    let without: BTreeMap<_, _> =
        without.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
    assert!(without.len() < stored.iter().count(), "ckpt_safetensors: holds no tables to leave out");
    let model = MplugOwl2::new(checkpoint.config().clone(), Parameters::new(without)).unwrap();
    let pictures = support::tensors("pixel_values.safetensors");
    for (name, golden) in support::tensors("vision_f32.safetensors") {
        if let Some(stem) = name.strip_prefix("abstractor/") {
            let ours = model.encode_images(&pixels(&pictures, stem)).unwrap().squeeze_dim(0);
            assert_close("vision_f32.safetensors", &name, &golden, &ours, Tolerance::F32);
        }
    }
}
