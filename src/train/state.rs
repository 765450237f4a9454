//! What a run needs to go on where it was stopped, kept beside what it writes.
//!
//! `OUTPUT/state/step-00000042/` holds `tensors.safetensors` (trained weights and what the optimizer
//! remembers of each) and `state.json` (the step, and what the run works with). Order of samples and
//! random numbers follow from seed and step ([`super::order`], [`super::random`]), so they are in it too.
//!
//! A state is written to a folder beside it, synced to disk and renamed: it is there whole or not at
//! all, whenever the process is killed. The last two are kept, so that one that the disk has damaged
//! costs some steps and not the run.

use crate::model::checkpoint::{CheckpointError, FileDigest, map_safetensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};
use tch::{TchError, Tensor};

const TENSORS: &str = "tensors.safetensors";
const DESCRIPTION: &str = "state.json";
/// Begins the names of folders that are being written or removed.
const UNFINISHED: &str = ".unfinished-";
const KEPT: usize = 2;

/// A state that can't be saved or gone on from.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{}: {doing} failed ({source}); check the path, its permissions and the disk", .path.display())]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{}: another run is training into this folder; wait for it, or choose another output", .path.display())]
    InUse { path: PathBuf },
    #[error(
        "{}: was saved by an unfinished run after step {step}; go on from there with --resume, remove the \
         folder, or choose another output", .path.display()
    )]
    Unfinished { path: PathBuf, step: u64 },
    #[error(
        "{}: was saved by a run with {differences}; go on with what it was started with, or start anew in \
         another folder", .path.display()
    )]
    Different { path: PathBuf, differences: String },
    #[error("{}: does not hold what this network trains ({problem}); start anew in another folder", .path.display())]
    Tensors { path: PathBuf, problem: String },
    #[error("{}: torch failed to write the state ({reason}); check the disk's free space", .path.display())]
    Torch { path: PathBuf, reason: String },
}

/// What the result of a run depends on, by the names that its user knows.
pub type RunIdentity = Map<String, Value>;

/// The saved states of one output folder, which no other process uses meanwhile.
pub struct States {
    folder: PathBuf,
    _lock: File,
}

/// A state that was saved, whole.
pub struct SavedState {
    path: PathBuf,
    step: u64,
    run: RunIdentity,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    step: u64,
    tensors_sha256: String,
    run: RunIdentity,
}

impl States {
    /// Those of the output folder `output`; it and its folder of states are created where missing.
    ///
    /// # Errors
    /// [`StateError::InUse`] while another process has them, [`StateError::Io`].
    pub fn open(output: &Path) -> Result<Self, StateError> {
        let folder = output.join("state");
        fs::create_dir_all(&folder).map_err(io_error(&folder, "creating the folder"))?;
        let path = folder.join("lock");
        let lock = File::create(&path).map_err(io_error(&path, "creating"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::InUse { path: output.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io_error(&path, "locking")(source)),
        }
        let states = Self { folder, _lock: lock };
        for name in states.names()?.iter().filter(|name| name.starts_with(UNFINISHED)) {
            remove(&states.folder.join(name))?;
        }
        Ok(states)
    }

    /// The newest state that is whole. Damaged ones are skipped, and said so.
    ///
    /// # Errors
    /// [`StateError::Io`] when the folder can't be listed.
    pub fn newest(&self) -> Result<Option<SavedState>, StateError> {
        for name in self.steps()?.iter().rev() {
            let path = self.folder.join(name);
            match SavedState::read(&path) {
                Ok(state) => return Ok(Some(state)),
                Err(problem) => {
                    tracing::warn!("{}: skipped, because it is damaged: {problem}", path.display())
                }
            }
        }
        Ok(None)
    }

    /// Saves the state after `step`, and forgets all but the last two.
    ///
    /// # Errors
    /// [`StateError::Io`] or [`StateError::Torch`], most likely for lack of space; earlier states stay.
    pub fn save(
        &self,
        step: u64,
        run: &RunIdentity,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<(), StateError> {
        let name = format!("step-{step:08}");
        let unfinished = self.folder.join(format!("{UNFINISHED}{name}"));
        remove(&unfinished)?;
        fs::create_dir(&unfinished).map_err(io_error(&unfinished, "creating the folder"))?;
        let path = unfinished.join(TENSORS);
        let named: Vec<(&String, &Tensor)> = tensors.iter().collect();
        Tensor::write_safetensors(&named, &path).map_err(torch_error(&path))?;
        sync(&path)?;
        let digest = FileDigest::of(&path).map_err(|error| match error {
            CheckpointError::Io { path, doing, source } => StateError::Io { path, doing, source },
            other => StateError::Torch { path: path.clone(), reason: other.to_string() },
        })?;
        let description = Description { step, tensors_sha256: digest.sha256, run: run.clone() };
        let path = unfinished.join(DESCRIPTION);
        let text = serde_json::to_string_pretty(&description).map_err(io::Error::from);
        text.and_then(|text| fs::write(&path, text)).map_err(io_error(&path, "writing"))?;
        sync(&path)?;
        sync(&unfinished)?;
        let finished = self.folder.join(&name);
        // There only after a damaged state was skipped, and its step is reached again.
        self.forget(&name)?;
        fs::rename(&unfinished, &finished).map_err(io_error(&finished, "renaming the finished folder"))?;
        sync(&self.folder)?;
        let steps = self.steps()?;
        let older = steps.iter().rev().filter(|other| **other < name).skip(KEPT - 1);
        // Later ones are damaged, or of a run that this one replaces.
        let later = steps.iter().filter(|other| **other > name);
        older.chain(later).try_for_each(|other| self.forget(other))
    }

    /// Forgets every state, once the run has ended and its result is written.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn clear(self) -> Result<(), StateError> {
        for name in self.steps()? {
            self.forget(&name)?;
        }
        remove(&self.folder)
    }

    /// Removes a state without leaving half of it under its name.
    fn forget(&self, name: &str) -> Result<(), StateError> {
        let (path, unfinished) =
            (self.folder.join(name), self.folder.join(format!("{UNFINISHED}old-{name}")));
        if !path.exists() {
            return Ok(());
        }
        remove(&unfinished)?;
        fs::rename(&path, &unfinished).map_err(io_error(&path, "renaming"))?;
        remove(&unfinished)
    }

    /// Names of the folders of states, in the order of their steps.
    fn steps(&self) -> Result<BTreeSet<String>, StateError> {
        let mut names = self.names()?;
        names.retain(|name| name.starts_with("step-"));
        Ok(names)
    }

    fn names(&self) -> Result<BTreeSet<String>, StateError> {
        let entries = fs::read_dir(&self.folder).map_err(io_error(&self.folder, "listing"))?;
        let names: io::Result<BTreeSet<String>> = entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect();
        names.map_err(io_error(&self.folder, "listing"))
    }
}

impl SavedState {
    /// What is in `path`, or what is wrong with it.
    fn read(path: &Path) -> Result<Self, String> {
        let described =
            fs::read(path.join(DESCRIPTION)).map_err(|error| format!("{DESCRIPTION}: {error}"))?;
        let Description { step, tensors_sha256, run } =
            serde_json::from_slice(&described).map_err(|error| format!("{DESCRIPTION}: {error}"))?;
        let tensors = path.join(TENSORS);
        let digest = FileDigest::of(&tensors).map_err(|error| error.to_string())?;
        if digest.sha256 != tensors_sha256 {
            return Err(format!("{TENSORS}: its SHA-256 is not the one that was saved"));
        }
        let tensors = map_safetensors(&tensors).map_err(|error| error.to_string())?;
        Ok(Self { path: path.to_owned(), step, run, tensors })
    }

    /// Steps that were done when it was saved.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// What to say to whoever didn't ask to go on from it.
    pub fn unfinished(&self) -> StateError {
        StateError::Unfinished { path: self.path.clone(), step: self.step }
    }

    /// Copies the saved values into `tensors`, in place, if a run of this identity saved them.
    ///
    /// # Errors
    /// [`StateError::Different`] naming what isn't as it was, [`StateError::Tensors`] for names or
    /// shapes that are others.
    pub fn restore(&self, run: &RunIdentity, tensors: &BTreeMap<String, Tensor>) -> Result<(), StateError> {
        let differences = differences(&self.run, run);
        if !differences.is_empty() {
            let differences = differences.join(", ");
            return Err(StateError::Different { path: self.path.clone(), differences });
        }
        let mismatch = |problem| StateError::Tensors { path: self.path.clone(), problem };
        if let Some(name) = self.tensors.keys().find(|name| !tensors.contains_key(*name)) {
            return Err(mismatch(format!("`{name}` has no place")));
        }
        for (name, tensor) in tensors {
            let saved = self.tensors.get(name).ok_or_else(|| mismatch(format!("`{name}` is missing")))?;
            if saved.size() != tensor.size() || saved.kind() != tensor.kind() {
                let (found, expected) = (saved.size(), tensor.size());
                return Err(mismatch(format!(
                    "`{name}` is {:?} {found:?}, not {:?} {expected:?}",
                    saved.kind(),
                    tensor.kind()
                )));
            }
            tch::no_grad(|| tensor.shallow_clone().f_copy_(saved))
                .map_err(|error| mismatch(format!("`{name}`: {}", first_line(&error))))?;
        }
        Ok(())
    }
}

/// What differs, as `name before instead of now`.
fn differences(saved: &RunIdentity, current: &RunIdentity) -> Vec<String> {
    let names: BTreeSet<&String> = saved.keys().chain(current.keys()).collect();
    let shown = |value: Option<&Value>| value.map_or("none".to_owned(), Value::to_string);
    let differing = names.into_iter().filter(|name| saved.get(*name) != current.get(*name));
    differing
        .map(|name| format!("{name} {} instead of {}", shown(saved.get(name)), shown(current.get(name))))
        .collect()
}

fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path, "removing")(error)),
        _ => Ok(()),
    }
}

/// Waits until a file or a folder's list of names is on the disk.
fn sync(path: &Path) -> Result<(), StateError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error(path, "syncing to disk"))
}

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { path, doing, source }
}

fn torch_error(path: &Path) -> impl FnOnce(TchError) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Torch { path, reason: first_line(&source) }
}

/// What follows the first line of a torch error is a C++ stack trace.
fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tch::Kind;
    use tempfile::TempDir;

    fn run(learning_rate: f64) -> RunIdentity {
        Map::from_iter([("learning_rate".into(), json!(learning_rate)), ("data_sha256".into(), json!("0a"))])
    }

    fn tensors(value: f32) -> BTreeMap<String, Tensor> {
        let tensor = |kind, size: &[i64]| Tensor::full(size, f64::from(value), (kind, tch::Device::Cpu));
        BTreeMap::from([
            ("weights/a".into(), tensor(Kind::Float, &[2, 3])),
            ("weights/b".into(), tensor(Kind::BFloat16, &[3])),
            ("exp_avg/a".into(), tensor(Kind::Float, &[])),
        ])
    }

    fn output() -> (TempDir, States) {
        let output = tempfile::tempdir().unwrap();
        let states = States::open(output.path()).unwrap();
        (output, states)
    }

    fn save(states: &States, step: u64) {
        states.save(step, &run(0.1), &tensors(step as f32)).unwrap();
    }

    /// The step and the value of every tensor of the newest state.
    fn newest(states: &States) -> Option<(u64, f64)> {
        let state = states.newest().unwrap()?;
        let restored = tensors(-1.0);
        state.restore(&run(0.1), &restored).unwrap();
        let values: Vec<f64> =
            restored.values().flat_map(|tensor| Vec::<f64>::try_from(tensor.view([-1])).unwrap()).collect();
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        Some((state.step(), values[0]))
    }

    #[test]
    fn the_last_two_states_are_kept() {
        let (output, states) = output();
        assert!(newest(&states).is_none());
        for step in [5, 10, 15, 100_000_000] {
            save(&states, step);
            assert_eq!(newest(&states), Some((step, step as f64)));
        }
        assert!(
            states.steps().unwrap().into_iter().eq(["step-00000015", "step-100000000"].map(String::from))
        );
        drop(states);
        let states = States::open(output.path()).unwrap();
        assert_eq!(newest(&states), Some((100_000_000, 1e8)));
        states.clear().unwrap();
        assert!(!output.path().join("state").exists());
    }

    #[test]
    fn a_damaged_state_is_skipped_for_the_one_before() {
        let flip = |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path, bytes).unwrap();
        };
        let cut = |path: &Path| fs::write(path, &fs::read(path).unwrap()[..20]).unwrap();
        let lost = |path: &Path| fs::remove_file(path).unwrap();
        let damages: [(&str, &dyn Fn(&Path)); 5] =
            [(TENSORS, &flip), (TENSORS, &cut), (TENSORS, &lost), (DESCRIPTION, &cut), (DESCRIPTION, &lost)];
        for (file, damage) in damages {
            let (output, states) = output();
            save(&states, 5);
            save(&states, 10);
            damage(&output.path().join("state/step-00000010").join(file));
            assert_eq!(newest(&states), Some((5, 5.0)), "{file}");
            // The run goes on from there, past the damaged one.
            save(&states, 10);
            assert_eq!(newest(&states), Some((10, 10.0)), "{file}");
        }
    }

    #[test]
    fn a_half_written_state_is_none() {
        let (output, states) = output();
        save(&states, 5);
        drop(states);
        // As a kill leaves them: written or removed in part.
        let folder = output.path().join("state");
        for name in [".unfinished-step-00000010", ".unfinished-old-step-00000003"] {
            fs::create_dir(folder.join(name)).unwrap();
            fs::write(folder.join(name).join(TENSORS), [0; 10]).unwrap();
        }
        let states = States::open(output.path()).unwrap();
        assert_eq!(newest(&states), Some((5, 5.0)));
        assert!(states.names().unwrap().iter().all(|name| !name.starts_with(UNFINISHED)));
    }

    #[test]
    fn one_run_at_a_time_has_a_folder() {
        let (output, states) = output();
        let error = States::open(output.path()).err().unwrap();
        assert!(matches!(error, StateError::InUse { .. }), "{error}");
        drop(states);
        assert!(States::open(output.path()).is_ok());
    }

    #[test]
    fn a_state_of_another_run_is_refused_by_what_differs() {
        let (_output, states) = output();
        save(&states, 5);
        let state = states.newest().unwrap().unwrap();
        let message = state.restore(&run(0.2), &tensors(0.0)).unwrap_err().to_string();
        assert!(message.contains("learning_rate 0.1 instead of 0.2"), "{message}");
        assert!(!message.contains("data_sha256"), "{message}");

        let mut fewer = run(0.1);
        fewer.remove("data_sha256");
        let message = state.restore(&fewer, &tensors(0.0)).unwrap_err().to_string();
        assert!(message.contains("data_sha256 \"0a\" instead of none"), "{message}");

        let mut other = tensors(0.0);
        other.insert("weights/a".into(), Tensor::zeros([2, 4], (Kind::Float, tch::Device::Cpu)));
        let message = state.restore(&run(0.1), &other).unwrap_err().to_string();
        assert!(message.contains("`weights/a`") && message.contains("[2, 4]"), "{message}");
        let mut other = tensors(0.0);
        other.remove("weights/b");
        assert!(
            state.restore(&run(0.1), &other).unwrap_err().to_string().contains("`weights/b` has no place")
        );
    }

    #[test]
    fn restoring_writes_into_tensors_that_have_gradients() {
        let (_output, states) = output();
        save(&states, 5);
        let trained = tensors(0.0);
        let weight = trained["weights/a"].set_requires_grad(true);
        states.newest().unwrap().unwrap().restore(&run(0.1), &trained).unwrap();
        assert_eq!(weight.double_value(&[1, 2]), 5.0);
        assert!(weight.requires_grad());
    }
}
