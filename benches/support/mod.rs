//! Timing and reporting that the benchmarks share.
//!
//! What is compared runs in turns within one process, so that a machine that slows down or has
//! other work slows both sides alike, and medians are compared.

use serde_json::{Value, json};
use std::{fs, path::PathBuf, time::Duration};

/// Median processor time of each contender on this thread, over `runs` rounds in which each has one
/// turn. A round before the first is not counted.
pub fn interleaved(runs: usize, contenders: &mut [&mut dyn FnMut()]) -> Vec<Duration> {
    let mut times = vec![Vec::with_capacity(runs); contenders.len()];
    for round in 0..=runs {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            let start = thread_time();
            contender();
            let taken = thread_time() - start;
            if round > 0 {
                times.push(taken);
            }
        }
    }
    times
        .into_iter()
        .map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2]
        })
        .collect()
}

/// Processor time of the calling thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "this system has no processor time of a thread");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

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
