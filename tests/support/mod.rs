//! What the tests of the whole worker share.

pub mod envelopes;
pub mod outputs;
pub mod stack;

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What `roc4mllm score` says of one file.
#[derive(Clone, Debug)]
pub struct Expected {
    pub path: PathBuf,
    pub status: String,
    pub score: Option<f64>,
    pub code: Option<String>,
}

/// An object in the bucket and what scoring it must give.
#[derive(Clone, Debug)]
pub struct Uploaded {
    pub upload: envelopes::Upload,
    pub expected: Expected,
}

/// Scores `images` with the binary's `score`, which needs no service.
pub fn score_images(checkpoint: &Path, images: &[PathBuf]) -> Vec<Expected> {
    let output = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
        .args(["score", "--format", "jsonl", "--checkpoint"])
        .arg(checkpoint)
        .args(images)
        .output()
        .expect("the binary starts");
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let expected: Vec<Expected> = lines
        .lines()
        .zip(images)
        .map(|(line, path)| {
            let line: Value = serde_json::from_str(line).expect("a JSON object a line");
            Expected {
                path: path.clone(),
                status: line["status"].as_str().expect("a status").into(),
                score: line["score"].as_f64(),
                code: line["error"]["code"].as_str().map(str::to_owned),
            }
        })
        .collect();
    assert_eq!(expected.len(), images.len(), "{}", String::from_utf8_lossy(&output.stderr));
    expected
}

/// The value of one sample in the Prometheus text format.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split(' ').next()?.parse().ok())
}
