//! The fuzzers' corpus, run through what the fuzzers call: what once broke stays mended.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// What the repository may hold of it, in bytes.
const LIMIT: usize = 300_000;

#[test]
fn every_input_of_the_corpus_is_survived() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut bytes = 0;
    let mut failed = Vec::new();
    for (name, target) in [
        ("config", targets::config as fn(&[u8])),
        ("image", targets::image),
        ("labels", targets::labels),
        ("pickle", targets::pickle),
        ("record", targets::record),
        ("safetensors", targets::safetensors),
        ("shards", targets::shards),
    ] {
        let mut inputs: Vec<_> =
            fs::read_dir(corpus.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for path in inputs {
            let input = fs::read(&path).unwrap();
            bytes += input.len();
            if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                failed.push(path);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert!(bytes <= LIMIT, "the corpus has grown to {bytes} bytes; leave out the longest of what was added");
}
