//! Reading output records.

use serde_json::Value;

/// Partition, offset and item that an output answers.
pub fn source(output: &Value) -> (i32, i64, u32) {
    let source = &output["source"];
    let number = |name: &str| source[name].as_i64().unwrap_or_else(|| panic!("source.{name} in {output}"));
    (number("partition") as i32, number("offset"), number("item") as u32)
}

/// The output of the record at `offset` of the only partition.
pub fn at(outputs: &[Value], offset: i64) -> &Value {
    outputs
        .iter()
        .find(|output| output["source"]["offset"] == offset)
        .unwrap_or_else(|| panic!("no output for offset {offset}"))
}
