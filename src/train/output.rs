//! The output folder: under another name until it is whole.

use super::error::TrainError;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

const LOCK_FILE: &str = "lock";

/// A folder that is being written beside the place where it will be, held by one run at a time.
pub struct OutputFolder {
    to: PathBuf,
    partial: PathBuf,
    _lock: File,
}

impl OutputFolder {
    /// Begins `.NAME.partial` beside `to`, without what an earlier run may have left in it.
    ///
    /// # Errors
    /// [`TrainError`] when `to` exists, when another run is writing it, or when the folder can't be made.
    pub fn create(to: &Path) -> Result<Self, TrainError> {
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
        folder.clear()?;
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
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(io_error(parent, "writing"))
    }

    fn clear(&self) -> Result<(), TrainError> {
        let failed = |source| io_error(&self.partial, "clearing the folder")(source);
        for entry in fs::read_dir(&self.partial).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.file_name().is_some_and(|name| name == LOCK_FILE) {
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
        // After a rename there is nothing left to remove.
        let _ = fs::remove_dir_all(&self.partial);
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

    #[test]
    fn a_folder_appears_whole_and_once() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("new/folder");
        let output = OutputFolder::create(&to).unwrap();
        fs::write(output.path().join("file"), "content").unwrap();
        assert!(matches!(OutputFolder::create(&to), Err(TrainError::OutputBusy(_))));
        assert!(!to.exists());
        output.finish().unwrap();
        let names: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        assert!(matches!(OutputFolder::create(&to), Err(TrainError::OutputExists(_))));
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_finished_is_removed() {
        let place = tempfile::tempdir().unwrap();
        drop(OutputFolder::create(&place.path().join("folder")).unwrap());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
