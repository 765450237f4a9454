//! Checkpoint folders in Hugging Face layout: what is in them, and their tensors.
//!
//! Weights are mapped, never read: a tensor is a piece of its file until someone writes to it.

mod check;
mod convert;
mod digest;
mod error;
mod expected;
mod index;
mod inspect;
mod mapped;
mod memory;
mod pickle;
mod pickle_writer;
mod safetensors;
mod torch_zip;
mod writer;

pub use check::Problem;
pub use convert::{ConvertArgs, convert};
pub use digest::{Digest, FileDigest, SETTINGS_FILES, hash_files, hexadecimal, short_name, verify};
pub use error::{CheckpointError, TensorProblem};
pub use expected::{ExpectedTensor, Role, expected_tensors, is_layer_weight};
pub use index::{Format, StoredDtype};
pub use inspect::{Inspection, LoadMemory, inspect};
pub use mapped::Mappings;
pub use memory::available_memory;
pub use writer::{Unfinished, Written, copy_settings, write_json, write_weights};

use super::config::ModelConfig;
use index::{TensorIndex, WeightFile};
use mapped::MappedFile;
use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use tch::{Kind, Tensor};

/// Every tensor of one `.safetensors` file by its name, whatever the names are: mapped, not read.
///
/// # Errors
/// [`CheckpointError`] for a file that is missing or damaged, or holds what no weight may be.
pub fn map_safetensors(path: &Path) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let table = safetensors::read_table(path)?;
    let bytes = path.metadata().map_err(CheckpointError::io(path, "reading the size"))?.len();
    let map = MappedFile::open(&WeightFile { path: path.to_owned(), bytes })?;
    let tensor = |(name, stored): (String, index::StoredTensor)| {
        let Some(kind) = stored.dtype.kind() else {
            let problem = TensorProblem::Dtype { found: stored.dtype.to_string() };
            return Err(CheckpointError::Tensor { path: path.to_owned(), name, problem, others: 0 });
        };
        match map.tensor(&stored, kind) {
            Ok(tensor) => Ok((name, tensor)),
            Err(source) => Err(CheckpointError::Torch {
                path: path.to_owned(),
                name,
                doing: "mapping it",
                reason: mapped::first_line(&source),
            }),
        }
    };
    table.into_iter().map(tensor).collect()
}

/// An opened checkpoint folder, whose tensors are known to fit its `config.json`.
pub struct Checkpoint {
    folder: PathBuf,
    config: ModelConfig,
    expected: BTreeMap<String, ExpectedTensor>,
    index: TensorIndex,
    /// One a weight file, mapped when its first tensor is asked for.
    maps: Vec<OnceCell<MappedFile>>,
    used: RefCell<BTreeSet<String>>,
}

impl Checkpoint {
    /// Opens a folder: reads `config.json` and the tables of the weight files, and checks that
    /// names, shapes and types are those of the network. No weight is read.
    ///
    /// # Errors
    /// [`CheckpointError`] for a folder, file or tensor that is missing, damaged or of another shape.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = Self::open_unchecked(folder)?;
        let problems = check::problems(&checkpoint.index, &checkpoint.expected);
        match check::first_error(folder, &checkpoint.index, problems) {
            None => Ok(checkpoint),
            Some(error) => Err(error),
        }
    }

    /// As [`Self::open`], whatever the tensors are.
    fn open_unchecked(folder: &Path) -> Result<Self, CheckpointError> {
        let index = TensorIndex::read(folder)?;
        let config = ModelConfig::read(folder)?;
        let expected = expected_tensors(&config);
        let maps = index.files.iter().map(|_| OnceCell::new()).collect();
        Ok(Self { folder: folder.to_owned(), config, expected, index, maps, used: RefCell::default() })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every tensor that the network may have, present or not.
    pub fn expected(&self) -> &BTreeMap<String, ExpectedTensor> {
        &self.expected
    }

    pub fn format(&self) -> Format {
        self.index.format
    }

    pub fn contains(&self, name: &str) -> bool {
        self.index.tensors.contains_key(name)
    }

    /// The type that most weights are stored in, counted by elements.
    pub fn stored_kind(&self) -> Kind {
        let mut elements = BTreeMap::new();
        for (name, tensor) in &self.index.tensors {
            if self.expected.get(name).is_some_and(|expected| expected.role != Role::Buffer) {
                *elements.entry(&tensor.dtype).or_insert(0) += tensor.shape.iter().product::<i64>();
            }
        }
        let most = elements.into_iter().max_by_key(|(_, elements)| *elements);
        most.and_then(|(dtype, _)| dtype.kind()).unwrap_or(Kind::Float)
    }

    /// Size of all weight files in bytes.
    pub fn bytes_on_disk(&self) -> u64 {
        self.index.files.iter().map(|file| file.bytes).sum()
    }

    /// One tensor of the checkpoint, on the CPU, in the type and the memory it is stored in.
    ///
    /// The tensor is writable, and writing to it leaves the file as it is. It keeps its file mapped
    /// for as long as it lives, beyond the life of this checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] when the checkpoint has no such tensor, or has it in another shape.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, CheckpointError> {
        self.optional_tensor(name, shape)?.ok_or_else(|| CheckpointError::Tensor {
            path: self.folder.clone(),
            name: name.to_owned(),
            problem: TensorProblem::Missing { expected: shape.to_vec() },
            others: 0,
        })
    }

    /// As [`Self::tensor`], for one that may be absent.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] when it is there in another shape.
    pub fn optional_tensor(&self, name: &str, shape: &[i64]) -> Result<Option<Tensor>, CheckpointError> {
        let Some(stored) = self.index.tensors.get(name) else {
            return Ok(None);
        };
        let path = &self.index.files[stored.file].path;
        let fault = |problem| CheckpointError::Tensor {
            path: path.clone(),
            name: name.to_owned(),
            problem,
            others: 0,
        };
        if stored.shape != shape {
            return Err(fault(TensorProblem::Shape {
                expected: shape.to_vec(),
                found: stored.shape.clone(),
            }));
        }
        let kind = stored
            .dtype
            .kind()
            .ok_or_else(|| fault(TensorProblem::Dtype { found: stored.dtype.to_string() }))?;
        let map = match self.maps[stored.file].get() {
            Some(map) => map,
            None => {
                let opened = MappedFile::open(&self.index.files[stored.file])?;
                self.maps[stored.file].get_or_init(|| opened)
            }
        };
        let tensor = map.tensor(stored, kind).map_err(|source| CheckpointError::Torch {
            path: path.clone(),
            name: name.to_owned(),
            doing: "mapping it",
            reason: mapped::first_line(&source),
        })?;
        self.used.borrow_mut().insert(name.to_owned());
        Ok(Some(tensor))
    }

    /// Every tensor of the network that the checkpoint holds, by name, as [`Self::tensor`] gives it:
    /// all weights, and buffers where they are stored. A tied `lm_head.weight` that is absent is the
    /// embeddings.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
        let mut tensors = BTreeMap::new();
        for (name, expected) in &self.expected {
            let tensor = match expected.role {
                Role::Parameter => Some(self.tensor(name, &expected.shape)?),
                Role::Buffer => self.optional_tensor(name, &expected.shape)?,
                Role::Tied => match self.optional_tensor(name, &expected.shape)? {
                    Some(tensor) => Some(tensor),
                    None => Some(self.tensor("model.embed_tokens.weight", &expected.shape)?),
                },
            };
            tensors.extend(tensor.map(|tensor| (name.clone(), tensor)));
        }
        Ok(tensors)
    }

    /// The weight files that tensors were taken from so far.
    pub fn mappings(&self) -> Mappings {
        Mappings::of(self.maps.iter().filter_map(OnceCell::get))
    }

    /// To be called once a network has taken its tensors.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] naming a weight that was never asked for; buffers are exempt.
    pub fn finish(&self) -> Result<(), CheckpointError> {
        let used = self.used.borrow();
        let weight = |name: &str| self.expected.get(name).is_none_or(|tensor| tensor.role != Role::Buffer);
        let mut unused = self.index.tensors.iter().filter(|(name, _)| !used.contains(*name) && weight(name));
        match unused.next() {
            None => Ok(()),
            Some((name, stored)) => Err(CheckpointError::Tensor {
                path: self.index.files[stored.file].path.clone(),
                name: name.clone(),
                problem: TensorProblem::Unexpected { found: stored.shape.clone() },
                others: unused.count(),
            }),
        }
    }
}
