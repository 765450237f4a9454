//! The output folder: under another name until it is whole.

use super::{
    error::TrainError,
    state::{STATE_FOLDER, StateError, States},
    step_metrics::METRICS_FILE,
};
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

const LOCK_FILE: &str = "lock";

/// A folder that is being written beside the place where it will be, held by one run at a time.
///
/// It outlives a run that ends too early if that has saved states.
pub struct OutputFolder {
    to: PathBuf,
    partial: PathBuf,
    _lock: File,
}

impl OutputFolder {
    /// Begins `.NAME.partial` beside `to`. Of what an earlier run may have left in it, only states and
    /// metrics stay, and only for a run that is to `resume` from them.
    ///
    /// # Errors
    /// [`TrainError`] when `to` exists, when another run is writing it, when states are there that
    /// nobody asked to go on from, or when the folder can't be made.
    pub fn create(to: &Path, resume: bool) -> Result<Self, TrainError> {
        if to.exists() {
            return Err(TrainError::OutputExists(to.to_owned()));
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(to.file_name().unwrap_or_default());
        name.push(".partial");
        let partial = to.with_file_name(name);
        fs::create_dir_all(&partial).map_err(io_error(&partial, "creating the folder"))?;
        let path = partial.join(LOCK_FILE);
        let lock = File::create(&path).map_err(io_error(&path, "creating"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TrainError::OutputBusy(to.to_owned())),
            Err(TryLockError::Error(reason)) => return Err(io_error(&path, "locking")(reason)),
        }
        let folder = Self { to: to.to_owned(), partial, _lock: lock };
        if !resume && States::any(&folder.partial) {
            return Err(StateError::Unfinished { path: folder.partial.join(STATE_FOLDER) }.into());
        }
        folder.clear(if resume { &[LOCK_FILE, STATE_FOLDER, METRICS_FILE] } else { &[LOCK_FILE] })?;
        Ok(folder)
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn finish(self) -> Result<(), TrainError> {
        let lock = self.partial.join(LOCK_FILE);
        fs::remove_file(&lock).map_err(io_error(&lock, "removing"))?;
        fs::rename(&self.partial, &self.to).map_err(io_error(&self.to, "renaming the finished folder"))?;
        let parent = self.to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or_else(|| Path::new("."));
        // The name lasts once the folder that holds it is on disk.
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(io_error(parent, "writing"))?;
        remove_states(&self.to)
    }

    fn clear(&self, kept: &[&str]) -> Result<(), TrainError> {
        let failed = |source| io_error(&self.partial, "clearing the folder")(source);
        for entry in fs::read_dir(&self.partial).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.file_name().is_some_and(|name| kept.iter().any(|kept| name == *kept)) {
                continue;
            }
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(io_error(&path, "removing"))?;
        }
        Ok(())
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        if !States::any(&self.partial) {
            // After a rename there is nothing left to remove.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Whether a run has finished the folder `to`. States that it could no longer remove are removed.
///
/// # Errors
/// [`TrainError::Io`].
pub fn is_finished(to: &Path) -> Result<bool, TrainError> {
    let finished = to.join(METRICS_FILE).exists();
    if finished {
        remove_states(to)?;
    }
    Ok(finished)
}

fn remove_states(folder: &Path) -> Result<(), TrainError> {
    let states = folder.join(STATE_FOLDER);
    match fs::remove_dir_all(&states) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error(&states, "removing the states of a finished run")(error))
        }
        _ => Ok(()),
    }
}

/// For an error of the operating system.
pub(super) fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> TrainError {
    let path = path.to_owned();
    move |reason| TrainError::Io { path, doing, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::state::Done;
    use std::collections::BTreeMap;
    use tch::Tensor;

    fn save_state(output: &OutputFolder) {
        let tensors = BTreeMap::from([("weights.a".to_owned(), Tensor::from_slice(&[1.0_f32]))]);
        States::open(output.path()).unwrap().save(Done::default(), &Default::default(), &tensors).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_whole_and_once() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("new/folder");
        let output = OutputFolder::create(&to, false).unwrap();
        fs::write(output.path().join(METRICS_FILE), "content").unwrap();
        save_state(&output);
        assert!(matches!(OutputFolder::create(&to, true), Err(TrainError::OutputBusy(_))));
        assert!(!to.exists() && !is_finished(&to).unwrap());
        output.finish().unwrap();
        assert_eq!(names(&to), [METRICS_FILE]);
        assert!(matches!(OutputFolder::create(&to, false), Err(TrainError::OutputExists(_))));
        assert_eq!(names(to.parent().unwrap()), ["folder"]);

        // As a kill leaves it that comes between giving the name and removing the states.
        fs::create_dir_all(to.join(STATE_FOLDER).join("step-00000001")).unwrap();
        assert!(is_finished(&to).unwrap());
        assert_eq!(names(&to), [METRICS_FILE]);
    }

    #[test]
    fn what_is_not_finished_is_removed() {
        let place = tempfile::tempdir().unwrap();
        drop(OutputFolder::create(&place.path().join("folder"), false).unwrap());
        assert!(names(place.path()).is_empty());
    }

    #[test]
    fn states_of_an_unfinished_run_stay_until_someone_decides() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("folder");
        let output = OutputFolder::create(&to, true).unwrap();
        for name in [METRICS_FILE, "config.json"] {
            fs::write(output.path().join(name), "content").unwrap();
        }
        save_state(&output);
        drop(output);

        let error = OutputFolder::create(&to, false).err().unwrap().to_string();
        assert!(error.contains(".folder.partial/state") && error.contains("--resume"), "{error}");
        let output = OutputFolder::create(&to, true).unwrap();
        assert_eq!(names(output.path()), [LOCK_FILE, METRICS_FILE, STATE_FOLDER]);
    }
}
