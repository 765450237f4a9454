//! Reading golden files, and comparing with them so that a failure names the file.

use serde::de::DeserializeOwned;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tch::{Kind, Tensor};

/// The golden folder.
pub fn folder() -> PathBuf {
    match std::env::var_os("ROC4MLLM_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden"),
    }
}

/// A golden file's place; panics with its name where it is missing.
pub fn path(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(path.exists(), "{}: no such golden file", path.display());
    path
}

/// A golden JSON file.
pub fn json<T: DeserializeOwned>(name: &str) -> T {
    let path = path(name);
    let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tensors of a golden safetensors file, by name; never empty.
pub fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    let path = path(name);
    let tensors =
        Tensor::read_safetensors(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(!tensors.is_empty(), "{}: no tensors", path.display());
    tensors.into_iter().collect()
}

/// The checkpoint folder that a golden set's model outputs were made with.
pub fn checkpoint_folders() -> Vec<PathBuf> {
    let golden = folder();
    let entries = fs::read_dir(&golden).unwrap_or_else(|error| panic!("{}: {error}", golden.display()));
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap_or_else(|error| panic!("{}: {error}", golden.display())).path())
        .filter(|path| path.is_dir() && file_name(path).starts_with("ckpt_"))
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "{}: no ckpt_* folder", golden.display());
    folders
}

/// A path's last part.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The element type that a checkpoint folder's `config.json` states.
pub fn stated_dtype(checkpoint: &Path) -> String {
    let name = format!("{}/config.json", file_name(checkpoint));
    let config: serde_json::Value = json(&name);
    config["torch_dtype"].as_str().unwrap_or_else(|| panic!("{name}: no torch_dtype")).to_owned()
}

/// Largest absolute difference of two tensors of one shape, in f64; a NaN counts as infinite.
pub fn largest_difference(found: &Tensor, expected: &Tensor) -> f64 {
    if expected.numel() == 0 {
        return 0.0;
    }
    let difference = (found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max();
    let difference = difference.double_value(&[]);
    if difference.is_nan() { f64::INFINITY } else { difference }
}

/// Fails, naming file and tensor, unless both have one shape and differ by at most `tolerance`.
pub fn assert_close(file: &str, name: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    let path = folder().join(file);
    assert_eq!(found.size(), expected.size(), "{}: {name}: shape (found, golden)", path.display());
    let difference = largest_difference(found, expected);
    assert!(
        difference <= tolerance,
        "{}: {name}: largest difference {difference:e}, allowed {tolerance:e}",
        path.display()
    );
}

/// Fails, naming file and tensor, unless shape, type and every bit are equal.
pub fn assert_same(file: &str, name: &str, found: &Tensor, expected: &Tensor) {
    let path = folder().join(file);
    assert_eq!(
        (found.kind(), found.size()),
        (expected.kind(), expected.size()),
        "{}: {name}: type and shape (found, golden)",
        path.display()
    );
    let bits = |tensor: &Tensor| tensor.contiguous().view(-1).view_dtype(Kind::Uint8);
    assert!(
        bits(found).equal(&bits(expected)),
        "{}: {name}: not bit-equal; largest difference {:e}",
        path.display(),
        largest_difference(found, expected)
    );
}
