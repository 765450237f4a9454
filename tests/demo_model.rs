//! The demo's own checkpoint on photographs that it has never seen, made worse anew.
//! `SEED=n cargo test --test demo_model` takes another seed.
#![cfg(feature = "dev")]

use roc4mllm::{image::ImageSettings, split::Fingerprint};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const PHOTOS: &str = ".deps/photos";
const CHECKPOINT: &str = "tests/fixtures/demo-model";
/// Photographs of a held-out set.
const COUNT: &str = "240";

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn roc4mllm(arguments: &[&str], folders: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
    command.args(arguments);
    for (name, folder) in folders {
        command.arg(name).arg(folder);
    }
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The sources on their sides, if there are photographs on this machine.
fn sources(output: &Path) -> bool {
    let photos = here(PHOTOS);
    if roc4mllm::dev::skip_without("the demo's photographs (`make setup`)", photos.is_dir()) {
        return false;
    }
    roc4mllm(&["demo-model", "sources"], &[("--photos", &photos), ("--output", output)]);
    true
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn the_shipped_model_ranks_held_out_photographs_by_how_degraded_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let sources_folder = folder.path().join("sources");
    if !sources(&sources_folder) {
        return;
    }
    let own = std::env::var("SEED").ok();
    for seed in own.as_deref().map_or(vec!["2026", "7"], |seed| vec![seed]) {
        let data = folder.path().join(seed);
        roc4mllm(
            &["demo-model", "photos", "--seed", seed, "--train", "0", "--held-out", COUNT],
            &[("--sources", &sources_folder), ("--output", &data)],
        );
        let labels = data.join("held-out.json");
        let evaluated = roc4mllm(
            &["evaluate", "--format", "json", "--resamples", "0", "--batch-size", "16"],
            &[("--checkpoint", &here(CHECKPOINT)), ("--labels", &labels), ("--images", &data)],
        );
        let results: Value = serde_json::from_slice(&evaluated.stdout).expect("JSON");
        let srcc = results["evaluation"]["attributes"][0]["metrics"]["srcc"]["value"]
            .as_f64()
            .unwrap_or_else(|| panic!("an SRCC in {}", results["evaluation"]["attributes"][0]));
        let by_size = roc4mllm(&["demo-model", "baseline"], &[("--labels", &labels), ("--images", &data)]);
        let by_size = String::from_utf8(by_size.stdout).expect("UTF-8");
        let by_size: f64 =
            by_size.trim().rsplit(' ').next().and_then(|text| text.parse().ok()).expect("a number");
        println!("seed {seed}: SRCC {srcc:.3}, of file size alone {by_size:.3}");
        assert!(srcc >= 0.8, "seed {seed}: {srcc}");
        assert!(srcc > by_size.abs() + 0.2, "seed {seed}: {srcc} beside {by_size}");
    }
}

#[test]
fn held_out_sources_are_in_training_in_no_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let sources_folder = folder.path().join("sources");
    if !sources(&sources_folder) {
        return;
    }
    let [train, held_out] = ["train", "held-out"].map(|side| files(&sources_folder.join(side)));
    assert!(train.len() >= 10 && held_out.len() >= 5, "{} and {}", train.len(), held_out.len());
    let look = |path: &PathBuf| {
        let bytes = fs::read(path).expect("a photograph");
        Fingerprint::of_file(&bytes, &ImageSettings::local()).expect("it is decoded")
    };
    let looks: Vec<_> = train.iter().map(look).collect();
    for path in &held_out {
        let own = look(path);
        for (other, look) in train.iter().zip(&looks) {
            assert!(!own.is_near(look), "{} is a near-copy of {}", path.display(), other.display());
        }
    }
    let data = folder.path().join("data");
    roc4mllm(
        &["demo-model", "photos", "--seed", "3", "--train", "120", "--held-out", "60"],
        &[("--sources", &sources_folder), ("--output", &data)],
    );
    let made_of = |set: &str| -> BTreeSet<String> {
        let samples: Vec<Value> =
            serde_json::from_slice(&fs::read(data.join(format!("{set}.json"))).expect("samples"))
                .expect("JSON");
        let source = |sample: &Value| {
            let image = sample["image"].as_str().expect("a name").to_owned();
            let (_, file) = image.split_once('/').expect("a folder");
            file.split_once('-').expect("a number before the source").1.to_owned()
        };
        samples.iter().map(source).collect()
    };
    let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(made_of("train").is_subset(&train.iter().map(name).collect()));
    let held_out: BTreeSet<String> = held_out.iter().map(name).collect();
    assert!(made_of("held-out").is_subset(&held_out));
    assert!(made_of("train").is_disjoint(&held_out));
}
