//! Temporary folders of the embedded servers, with no litter after a crash.

use crate::dev::DevError;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const PREFIX: &str = "roc4mllm-dev-";
const STALE_AFTER: Duration = Duration::from_secs(3600);

/// A folder that is removed when dropped. Folders of processes that were killed before they could
/// do so are removed here.
pub fn folder(part: &'static str) -> Result<TempDir, DevError> {
    sweep(&std::env::temp_dir());
    let prefix = format!("{PREFIX}{}-{part}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().map_err(|error| DevError::io(part, error))
}

/// Removes folders whose owner is gone. The age guards against a process of another container
/// that shares the folder but not the process ids.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(owner) else { continue };
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        let stale = age.is_some_and(|age| age > STALE_AFTER);
        if stale && !Path::new("/proc").join(owner.to_string()).exists() {
            // Somebody else may be sweeping too.
            let _already_gone = fs::remove_dir_all(entry.path());
        }
    }
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stale_folders_of_dead_processes_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - 2 * STALE_AFTER;
        // Process ids end at 2^22 on Linux, so this one belongs to nobody.
        let dead = 1_u32 << 30;
        let make = |name: String, aged: bool| {
            let path = parent.path().join(name);
            fs::create_dir(&path).unwrap();
            if aged {
                fs::File::open(&path).unwrap().set_modified(old).unwrap();
            }
            path
        };
        let swept = make(format!("{PREFIX}{dead}-postgres-a"), true);
        let young = make(format!("{PREFIX}{dead}-postgres-b"), false);
        let alive = make(format!("{PREFIX}{}-postgres-c", std::process::id()), true);
        let foreign = make("another-program-1-x".to_owned(), true);
        sweep(parent.path());
        assert!(!swept.exists());
        assert!(young.exists() && alive.exists() && foreign.exists());
    }
}
