//! Outputs beside what `score` says with the model version that each of them names.

use crate::support::{Uploaded, outputs, stack::Stack};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
};

/// What `score` says of each picture, `None` for one that is rejected, by the version as outputs name it.
pub type Scores<'a> = HashMap<&'a str, &'a HashMap<PathBuf, Option<f64>>>;

/// Every item has one output, whose score is that of the version it names, within 1e-4, and that of its row;
/// how many outputs each version made.
pub async fn check(
    stack: &Stack,
    scores: &Scores<'_>,
    items: &HashMap<(i32, i64, u32), &Uploaded>,
) -> BTreeMap<String, usize> {
    let rows = stack.rows().await;
    let mut seen = HashSet::new();
    let mut made = BTreeMap::new();
    for output in stack.outputs().await {
        let source = outputs::source(&output);
        assert!(seen.insert(source), "{source:?} has two committed outputs");
        let uploaded = items[&source];
        assert_eq!(output["key"], uploaded.upload.key, "{output}");
        let named = output["model_version"].as_str().expect("a version");
        let scores = scores.get(named).unwrap_or_else(|| panic!("{named} never served"));
        *made.entry(named.to_owned()).or_default() += 1;
        match scores[&uploaded.expected.path] {
            Some(score) => {
                let difference = (output["score"].as_f64().expect("a score") - score).abs();
                assert!(difference <= 1e-4, "{}: off by {difference} for {named}", uploaded.upload.key);
            }
            None => assert_eq!(output["status"], "rejected", "{output}"),
        }
        let row = &rows[output["id"].as_str().expect("an id")];
        assert_eq!(row.score, output["score"].as_f64(), "the output carries the stored score");
    }
    assert_eq!(seen.len(), items.len(), "every item has an output");
    made
}
