//! `roc4mllm train --train lora`: what changes, by how much, and what it refuses.

use roc4mllm::{model::checkpoint::Checkpoint, train::lora::DEFAULT_TARGETS};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tch::{Kind, Tensor};

const RANK: usize = 3;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name)
}

fn train(output: &Path, steps: usize, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
        .arg("train")
        .arg("--checkpoint")
        .arg(fixture("ckpt_safetensors"))
        .arg("--data")
        .arg(fixture("train_data.json"))
        .arg("--images")
        .arg(fixture("images"))
        .arg("--output")
        .arg(output)
        .args([
            "--max-steps",
            &steps.to_string(),
            "--warmup-ratio",
            "0",
            "--learning-rate",
            "1e-2",
            "--threads",
            "1",
        ])
        .args(arguments)
        .output()
        .unwrap()
}

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    Checkpoint::open(folder).unwrap().tensors().unwrap()
}

fn losses(folder: &Path) -> Vec<f64> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
}

/// Trains with `arguments`, and checks every tensor: one with a part of its name among `targets` has
/// changed in [`RANK`] dimensions at most, any other in none of its bits.
fn assert_low_rank(arguments: &[&str], targets: &[&str]) {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("trained");
    let rank = RANK.to_string();
    let run = train(&output, 3, &[&["--train", "lora", "--lora-rank", &rank], arguments].concat());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let (before, after) = (tensors(&fixture("ckpt_safetensors")), tensors(&output));
    assert!(before.keys().eq(after.keys()));
    let mut changed = 0;
    for (name, weight) in &before {
        if !(name.ends_with(".weight") && name.split('.').any(|part| targets.contains(&part))) {
            assert!(after[name].equal(weight), "{name} changed");
            continue;
        }
        let (_, singular, _) = (&after[name] - weight).to_kind(Kind::Double).svd(true, true);
        let singular = Vec::<f64>::try_from(singular).unwrap();
        // What is beyond the rank is the rounding of sums in f32.
        let rounding = 1e-5 * weight.abs().max().double_value(&[]);
        assert!(singular[0] > 1e-3 && singular[RANK] < rounding, "{name}: {singular:?}");
        changed += 1;
    }
    assert!(changed >= targets.len(), "{changed} tensors changed");
    let losses = losses(&output);
    assert!(losses[2] < losses[0], "{losses:?}");
}

#[test]
fn targets_change_in_few_dimensions_and_nothing_else_changes() {
    assert_low_rank(&[], &DEFAULT_TARGETS);
    let chosen = ["v_proj", "fc1", "visual_fc"];
    assert_low_rank(&["--lora-targets", &chosen.join(","), "--lora-alpha", "24"], &chosen);
}

#[test]
fn training_begins_with_the_network_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    let first_loss = |name: &str, arguments: &[&str]| {
        let output = place.path().join(name);
        assert!(train(&output, 1, arguments).status.success());
        losses(&output)[0]
    };
    assert_eq!(first_loss("lora", &["--train", "lora", "--lora-rank", "3"]), first_loss("all", &[]));
}

#[test]
fn what_cannot_be_is_named() {
    let place = tempfile::tempdir().unwrap();
    for (arguments, part) in [
        (&["--train", "lora", "--lora-rank", "3", "--lora-targets", "q_proj,lm_head"][..], "`lm_head`"),
        (&["--train", "lora", "--lora-rank", "48"], "lower rank"),
        (&["--lora-rank", "3"], "--train lora"),
    ] {
        let output = train(&place.path().join("trained"), 1, arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.lines().last().unwrap().contains(part), "{message}");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "{arguments:?}");
    }
}
