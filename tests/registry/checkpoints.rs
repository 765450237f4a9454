//! Checkpoint folders to publish.

#[path = "../support/synthetic_checkpoint.rs"]
mod synthetic_checkpoint;

use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The tiny checkpoint that comes with the tests.
pub fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/ckpt_safetensors")
}

/// A copy of the tiny checkpoint.
pub fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(tiny()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// A copy whose scores end at another number, so that they differ.
pub fn with_max_score(max_score: f64) -> TempDir {
    let folder = copy();
    edit_config(folder.path(), |config| config["max_score"] = max_score.into());
    folder
}

pub fn edit_config(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// A sound checkpoint of about so many bytes, nearly all of them in one file.
pub fn large(bytes: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    synthetic_checkpoint::write(folder.path(), bytes);
    let name = "preprocessor_config.json";
    fs::copy(tiny().join(name), folder.path().join(name)).unwrap();
    folder
}
