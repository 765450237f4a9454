//! What a run needs to go on where it was stopped, kept beside what it writes.
//!
//! `state/step-00000042/` holds `model.safetensors` (trained weights and what the optimizer remembers of
//! each) and `state.json` (how far the run is, and what it works with). Order of samples and random
//! numbers follow from seed and step ([`super::order`], [`super::random`]), so they are in it too.
//!
//! A state is written to a folder beside it, synced to disk and renamed: it is there whole or not at
//! all, whenever the process is killed. The last two are kept, so that one that the disk has damaged
//! costs some steps and not the run.

use crate::model::checkpoint::{CheckpointError, FileDigest, map_safetensors, write_json, write_weights};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};
use tch::Tensor;

/// The folder of states in an output folder.
pub const STATE_FOLDER: &str = "state";

const TENSORS: &str = "model.safetensors";
const DESCRIPTION: &str = "state.json";
/// Begins the name of a state's folder, before the step.
const FINISHED: &str = "step-";
/// Begins the names of folders that are being written or removed.
const UNFINISHED: &str = ".unfinished-";
const KEPT: usize = 2;

/// A state that can't be saved or gone on from.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{}: {doing} failed ({source}); check the path, its permissions and the disk", .path.display())]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error(transparent)]
    Write(#[from] CheckpointError),
    #[error(
        "{}: an unfinished run has saved its state there; go on with it by --resume, remove the folder, or \
         give another --output", .path.display()
    )]
    Unfinished { path: PathBuf },
    #[error(
        "{}: was saved by a run with {differences}; go on with what it was started with, or start anew with \
         another --output", .path.display()
    )]
    Different { path: PathBuf, differences: String },
    #[error("{}: does not fit what is trained ({problem}); start anew with another --output", .path.display())]
    Tensors { path: PathBuf, problem: String },
}

/// What the result of a run depends on, by the names that its user knows.
pub type RunIdentity = Map<String, Value>;

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub steps: u64,
    /// Times that a sample was left out because its image can't be read.
    pub skipped: u64,
}

/// The saved states of one output folder, which no other process may use meanwhile.
pub struct States {
    folder: PathBuf,
}

/// A state that was saved, whole.
pub struct SavedState {
    path: PathBuf,
    done: Done,
    run: RunIdentity,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    done: Done,
    tensors_sha256: String,
    run: RunIdentity,
}

impl States {
    /// Those in the folder `output`, without what a kill has left half written or half removed.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn open(output: &Path) -> Result<Self, StateError> {
        let states = Self { folder: output.join(STATE_FOLDER) };
        fs::create_dir_all(&states.folder).map_err(io_error(&states.folder, "creating the folder"))?;
        for name in states.names(UNFINISHED)? {
            remove(&states.folder.join(name))?;
        }
        Ok(states)
    }

    /// Whether the folder `output` holds any.
    pub fn any(output: &Path) -> bool {
        let states = Self { folder: output.join(STATE_FOLDER) };
        states.names(FINISHED).is_ok_and(|names| !names.is_empty())
    }

    /// The newest state that is whole. Damaged ones are skipped, and said so.
    ///
    /// # Errors
    /// [`StateError::Io`] when the folder can't be listed.
    pub fn newest(&self) -> Result<Option<SavedState>, StateError> {
        for name in self.names(FINISHED)?.iter().rev() {
            let path = self.folder.join(name);
            match SavedState::read(&path) {
                Ok(state) => return Ok(Some(state)),
                Err(problem) => tracing::warn!("{}: skipped, since it is damaged: {problem}", path.display()),
            }
        }
        Ok(None)
    }

    /// Saves a state, and forgets all but the last two.
    ///
    /// # Errors
    /// [`StateError::Io`] or [`StateError::Write`], most likely for lack of space; earlier states stay.
    pub fn save(
        &self,
        done: Done,
        run: &RunIdentity,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<(), StateError> {
        let name = format!("{FINISHED}{:08}", done.steps);
        let (finished, unfinished) =
            (self.folder.join(&name), self.folder.join(format!("{UNFINISHED}{name}")));
        remove(&unfinished)?;
        fs::create_dir(&unfinished).map_err(io_error(&unfinished, "creating the folder"))?;
        write_weights(&unfinished, tensors, u64::MAX)?;
        let tensors_sha256 = FileDigest::of(&unfinished.join(TENSORS))?.sha256;
        let description = unfinished.join(DESCRIPTION);
        write_json(&description, &json!({"done": done, "tensors_sha256": tensors_sha256, "run": run}))?;
        sync(&description)?;
        sync(&unfinished)?;
        // There only if it was damaged and skipped.
        self.forget(&name)?;
        fs::rename(&unfinished, &finished).map_err(io_error(&finished, "renaming the finished folder"))?;
        sync(&self.folder)?;
        let names = self.names(FINISHED)?;
        let older = names.iter().rev().filter(|other| **other < name).skip(KEPT - 1);
        // Later ones were damaged, or this one would not have been reached again.
        let later = names.iter().filter(|other| **other > name);
        older.chain(later).try_for_each(|other| self.forget(other))
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

    /// Names in the folder of states that begin with `prefix`; those of states in the order of their steps.
    fn names(&self, prefix: &str) -> Result<BTreeSet<String>, StateError> {
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
        };
        let entries = fs::read_dir(&self.folder).map_err(io_error(&self.folder, "listing"))?;
        let names: io::Result<BTreeSet<String>> = entries.map(name).collect();
        let mut names = names.map_err(io_error(&self.folder, "listing"))?;
        names.retain(|name| name.starts_with(prefix));
        Ok(names)
    }
}

impl SavedState {
    /// What is in `path`, or what is wrong with it.
    fn read(path: &Path) -> Result<Self, String> {
        let described =
            fs::read(path.join(DESCRIPTION)).map_err(|error| format!("{DESCRIPTION}: {error}"))?;
        let Description { done, tensors_sha256, run } =
            serde_json::from_slice(&described).map_err(|error| format!("{DESCRIPTION}: {error}"))?;
        let tensors = path.join(TENSORS);
        let digest = FileDigest::of(&tensors).map_err(|error| error.to_string())?;
        if digest.sha256 != tensors_sha256 {
            return Err(format!("{TENSORS}: its SHA-256 is not the one that was saved"));
        }
        let tensors = map_safetensors(&tensors).map_err(|error| error.to_string())?;
        Ok(Self { path: path.to_owned(), done, run, tensors })
    }

    /// How far the run was.
    pub fn done(&self) -> Done {
        self.done
    }

    /// Checks that a run of this identity saved it.
    ///
    /// # Errors
    /// [`StateError::Different`] naming what isn't as it was.
    pub fn check(&self, run: &RunIdentity) -> Result<(), StateError> {
        let differences = differences(&self.run, run);
        match differences.is_empty() {
            true => Ok(()),
            false => {
                Err(StateError::Different { path: self.path.clone(), differences: differences.join(", ") })
            }
        }
    }

    /// Copies the saved values into `tensors`, in place.
    ///
    /// # Errors
    /// [`StateError::Tensors`] where names, shapes or types are others.
    pub fn restore(&self, tensors: &BTreeMap<String, Tensor>) -> Result<(), StateError> {
        let mismatch = |problem| StateError::Tensors { path: self.path.clone(), problem };
        if let Some(name) = self.tensors.keys().find(|name| !tensors.contains_key(*name)) {
            return Err(mismatch(format!("`{name}` has no place")));
        }
        let _no_grad = tch::no_grad_guard();
        for (name, tensor) in tensors {
            let saved = self.tensors.get(name).ok_or_else(|| mismatch(format!("`{name}` is missing")))?;
            let (found, expected) = ((saved.kind(), saved.size()), (tensor.kind(), tensor.size()));
            if found != expected {
                return Err(mismatch(format!("`{name}` is {found:?}, not {expected:?}")));
            }
            tensor.shallow_clone().f_copy_(saved).map_err(|error| {
                mismatch(format!("`{name}`: {}", error.to_string().lines().next().unwrap_or_default()))
            })?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;
    use tempfile::TempDir;

    fn run(learning_rate: f64) -> RunIdentity {
        Map::from_iter([("learning_rate".into(), json!(learning_rate)), ("data_sha256".into(), json!("0a"))])
    }

    fn tensors(value: f32) -> BTreeMap<String, Tensor> {
        let tensor = |kind, size: &[i64]| Tensor::full(size, f64::from(value), (kind, tch::Device::Cpu));
        BTreeMap::from([
            ("weights.a".into(), tensor(Kind::Float, &[2, 3])),
            ("weights.b".into(), tensor(Kind::BFloat16, &[3])),
            ("exp_avg.a".into(), tensor(Kind::Float, &[])),
        ])
    }

    fn output() -> (TempDir, States) {
        let output = tempfile::tempdir().unwrap();
        let states = States::open(output.path()).unwrap();
        (output, states)
    }

    fn save(states: &States, steps: u64) {
        states.save(Done { steps, skipped: 3 }, &run(0.1), &tensors(steps as f32)).unwrap();
    }

    /// The steps and the value of every tensor of the newest state.
    fn newest(states: &States) -> Option<(u64, f64)> {
        let state = states.newest().unwrap()?;
        state.check(&run(0.1)).unwrap();
        let restored = tensors(-1.0);
        state.restore(&restored).unwrap();
        let values: Vec<f64> =
            restored.values().flat_map(|tensor| Vec::<f64>::try_from(tensor.view([-1])).unwrap()).collect();
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        assert_eq!(state.done().skipped, 3);
        Some((state.done().steps, values[0]))
    }

    #[test]
    fn the_last_two_states_are_kept() {
        let (output, states) = output();
        assert!(newest(&states).is_none() && !States::any(output.path()));
        for steps in [5, 10, 15, 64] {
            save(&states, steps);
            assert_eq!(newest(&states), Some((steps, steps as f64)));
        }
        assert!(States::any(output.path()));
        let names = States::open(output.path()).unwrap().names("").unwrap();
        assert!(names.into_iter().eq(["step-00000015", "step-00000064"].map(String::from)));
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
        type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
        let damages: [Damage<'_>; 5] =
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
        // As a kill leaves them: written or removed in part.
        let folder = output.path().join("state");
        for name in [".unfinished-step-00000010", ".unfinished-old-step-00000003"] {
            fs::create_dir(folder.join(name)).unwrap();
            fs::write(folder.join(name).join(TENSORS), [0; 10]).unwrap();
        }
        let states = States::open(output.path()).unwrap();
        assert_eq!(newest(&states), Some((5, 5.0)));
        assert!(states.names(UNFINISHED).unwrap().is_empty());
    }

    #[test]
    fn a_state_of_another_run_is_refused_by_what_differs() {
        let (_output, states) = output();
        save(&states, 5);
        let state = states.newest().unwrap().unwrap();
        let message = state.check(&run(0.2)).unwrap_err().to_string();
        assert!(message.contains("learning_rate 0.1 instead of 0.2"), "{message}");
        assert!(!message.contains("data_sha256"), "{message}");

        let mut fewer = run(0.1);
        fewer.remove("data_sha256");
        let message = state.check(&fewer).unwrap_err().to_string();
        assert!(message.contains("data_sha256 \"0a\" instead of none"), "{message}");

        let mut other = tensors(0.0);
        other.insert("weights.a".into(), Tensor::zeros([2, 4], (Kind::Float, tch::Device::Cpu)));
        let message = state.restore(&other).unwrap_err().to_string();
        assert!(message.contains("`weights.a`") && message.contains("[2, 4]"), "{message}");
        let mut other = tensors(0.0);
        other.remove("weights.b");
        assert!(state.restore(&other).unwrap_err().to_string().contains("`weights.b` has no place"));
    }

    #[test]
    fn restoring_writes_into_tensors_that_have_gradients() {
        let (_output, states) = output();
        save(&states, 5);
        let trained = tensors(0.0);
        let weight = trained["weights.a"].set_requires_grad(true);
        states.newest().unwrap().unwrap().restore(&trained).unwrap();
        assert_eq!(weight.double_value(&[1, 2]), 5.0);
        assert!(weight.requires_grad());
    }
}
