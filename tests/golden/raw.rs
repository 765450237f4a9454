//! Golden files as bytes, for what is held to the last bit without tensors.

pub use crate::support::folder;
use safetensors::SafeTensors;
use std::{collections::BTreeMap, fs};

/// Data type as safetensors spells it, shape, and little-endian bytes.
pub type Tensor = (String, Vec<usize>, Vec<u8>);

/// The bytes of `file`, a path relative to the folder.
pub fn bytes(file: &str) -> Vec<u8> {
    let path = folder().join(file);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn json(file: &str) -> serde_json::Value {
    serde_json::from_slice(&bytes(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Every tensor of a safetensors file, of which there must be some.
pub fn tensors(file: &str) -> BTreeMap<String, Tensor> {
    let bytes = bytes(file);
    let parsed = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
    let tensors: BTreeMap<_, _> = parsed
        .iter()
        .map(|(name, view)| {
            (name.to_owned(), (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec()))
        })
        .collect();
    assert!(!tensors.is_empty(), "{file}: holds no tensor");
    tensors
}

/// The numbers of an `F32` tensor, whose shape must be `shape`.
pub fn floats(file: &str, name: &str, (dtype, found, bytes): &Tensor, shape: &[usize]) -> Vec<f32> {
    assert_eq!(dtype, "F32", "{file}: {name}: data type");
    assert_eq!(found, shape, "{file}: {name}: shape");
    bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number)).collect()
}

/// Checkpoint folders, by name.
pub fn checkpoints() -> Vec<String> {
    let path = folder();
    let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("preprocessor_config.json").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(!names.is_empty(), "{}: no folder with a preprocessor_config.json", path.display());
    names
}
