//! The version of a checkpoint: a digest of what is in its files.

use super::{Checkpoint, error::CheckpointError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fmt::Write,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

/// Files beside the weights that change what the model answers.
pub const SETTINGS_FILES: [&str; 7] = [
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "tokenizer_config.json",
];

/// A checkpoint's version and the files it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// `sha256:` and 64 hexadecimal digits: equal for folders of equal content, whatever their path.
    pub version: String,
    /// Sorted by name.
    pub files: Vec<FileDigest>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileDigest {
    pub name: String,
    #[serde(rename = "size")]
    pub bytes: u64,
    /// 64 hexadecimal digits.
    pub sha256: String,
}

impl FileDigest {
    /// Reads and hashes one file.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] naming the file.
    pub fn of(path: &Path) -> Result<Self, CheckpointError> {
        let mut file = File::open(path).map_err(CheckpointError::io(path, "opening"))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0_u8; 1 << 20];
        let mut bytes = 0;
        loop {
            let count = file.read(&mut buffer).map_err(CheckpointError::io(path, "reading"))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            bytes += count as u64;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, bytes, sha256: hexadecimal(&hasher.finalize()) })
    }
}

impl Checkpoint {
    /// Hashes the weight files and the settings beside them.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] naming the file that can't be read.
    pub fn digest(&self) -> Result<Digest, CheckpointError> {
        let mut paths: Vec<PathBuf> = self.index.files.iter().map(|file| file.path.clone()).collect();
        let index = self.index.sharded.then(|| self.index.format.index_name());
        for name in SETTINGS_FILES.into_iter().map(str::to_owned).chain(index) {
            let path = self.folder.join(name);
            if path.exists() {
                paths.push(path);
            }
        }
        Ok(Digest::of(hash_files(paths)?))
    }
}

/// The version of the checkpoint in `folder`, which is to be `expected`: `sha256:` and at least twelve of its
/// 64 digits. Reads every file once, and loads none.
///
/// # Errors
/// [`CheckpointError::Version`] where it is another one, and what opening and reading may say.
pub fn verify(folder: &Path, expected: &str) -> Result<String, CheckpointError> {
    let digest = Checkpoint::open(folder)?.digest()?;
    if expected.len() >= digest.name().len() && digest.version.starts_with(expected) {
        return Ok(digest.version);
    }
    Err(CheckpointError::Version {
        path: folder.to_owned(),
        found: digest.version,
        expected: expected.to_owned(),
    })
}

impl Digest {
    /// Of files whose own digests are known, in any order.
    pub fn of(mut files: Vec<FileDigest>) -> Self {
        files.sort();
        let mut hasher = Sha256::new();
        for file in &files {
            hasher.update(format!("{}\n{}\n{}\n", file.name, file.bytes, file.sha256));
        }
        Self { version: format!("sha256:{}", hexadecimal(&hasher.finalize())), files }
    }

    /// `sha256:` and twelve digits: what the checkpoint is called where a row or an object names it.
    pub fn name(&self) -> String {
        short_name(&self.version)
    }
}

/// The beginning of a whole digest that a checkpoint goes by: `sha256:` and twelve digits.
pub fn short_name(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

/// The digests of files, in any order: each is read once, as many at a time as there are cores.
///
/// # Errors
/// [`CheckpointError::Io`] naming the file that can't be read.
pub fn hash_files(paths: Vec<PathBuf>) -> Result<Vec<FileDigest>, CheckpointError> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(paths.len());
    let (queue, results) = (Mutex::new(paths.into_iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(path) = locked(&queue).next() {
                    let result = FileDigest::of(&path);
                    locked(&results).push(result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_iter().collect()
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Two lower-case digits a byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
