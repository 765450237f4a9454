//! What loading a checkpoint costs in memory: the peak of a process that does nothing else, beside
//! the checkpoint's size.

mod support {
    pub mod results;
    #[path = "../../tests/support/synthetic_checkpoint.rs"]
    pub mod synthetic_checkpoint;
}

use std::{fs, process::Command};
use support::{
    results::{Entry, record},
    synthetic_checkpoint,
};

const BYTES: u64 = 2 << 30;
const RUNS: usize = 3;

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    synthetic_checkpoint::write(folder.path(), BYTES);
    let on_disk = fs::metadata(folder.path().join("model.safetensors")).expect("what was written").len();
    let mut peaks: Vec<f64> = (0..RUNS).map(|_| peak_of_loading(folder.path())).collect();
    peaks.sort_by(f64::total_cmp);
    let (peak, on_disk) = (peaks[RUNS / 2] / 1e9, on_disk as f64 / 1e9);
    println!(
        "loading {on_disk:.3} GB: peak {peak:.3} GB resident, {:.3} of it (median of {RUNS})",
        peak / on_disk
    );
    record(&[Entry {
        name: "load_memory_cost",
        value: peak,
        unit: "GB",
        against: "checkpoint on disk",
        against_value: on_disk,
        ratio: peak / on_disk,
        runs: RUNS,
    }]);
}

/// Bytes, as `checkpoint inspect` says them of itself.
fn peak_of_loading(folder: &std::path::Path) -> f64 {
    let output = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
        .args(["checkpoint", "inspect"])
        .arg(folder)
        .output()
        .expect("the binary starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (_, after) = text.split_once("loading       peak ").unwrap_or_else(|| panic!("no peak in:\n{text}"));
    after.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number of bytes")
}
