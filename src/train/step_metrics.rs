//! `metrics.jsonl`: how each step found the network.

use super::{error::TrainError, loss::Terms, output::io_error};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The file's name in the output folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// One line: the losses before the step, averaged over its batches, and the rate that it was taken with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: u64,
    /// `text` and the other terms, each times its weight.
    pub loss: f64,
    /// This and the following unweighted; null where no sample had what the term is computed with.
    pub l1: Option<f64>,
    pub ce: Option<f64>,
    pub emd: Option<f64>,
    pub text: f64,
    pub learning_rate: f64,
}

impl StepMetrics {
    /// From the terms of the step's batches. A term that some of them lack is averaged over the others.
    pub fn new(step: u64, learning_rate: f64, batches: &[Terms]) -> Self {
        let mean = |of: &dyn Fn(&Terms) -> Option<f64>| {
            let values: Vec<f64> = batches.iter().filter_map(of).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        Self {
            step,
            loss: mean(&|terms| Some(terms.loss)).unwrap_or(0.0),
            l1: mean(&|terms| terms.l1),
            ce: mean(&|terms| terms.ce),
            emd: mean(&|terms| terms.emd),
            text: mean(&|terms| Some(terms.text)).unwrap_or(0.0),
            learning_rate,
        }
    }
}

/// The file, which grows by a line a step.
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// The file in `folder` of a run that has done `done` steps. Lines of later steps, which will be
    /// taken again, are dropped, and so is one that was cut off.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(folder: &Path, done: u64) -> Result<Self, TrainError> {
        let path = folder.join(METRICS_FILE);
        let before = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            before => before.map_err(io_error(&path, "reading"))?,
        };
        // Replaced by renaming, so that no line is lost by a kill at this moment.
        let replacement = folder.join(format!(".{METRICS_FILE}.unfinished"));
        let mut file = File::create(&replacement).map_err(io_error(&replacement, "creating"))?;
        let kept: String = before.split_inclusive('\n').filter(|line| is_of_steps(line, done)).collect();
        file.write_all(kept.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(io_error(&replacement, "writing"))?;
        fs::rename(&replacement, &path).map_err(io_error(&path, "replacing"))?;
        Ok(Self { path, file })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        let line =
            serde_json::to_string(metrics).map_err(|error| io_error(&self.path, "writing")(error.into()))?;
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(io_error(&self.path, "writing"))
    }

    /// Makes the lines last.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_all().map_err(io_error(&self.path, "writing"))
    }
}

/// Whether a line is whole, and of one of the first `done` steps.
fn is_of_steps(line: &str, done: u64) -> bool {
    let metrics = serde_json::from_str::<StepMetrics>(line);
    line.ends_with('\n') && metrics.is_ok_and(|metrics| metrics.step <= done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(file: &mut MetricsFile, steps: std::ops::RangeInclusive<u64>) {
        let terms = Terms { loss: 2.0, text: 1.0, l1: Some(0.5), ce: None, emd: None };
        steps.for_each(|step| file.append(&StepMetrics::new(step, 1e-3, &[terms])).unwrap());
    }

    fn steps(folder: &Path) -> Vec<u64> {
        let text = fs::read_to_string(folder.join(METRICS_FILE)).unwrap();
        text.lines().map(|line| serde_json::from_str::<StepMetrics>(line).unwrap().step).collect()
    }

    #[test]
    fn a_run_that_goes_on_has_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        append(&mut MetricsFile::open(folder.path(), 0).unwrap(), 1..=7);
        let path = folder.path().join(METRICS_FILE);
        let cut_off = [&fs::read(&path).unwrap()[..], b"{\"step\":3"].concat();
        fs::write(&path, cut_off).unwrap();

        let mut file = MetricsFile::open(folder.path(), 5).unwrap();
        assert_eq!(steps(folder.path()), [1, 2, 3, 4, 5]);
        append(&mut file, 6..=8);
        file.sync().unwrap();
        assert_eq!(steps(folder.path()), [1, 2, 3, 4, 5, 6, 7, 8]);

        drop(MetricsFile::open(folder.path(), 0).unwrap());
        assert!(steps(folder.path()).is_empty());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_line_has_its_keys_in_order_and_averages_what_there_is() {
        let batches = [
            Terms { loss: 2.0, text: 1.0, l1: Some(0.5), ce: None, emd: None },
            Terms { loss: 4.0, text: 2.0, l1: None, ce: None, emd: None },
        ];
        let line = serde_json::to_string(&StepMetrics::new(3, 1e-3, &batches)).unwrap();
        let expected =
            r#"{"step":3,"loss":3.0,"l1":0.5,"ce":null,"emd":null,"text":1.5,"learning_rate":0.001}"#;
        assert_eq!(line, expected);
    }
}
