//! `vocab_growth.safetensors`, and the golden checkpoint's settings: a plain checkpoint with a score
//! head.

use crate::{
    support::{assert_close, json, path, tensors},
    training::head,
};
use roc4mllm::{
    model::{
        checkpoint::{Checkpoint, copy_settings},
        config::ModelConfig,
        tokenizer::Tokenizer,
    },
    train::{
        loss::LossSettings,
        vocabulary::{Growth, grow_tensors},
    },
};
use serde_json::Value;

const FILE: &str = "vocab_growth.safetensors";
const BASE: &str = "base_safetensors";

/// What `config.json` says of the reference's run rather than of the network.
const OF_THE_RUN: [&str; 8] = [
    "_name_or_path",
    "architectures",
    "ce_weight",
    "emd_weight",
    "freeze_vision_model",
    "l1_weight",
    "tune_visual_abstractor",
    "visual_abstractor_lr",
];

#[test]
fn golden_train_vocabulary() {
    let head = head();
    let growth = Growth {
        num_tokens: u32::try_from(head.num_tokens).unwrap(),
        min_score: head.min_score,
        max_score: head.max_score,
    };
    let (base, folder) = (path(BASE), tempfile::tempdir().unwrap());
    copy_settings(&base, folder.path(), None).unwrap();
    growth
        .write_settings(&base, folder.path(), &LossSettings::default())
        .unwrap_or_else(|error| panic!("{BASE}: {error}"));

    let written = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(folder.path().join(name)).unwrap()).unwrap()
    };
    for name in [
        "added_tokens.json",
        "generation_config.json",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
    ] {
        let golden: Value = json(&format!("ckpt_safetensors/{name}"));
        assert_eq!(written(name), golden, "ckpt_safetensors/{name} against one grown from {BASE}");
    }
    let pieces = |folder: &str| std::fs::read(path(folder).join("tokenizer.model")).unwrap();
    assert!(pieces(BASE) == pieces("ckpt_safetensors"), "{BASE}/tokenizer.model is not ckpt_safetensors'");
    let (mut ours, mut golden): (Value, Value) =
        (written("config.json"), json("ckpt_safetensors/config.json"));
    for config in [&mut ours, &mut golden] {
        let config = config.as_object_mut().unwrap();
        OF_THE_RUN.iter().for_each(|name| drop(config.remove(*name)));
    }
    assert_eq!(ours, golden, "ckpt_safetensors/config.json against one grown from {BASE}");

    let config = ModelConfig::read(folder.path()).unwrap();
    assert_eq!(config.score, Some(head), "ckpt_safetensors/config.json");
    let tokens = Tokenizer::open(folder.path()).unwrap().len() as i64;
    assert_eq!(tokens, config.language.vocab_size, "{BASE}: tokens");

    let mut grown = Checkpoint::open(&base).unwrap().tensors().unwrap();
    let before = grown.iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect::<Vec<_>>();
    grow_tensors(&config, &mut grown).unwrap();
    let golden = tensors(FILE);
    for (name, size) in before {
        match golden.get(&name) {
            Some(golden) => assert_close(FILE, &name, &grown[&name], golden, 1e-6),
            None => assert_eq!(grown[&name].size(), size, "{FILE}: {name} has grown"),
        }
    }
    assert!(golden.keys().all(|name| grown.contains_key(name)), "{FILE}: unknown tensors");
}
