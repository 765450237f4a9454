//! What the benchmarks leave behind: `target/bench/results.json`.

use serde_json::{Value, json};
use std::{fs, path::PathBuf};

/// One line of `target/bench/results.json`.
pub struct Entry<'a> {
    pub name: &'a str,
    pub value: f64,
    pub unit: &'a str,
    pub against: &'a str,
    pub against_value: f64,
    /// What `name` promises, of the two values.
    pub ratio: f64,
    pub runs: usize,
}

/// Adds entries to `target/bench/results.json`, each in place of an older one of its name.
pub fn record(entries: &[Entry<'_>]) {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench/results.json"));
    let mut results: Vec<Value> =
        fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    for entry in entries {
        results.retain(|result| result["name"] != entry.name);
        results.push(json!({
            "name": entry.name,
            "value": entry.value,
            "unit": entry.unit,
            "against": entry.against,
            "against_value": entry.against_value,
            "ratio": entry.ratio,
            "runs": entry.runs,
        }));
    }
    let written = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&path, format!("{:#}\n", Value::from(results))));
    if let Err(error) = written {
        panic!("{}: {error}", path.display());
    }
}
