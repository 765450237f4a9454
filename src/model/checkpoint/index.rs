//! Which weight files a folder holds, and which tensor lies where in them.

use super::{error::CheckpointError, safetensors, torch_zip};
use crate::model::fields::read_object;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    path::{Component, Path, PathBuf},
};
use tch::Kind;

/// How weights are written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// model*.safetensors
    Safetensors,
    /// pytorch_model*.bin: the zip files of torch.save
    #[value(name = "bin")]
    TorchZip,
}

impl Format {
    pub(super) fn single_name(self) -> &'static str {
        match self {
            Self::Safetensors => "model.safetensors",
            Self::TorchZip => "pytorch_model.bin",
        }
    }

    pub(super) fn index_name(self) -> String {
        format!("{}.index.json", self.single_name())
    }

    /// `model-00001-of-00003.safetensors` and the like; `number` counts from 1.
    pub(super) fn shard_name(self, number: usize, count: usize) -> String {
        match self {
            Self::Safetensors => format!("model-{number:05}-of-{count:05}.safetensors"),
            Self::TorchZip => format!("pytorch_model-{number:05}-of-{count:05}.bin"),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "bin",
        })
    }
}

/// An element type as a file states it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoredDtype {
    F32,
    F16,
    BF16,
    /// Anything else; no weight may have it.
    Other(String),
}

impl StoredDtype {
    /// The type that a torch type is stored as; `None` for what no weight may have.
    pub fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Float => Some(Self::F32),
            Kind::Half => Some(Self::F16),
            Kind::BFloat16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// The torch type; `None` for what is never loaded.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::F32 => Some(Kind::Float),
            Self::F16 => Some(Kind::Half),
            Self::BF16 => Some(Kind::BFloat16),
            Self::Other(_) => None,
        }
    }
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Other(name) => name,
        })
    }
}

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoredTensor {
    /// Which of [`TensorIndex::files`].
    pub file: usize,
    pub dtype: StoredDtype,
    pub shape: Vec<i64>,
    /// In elements; `None` when the tensor is contiguous.
    pub strides: Option<Vec<i64>>,
    /// Of the first element, in bytes from the start of the file.
    pub offset: u64,
}

/// One weight file.
#[derive(Clone, Debug)]
pub(super) struct WeightFile {
    pub path: PathBuf,
    pub bytes: u64,
}

/// Every tensor of a folder's weight files, found without reading any weight.
#[derive(Clone, Debug)]
pub(super) struct TensorIndex {
    pub format: Format,
    pub sharded: bool,
    pub files: Vec<WeightFile>,
    pub tensors: BTreeMap<String, StoredTensor>,
}

impl TensorIndex {
    /// Reads the tables of the folder's weight files. Where both formats are there, safetensors win
    /// and a single file wins over shards, as in the reference's loader.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        if !folder.is_dir() {
            return Err(CheckpointError::layout(
                folder,
                "is no folder",
                "give a checkpoint folder in Hugging Face layout (config.json, weights, tokenizer.model)",
            ));
        }
        for format in [Format::Safetensors, Format::TorchZip] {
            let single = folder.join(format.single_name());
            if single.exists() {
                let mut index = Self { format, sharded: false, files: Vec::new(), tensors: BTreeMap::new() };
                index.add_file(&single)?;
                return Ok(index);
            }
            let weight_map = folder.join(format.index_name());
            if weight_map.exists() {
                return Self::read_sharded(folder, format, &weight_map);
            }
        }
        if folder.join("adapter_config.json").exists() {
            return Err(CheckpointError::layout(
                folder,
                "holds an adapter, and not the weights that it adapts",
                "merge both in Python: PeftModel.from_pretrained(model, adapter).merge_and_unload(), and save that",
            ));
        }
        Err(CheckpointError::layout(
            folder,
            "holds no weights (model.safetensors or pytorch_model.bin, or either's .index.json)",
            "fetch the weight files into it, or give another folder",
        ))
    }

    fn read_sharded(folder: &Path, format: Format, weight_map: &Path) -> Result<Self, CheckpointError> {
        let object = read_object(weight_map)?;
        let entries = object.get("weight_map").and_then(serde_json::Value::as_object);
        let entries =
            entries.ok_or_else(|| CheckpointError::corrupt(weight_map, "it has no object `weight_map`"))?;
        let mut shard_of = BTreeMap::new();
        for (name, shard) in entries {
            check_name(weight_map, name)?;
            let shard = shard.as_str().filter(|shard| is_plain_file_name(shard)).ok_or_else(|| {
                CheckpointError::corrupt(weight_map, format!("`{name}` is mapped to {shard}, no file name"))
            })?;
            shard_of.insert(name.as_str(), shard);
        }
        let shards: BTreeSet<&str> = shard_of.values().copied().collect();
        let mut index = Self { format, sharded: true, files: Vec::new(), tensors: BTreeMap::new() };
        for shard in shards {
            let path = folder.join(shard);
            if !path.exists() {
                return Err(CheckpointError::layout(
                    &path,
                    format!("is missing, but {} names it", format.index_name()),
                    "fetch the missing shard",
                ));
            }
            index.add_file(&path)?;
        }
        for (name, shard) in shard_of {
            let found = index.tensors.get(name).map(|tensor| &index.files[tensor.file].path);
            if found.is_none_or(|path| path.file_name() != Some(shard.as_ref())) {
                return Err(CheckpointError::corrupt(
                    weight_map,
                    format!("it says that `{name}` is in {shard}, but that file doesn't hold it"),
                ));
            }
        }
        Ok(index)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let bytes = path.metadata().map_err(CheckpointError::io(path, "reading the size"))?.len();
        let table = match self.format {
            Format::Safetensors => safetensors::read_table(path)?,
            Format::TorchZip => torch_zip::read_table(path)?,
        };
        let file = self.files.len();
        self.files.push(WeightFile { path: path.to_owned(), bytes });
        for (name, tensor) in table {
            check_name(path, &name)?;
            match self.tensors.entry(name) {
                Entry::Vacant(place) => {
                    place.insert(StoredTensor { file, ..tensor });
                }
                Entry::Occupied(place) => {
                    let first = &self.files[place.get().file].path;
                    return Err(CheckpointError::corrupt(
                        path,
                        format!("tensor `{}` is also in {}", place.key(), first.display()),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A name that can't lead out of the folder, and that a message can show on one line.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(char::is_control)
}

/// Messages name tensors, and are one line.
fn check_name(path: &Path, name: &str) -> Result<(), CheckpointError> {
    if name.contains(char::is_control) {
        return Err(CheckpointError::corrupt(
            path,
            format!("it names a tensor {name:?}, as no tensor is named"),
        ));
    }
    Ok(())
}
