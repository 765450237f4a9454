//! `metrics.jsonl`: a line for each step of a run, however often it was stopped.

use serde::Serialize;
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The name of the file in an output folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// A log of metrics that can't be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {doing} failed ({source}); check the path, its permissions and the disk", .path.display())]
pub struct MetricsError {
    path: PathBuf,
    doing: &'static str,
    source: io::Error,
}

/// The growing file.
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the log in `output` for a run that has done `done` steps: lines of later steps, which
    /// will be taken again, and a line that a kill cut off are dropped.
    ///
    /// # Errors
    /// [`MetricsError`] when it can't be read or written.
    pub fn open(output: &Path, done: u64) -> Result<Self, MetricsError> {
        let path = output.join(METRICS_FILE);
        let failed = |doing| {
            let path = path.clone();
            move |source| MetricsError { path, doing, source }
        };
        let before = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            before => before.map_err(failed("reading"))?,
        };
        // Replaced by renaming, so that a kill right now takes no line that was there.
        let replacement = output.join(format!(".{METRICS_FILE}.unfinished"));
        let mut file = File::create(&replacement).map_err(failed("creating its replacement"))?;
        let kept: String = before.split_inclusive('\n').filter(|line| belongs(line, done)).collect();
        file.write_all(kept.as_bytes()).and_then(|()| file.sync_all()).map_err(failed("writing"))?;
        fs::rename(&replacement, &path).map_err(failed("replacing"))?;
        Ok(Self { path, file })
    }

    /// Appends one step's line.
    ///
    /// # Errors
    /// [`MetricsError`], most likely for lack of space.
    pub fn write(&mut self, step: &impl Serialize) -> Result<(), MetricsError> {
        let line = serde_json::to_string(step).map_err(io::Error::from);
        // One call for the whole line: a reader that follows the file sees no halves.
        line.and_then(|line| self.file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|source| MetricsError { path: self.path.clone(), doing: "writing", source })
    }

    /// Waits until all lines are on the disk, as they must be before a state that follows them is.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn sync(&self) -> Result<(), MetricsError> {
        self.file.sync_all().map_err(|source| MetricsError {
            path: self.path.clone(),
            doing: "syncing to disk",
            source,
        })
    }
}

/// Whether a line is whole and of one of the first `done` steps.
fn belongs(line: &str, done: u64) -> bool {
    let step = || serde_json::from_str::<Value>(line).ok()?.get("step")?.as_u64();
    line.ends_with('\n') && step().is_some_and(|step| step <= done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn write(log: &mut MetricsLog, steps: std::ops::RangeInclusive<u64>) {
        steps.for_each(|step| log.write(&json!({"step": step, "loss": 0.5})).unwrap());
    }

    fn steps(output: &Path) -> Vec<u64> {
        let text = fs::read_to_string(output.join(METRICS_FILE)).unwrap();
        let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap();
        text.lines().map(line).collect()
    }

    #[test]
    fn a_run_that_goes_on_has_each_step_once() {
        let output = tempfile::tempdir().unwrap();
        write(&mut MetricsLog::open(output.path(), 0).unwrap(), 1..=7);
        let path = output.path().join(METRICS_FILE);
        let cut = [fs::read(&path).unwrap(), b"{\"step\":3".to_vec()].concat();
        fs::write(&path, cut).unwrap();

        let mut log = MetricsLog::open(output.path(), 5).unwrap();
        assert_eq!(steps(output.path()), [1, 2, 3, 4, 5]);
        write(&mut log, 6..=8);
        log.sync().unwrap();
        assert_eq!(steps(output.path()), [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_run_from_the_start_forgets_an_older_one() {
        let output = tempfile::tempdir().unwrap();
        write(&mut MetricsLog::open(output.path(), 0).unwrap(), 1..=3);
        drop(MetricsLog::open(output.path(), 0).unwrap());
        assert!(steps(output.path()).is_empty());
        assert_eq!(fs::read_dir(output.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let message = MetricsLog::open(Path::new("/no/such/folder"), 0).err().unwrap().to_string();
        assert!(message.contains("/no/such/folder/metrics.jsonl"), "{message}");
    }
}
