//! Downloaded versions on this machine: each whole or not there, shared by every process.
//!
//! `ENTRY/` is a version, `ENTRY.partial/` one that is being downloaded, and `ENTRY.lock` says who may
//! do what: a process that uses a version holds the lock shared, one that changes it holds it alone.
//! Locks end with their process, however it ends.

use super::RegistryError;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

const PARTIAL: &str = "partial";
const LOCK: &str = "lock";
/// How long to wait for a version that another process changes before looking again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// What is being removed is moved out of its name first.
const REMOVED: &str = "removed";

/// The folder of downloaded versions.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    root: PathBuf,
    keep: usize,
}

/// A version's place, in use by this process for as long as this lives: nobody removes it.
#[derive(Debug)]
pub(super) struct Lease {
    pub folder: PathBuf,
    _shared: File,
}

/// A version's place, for this process alone.
#[derive(Debug)]
pub(super) struct Claim {
    root: PathBuf,
    entry: String,
    _alone: File,
}

impl Cache {
    /// Makes the folder where it is missing.
    pub fn open(root: PathBuf, keep: usize) -> Result<Self, RegistryError> {
        fs::create_dir_all(&root).map_err(RegistryError::cache(&root, "making the folder"))?;
        // A relative path would mean another place to a process started elsewhere.
        let root = root.canonicalize().map_err(RegistryError::cache(&root, "looking at the folder"))?;
        Ok(Self { root, keep: keep.max(1) })
    }

    /// The version, if it is here whole. Waits while another process changes it, with a word about that.
    pub fn lease(&self, entry: &str) -> Result<Option<Lease>, RegistryError> {
        let lock = self.lock_file(entry)?;
        let locked = match lock.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                say_waiting(entry);
                lock.lock_shared()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        locked.map_err(RegistryError::cache(&self.path(entry, LOCK), "locking"))?;
        let folder = self.root.join(entry);
        if !folder.is_dir() {
            return Ok(None);
        }
        // What was used last is removed last.
        if let Err(error) = lock.set_modified(SystemTime::now()) {
            tracing::debug!(%error, entry, "the time of its use is not noted");
        }
        Ok(Some(Lease { folder, _shared: lock }))
    }

    /// The version's place for this process alone; `None` once the version is here whole. Waits for whoever is
    /// changing it, with a word about that.
    ///
    /// It asks now and then rather than queueing for the lock: who has brought the version uses it from then on,
    /// perhaps for ever, and would be waited for as long.
    pub fn claim_unless_whole(&self, entry: &str) -> Result<Option<Claim>, RegistryError> {
        let mut is_waiting = false;
        loop {
            if let Some(claim) = self.try_claim(entry)? {
                return Ok((!claim.folder().is_dir()).then_some(claim));
            }
            if self.root.join(entry).is_dir() {
                return Ok(None);
            }
            if !is_waiting {
                say_waiting(entry);
                is_waiting = true;
            }
            thread::sleep(ASK_AGAIN);
        }
    }

    /// The version's place for this process alone; `None` if somebody has it.
    pub fn try_claim(&self, entry: &str) -> Result<Option<Claim>, RegistryError> {
        let lock = self.lock_file(entry)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Claim { root: self.root.clone(), entry: entry.to_owned(), _alone: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(RegistryError::cache(&self.path(entry, LOCK), "locking")(error))
            }
        }
    }

    /// Removes versions, whole or partial, until `entry` and the last used ones are as many as are to be
    /// kept. Those in use stay, whatever their number.
    pub fn make_room(&self, entry: &str) -> Result<(), RegistryError> {
        let mut others: Vec<(SystemTime, String)> = self
            .entries()?
            .into_iter()
            .filter(|(other, _)| other != entry)
            .map(|(other, used)| (used, other))
            .collect();
        others.sort();
        let surplus = (others.len() + 1).saturating_sub(self.keep);
        let mut removed = 0;
        for (_, other) in others {
            if removed == surplus {
                break;
            }
            if let Some(claim) = self.try_claim(&other)? {
                claim.remove()?;
                claim.remove_partial()?;
                tracing::info!(entry = other, "removed a version that was not used lately");
                removed += 1;
            }
        }
        Ok(())
    }

    /// Every version that takes up room, with the time it was used last.
    fn entries(&self) -> Result<BTreeMap<String, SystemTime>, RegistryError> {
        let failed = || RegistryError::cache(&self.root, "listing the folder");
        let mut entries = BTreeMap::new();
        for found in fs::read_dir(&self.root).map_err(failed())? {
            let path = found.map_err(failed())?.path();
            let ending = path.extension().and_then(OsStr::to_str);
            let Some(entry) = path.file_stem().and_then(OsStr::to_str) else { continue };
            match ending {
                Some(REMOVED) => remove_folder(&path)?,
                None | Some(PARTIAL) if path.is_dir() && self.path(entry, LOCK).exists() => {
                    let lock = fs::metadata(self.path(entry, LOCK)).and_then(|metadata| metadata.modified());
                    entries.insert(entry.to_owned(), lock.unwrap_or(SystemTime::UNIX_EPOCH));
                }
                // Not ours.
                _ => {}
            }
        }
        Ok(entries)
    }

    /// Never removed: another process may be about to lock it.
    fn lock_file(&self, entry: &str) -> Result<File, RegistryError> {
        let path = self.path(entry, LOCK);
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        opened.map_err(RegistryError::cache(&path, "opening"))
    }

    fn path(&self, entry: &str, kind: &str) -> PathBuf {
        self.root.join(format!("{entry}.{kind}"))
    }
}

impl Claim {
    /// Where the version is once it is whole.
    pub fn folder(&self) -> PathBuf {
        self.root.join(&self.entry)
    }

    /// Where the version is put together; what an earlier download left is still there.
    pub fn partial(&self) -> Result<PathBuf, RegistryError> {
        let path = self.root.join(format!("{}.{PARTIAL}", self.entry));
        fs::create_dir_all(&path).map_err(RegistryError::cache(&path, "making the folder"))?;
        Ok(path)
    }

    /// Makes the partial version the whole one, in one step.
    pub fn complete(&self) -> Result<(), RegistryError> {
        let (partial, folder) = (self.partial()?, self.folder());
        fs::rename(&partial, &folder).map_err(RegistryError::cache(&folder, "moving the download"))?;
        let synced = File::open(&self.root).and_then(|root| root.sync_all());
        synced.map_err(RegistryError::cache(&self.root, "writing the folder"))
    }

    /// Removes the whole version.
    pub fn remove(&self) -> Result<(), RegistryError> {
        let removed = self.root.join(format!("{}.{REMOVED}", self.entry));
        remove_folder(&removed)?;
        match fs::rename(self.folder(), &removed) {
            Ok(()) => remove_folder(&removed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(RegistryError::cache(&self.folder(), "removing it")(error)),
        }
    }

    fn remove_partial(&self) -> Result<(), RegistryError> {
        remove_folder(&self.root.join(format!("{}.{PARTIAL}", self.entry)))
    }
}

fn remove_folder(path: &Path) -> Result<(), RegistryError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(RegistryError::cache(path, "removing it")(error)),
    }
}

fn say_waiting(entry: &str) {
    tracing::info!(entry, "another process is busy with this version; waiting for it");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(keep: usize) -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path().join("a/b"), keep).unwrap();
        (folder, cache)
    }

    /// A version last used `ago` seconds ago.
    fn add(cache: &Cache, entry: &str, ago: u64) {
        let claim = cache.claim_unless_whole(entry).unwrap().unwrap();
        fs::write(claim.partial().unwrap().join("file"), entry).unwrap();
        claim.complete().unwrap();
        let used = SystemTime::now() - Duration::from_secs(ago);
        cache.lock_file(entry).unwrap().set_modified(used).unwrap();
    }

    fn is_there(cache: &Cache, entry: &str) -> bool {
        cache.root.join(entry).join("file").exists()
    }

    #[test]
    fn a_version_is_whole_or_not_there() {
        let (_folder, cache) = cache(2);
        assert!(cache.lease("one").unwrap().is_none());
        let claim = cache.claim_unless_whole("one").unwrap().unwrap();
        fs::write(claim.partial().unwrap().join("file"), "half").unwrap();
        drop(claim);
        assert!(cache.lease("one").unwrap().is_none());
        add(&cache, "one", 0);
        let lease = cache.lease("one").unwrap().unwrap();
        assert_eq!(fs::read_to_string(lease.folder.join("file")).unwrap(), "one");
    }

    #[test]
    fn the_versions_used_last_are_kept_and_those_in_use() {
        let (_folder, cache) = cache(3);
        for (ago, entry) in ["four", "three", "two", "one"].into_iter().rev().enumerate() {
            add(&cache, entry, 10 * (ago as u64 + 1));
        }
        fs::create_dir(cache.root.join("somebody else's")).unwrap();
        cache.make_room("new").unwrap();
        let there = ["one", "two", "three", "four"].map(|entry| is_there(&cache, entry));
        assert_eq!(there, [true, true, false, false], "two, and the new one to come");

        add(&cache, "old", 1000);
        let in_use = cache.lease("old").unwrap().unwrap();
        cache.lock_file("old").unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        cache.make_room("new").unwrap();
        assert_eq!(["old", "one", "two"].map(|entry| is_there(&cache, entry)), [true, true, false]);
        drop(in_use);
        cache.make_room("new").unwrap();
        cache.make_room("newer").unwrap();
        assert!(is_there(&cache, "one"), "there are no more than three");
        add(&cache, "new", 0);
        cache.make_room("newer").unwrap();
        assert_eq!(["old", "one", "new"].map(|entry| is_there(&cache, entry)), [false, true, true]);
        assert!(cache.root.join("somebody else's").exists());
    }

    #[test]
    fn nobody_changes_what_another_uses() {
        let (_folder, cache) = cache(1);
        add(&cache, "one", 0);
        let (first, second) = (cache.lease("one").unwrap().unwrap(), cache.lease("one").unwrap().unwrap());
        assert!(cache.try_claim("one").unwrap().is_none());
        drop(first);
        assert!(cache.try_claim("one").unwrap().is_none());
        drop(second);
        assert!(cache.try_claim("one").unwrap().is_some());
    }

    /// Who had to wait for another's download must not wait for the end of its use as well.
    #[test]
    fn a_version_that_another_has_brought_is_not_waited_for() {
        let (_folder, cache) = cache(1);
        let claim = cache.claim_unless_whole("one").unwrap().unwrap();
        let waiting = {
            let cache = cache.clone();
            thread::spawn(move || cache.claim_unless_whole("one").unwrap().is_none())
        };
        fs::write(claim.partial().unwrap().join("file"), "one").unwrap();
        claim.complete().unwrap();
        drop(claim);
        let _in_use = cache.lease("one").unwrap().unwrap();
        assert!(waiting.join().unwrap());
        assert!(cache.claim_unless_whole("one").unwrap().is_none());
        assert!(cache.lease("one").unwrap().is_some());
    }

    #[test]
    fn what_a_killed_process_left_half_removed_goes_next_time() {
        let (_folder, cache) = cache(1);
        fs::create_dir(cache.root.join("one.removed")).unwrap();
        fs::write(cache.root.join("one.removed/file"), "x").unwrap();
        cache.make_room("new").unwrap();
        assert!(!cache.root.join("one.removed").exists());
        add(&cache, "one", 0);
        fs::create_dir(cache.root.join("one.removed")).unwrap();
        cache.try_claim("one").unwrap().unwrap().remove().unwrap();
        assert!(cache.lease("one").unwrap().is_none());
    }
}
