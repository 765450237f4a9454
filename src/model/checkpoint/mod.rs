//! Checkpoint folders in Hugging Face layout: what is in them, and their tensors.
//!
//! Weights are mapped, never read: a tensor is a piece of its file until someone writes to it.

mod digest;
mod error;
mod expected;
mod index;
mod mapped;
mod memory;
mod pickle;
mod safetensors;
mod torch_zip;

pub use digest::{Digest, FileDigest};
pub use error::{CheckpointError, TensorProblem};
pub use expected::{ExpectedTensor, Role, expected_tensors};
pub use index::{Format, StoredDtype};
pub use memory::available_memory;

use super::config::ModelConfig;
use index::{StoredTensor, TensorIndex};
use mapped::MappedFile;
use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use tch::{Kind, Tensor};

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
        let index = TensorIndex::read(folder)?;
        let config = ModelConfig::read(folder)?;
        let expected = expected_tensors(&config);
        check(folder, &index, &expected)?;
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
            return Err(fault(TensorProblem::Shape { expected: shape.to_vec(), found: stored.shape.clone() }));
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

    /// To be called once a network has taken its tensors.
    ///
    /// # Errors
    /// [`CheckpointError::Tensor`] naming a weight that was never asked for; buffers are exempt.
    pub fn finish(&self) -> Result<(), CheckpointError> {
        let used = self.used.borrow();
        let unused: Vec<_> = self
            .index
            .tensors
            .iter()
            .filter(|(name, _)| !used.contains(*name))
            .filter(|(name, _)| self.expected.get(*name).is_none_or(|e| e.role == Role::Parameter))
            .collect();
        match unused.first() {
            None => Ok(()),
            Some((name, stored)) => Err(unexpected(&self.index, name, stored, unused.len() - 1)),
        }
    }
}

fn unexpected(index: &TensorIndex, name: &str, stored: &StoredTensor, others: usize) -> CheckpointError {
    CheckpointError::Tensor {
        path: index.files[stored.file].path.clone(),
        name: name.to_owned(),
        problem: TensorProblem::Unexpected { found: stored.shape.clone() },
        others,
    }
}

/// Compares what the files hold with what the network has: shapes and types first, since a wrong
/// `config.json` shows there most plainly, then tensors that are missing, then those too many.
fn check(
    folder: &Path,
    index: &TensorIndex,
    expected: &BTreeMap<String, ExpectedTensor>,
) -> Result<(), CheckpointError> {
    let mut mismatches = Vec::new();
    for (name, stored) in &index.tensors {
        let Some(expected) = expected.get(name) else { continue };
        if expected.shape != stored.shape {
            let (expected, found) = (expected.shape.clone(), stored.shape.clone());
            mismatches.push((name, stored, TensorProblem::Shape { expected, found }));
        } else if stored.dtype.kind().is_none() {
            mismatches.push((name, stored, TensorProblem::Dtype { found: stored.dtype.to_string() }));
        }
    }
    let others = mismatches.len().saturating_sub(1);
    if let Some((name, stored, problem)) = mismatches.into_iter().next() {
        return Err(CheckpointError::Tensor {
            path: index.files[stored.file].path.clone(),
            name: name.clone(),
            problem,
            others,
        });
    }
    let missing = |(name, expected): &(&String, &ExpectedTensor)| {
        !expected.role.may_be_absent() && !index.tensors.contains_key(*name)
    };
    let missing: Vec<_> = expected.iter().filter(missing).collect();
    if let Some((name, expected)) = missing.first() {
        return Err(CheckpointError::Tensor {
            path: folder.to_owned(),
            name: (*name).clone(),
            problem: TensorProblem::Missing { expected: expected.shape.clone() },
            others: missing.len() - 1,
        });
    }
    let extra: Vec<_> = index.tensors.iter().filter(|(name, _)| !expected.contains_key(*name)).collect();
    match extra.first() {
        None => Ok(()),
        Some((name, stored)) => Err(unexpected(index, name, stored, extra.len() - 1)),
    }
}
