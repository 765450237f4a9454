//! What a stand-in does beside scoring, as a JSON file that tests rewrite while it runs.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// The faults of a stand-in; without any, it only scores. Images are named by their
/// [digest](super::digest).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Edge of the square input in pixels; read once, when the scorer is built.
    pub image_size: usize,
    /// Milliseconds that each batch takes, and as many more for each image in it.
    pub batch_ms: u64,
    pub image_ms: u64,
    /// Larger batches run out of memory.
    pub out_of_memory_above: Option<usize>,
    /// A batch with one of these fails as a whole.
    pub fail: BTreeSet<String>,
    /// A batch with one of these ends the process by `SIGABRT`.
    pub abort: BTreeSet<String>,
    /// The score of these is no number.
    pub not_finite: BTreeSet<String>,
    /// Every batch, or one with such an image, hangs until the file says otherwise.
    pub hang: bool,
    pub hang_at: BTreeSet<String>,
    /// Every batch reports an unusable device.
    pub device_error: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            image_size: 32,
            batch_ms: 0,
            image_ms: 0,
            out_of_memory_above: None,
            fail: BTreeSet::new(),
            abort: BTreeSet::new(),
            not_finite: BTreeSet::new(),
            hang: false,
            hang_at: BTreeSet::new(),
            device_error: false,
        }
    }
}

impl Script {
    /// How long a batch of `images` takes.
    pub fn time_for(&self, images: usize) -> Duration {
        Duration::from_millis(self.batch_ms + self.image_ms * images as u64)
    }

    /// Whether a batch with these images hangs.
    pub fn hangs_on(&self, digests: &[String]) -> bool {
        self.hang || digests.iter().any(|digest| self.hang_at.contains(digest))
    }
}

/// A script that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("{path}: {reason}; the variable {} names a script's file", super::VARIABLE)]
    Read { path: PathBuf, reason: io::Error },
    #[error("{path}: {reason}; write a JSON object with the keys of a stand-in's script")]
    Parse { path: PathBuf, reason: serde_json::Error },
    #[error("{path}: image_size is 0; give the edge of the model's input in pixels")]
    NoSize { path: PathBuf },
}

/// A script's file and what it said last.
#[derive(Clone, Debug)]
pub struct ScriptFile {
    path: PathBuf,
    text: Vec<u8>,
    script: Script,
}

impl ScriptFile {
    /// # Errors
    /// [`ScriptError`] when the file cannot be read or is no script.
    pub fn open(path: PathBuf) -> Result<Self, ScriptError> {
        let text = fs::read(&path).map_err(|reason| ScriptError::Read { path: path.clone(), reason })?;
        let script = parse(&path, &text)?;
        if script.image_size == 0 {
            return Err(ScriptError::NoSize { path });
        }
        Ok(Self { path, text, script })
    }

    /// What it said when it was last read.
    pub fn now(&self) -> &Script {
        &self.script
    }

    /// What it says now. One that cannot be read, perhaps since it is just being written, changes
    /// nothing.
    pub fn refresh(&mut self) -> &Script {
        if let Ok(text) = fs::read(&self.path)
            && text != self.text
        {
            match parse(&self.path, &text) {
                Ok(script) => (self.text, self.script) = (text, script),
                Err(error) => tracing::debug!(%error, "a stand-in's script is passed over"),
            }
        }
        &self.script
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<Script, ScriptError> {
    serde_json::from_slice(text).map_err(|reason| ScriptError::Parse { path: path.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_says_only_what_differs() {
        let script: Script = serde_json::from_str(r#"{"image_ms": 5, "hang_at": ["ab"]}"#).unwrap();
        assert_eq!(script.image_size, 32);
        assert_eq!(script.time_for(4), Duration::from_millis(20));
        assert!(script.hangs_on(&["cd".into(), "ab".into()]) && !script.hangs_on(&["cd".into()]));
        assert!(serde_json::from_str::<Script>(r#"{"hangs": true}"#).is_err());
    }

    #[test]
    fn a_half_written_script_changes_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), r#"{"batch_ms": 3}"#).unwrap();
        let mut script = ScriptFile::open(file.path().to_owned()).unwrap();
        fs::write(file.path(), r#"{"batch_ms": 4"#).unwrap();
        assert_eq!(script.refresh().batch_ms, 3);
        fs::write(file.path(), r#"{"batch_ms": 4}"#).unwrap();
        assert_eq!(script.refresh().batch_ms, 4);
        fs::remove_file(file.path()).unwrap();
        assert_eq!(script.refresh().batch_ms, 4);
    }

    #[test]
    fn what_is_no_script_is_named() {
        let missing = ScriptFile::open("/no-such-script".into()).unwrap_err();
        assert!(missing.to_string().contains("/no-such-script"), "{missing}");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), r#"{"image_size": 0}"#).unwrap();
        assert!(matches!(ScriptFile::open(file.path().to_owned()), Err(ScriptError::NoSize { .. })));
    }
}
