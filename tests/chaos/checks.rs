//! The oracle's own tests: it has to find what is wrong, and to be content with what is not.

use crate::kafka::PartitionOffsets;
use crate::oracle::{Committed, Evidence, Input, InputItem, Moment, ScoreRow, Verdict};
use anyhow::{Result, ensure};
use serde_json::json;
use std::collections::HashMap;

type Check = fn() -> Result<()>;

pub fn all() -> Vec<(&'static str, Check)> {
    vec![
        ("oracle_accepts_a_clean_run", clean),
        ("oracle_finds_a_lost_item", lost),
        ("oracle_finds_an_uncovered_item", uncovered),
        ("oracle_finds_a_doubled_output", doubled),
        ("oracle_finds_a_committed_output_without_its_offset", ahead),
        ("oracle_finds_an_output_that_differs_from_its_row", mismatched),
        ("oracle_finds_a_wrong_status", wrong_status),
        ("oracle_finds_a_missing_and_a_doubled_dead_letter", dead_letters),
        ("oracle_finds_a_row_without_an_output", stray_row),
        ("oracle_reads_the_bitmap_beyond_the_committed_offset", bitmap),
    ]
}

fn item(key: &str, status: &str) -> InputItem {
    InputItem { bucket: "b".into(), key: key.into(), status: status.into() }
}

fn output(offset: i64, item: u32, id: &str, status: &str, score: Option<f64>) -> Committed {
    let source = json!({"topic": "in", "partition": 0, "offset": offset, "item": item});
    let value = json!({"id": id, "status": status, "score": score, "source": source});
    Committed { partition: 0, offset, headers: HashMap::new(), value: Some(value.to_string()) }
}

fn letter(offset: i64, item: u32) -> Committed {
    let headers = [("dlq-origin-partition", 0), ("dlq-origin-offset", offset), ("dlq-item", item.into())];
    let headers = headers.map(|(name, value)| (name.to_owned(), Some(value.to_string())));
    Committed { partition: 0, offset, headers: headers.into(), value: None }
}

fn row(id: &str, status: &str, score: Option<f64>) -> ScoreRow {
    ScoreRow { id: id.into(), status: status.into(), score }
}

/// Two records: one with a scored and a rejected item, one with a scored item.
fn evidence() -> Evidence {
    let input = |offset, items| Input { topic: "in".into(), partition: 0, offset, value_base64: None, items };
    Evidence {
        inputs: vec![
            input(0, vec![item("a", "scored"), item("b", "rejected")]),
            input(1, vec![item("c", "scored")]),
        ],
        outputs: vec![
            output(0, 0, "ia", "scored", Some(5.1)),
            output(0, 1, "ib", "rejected", None),
            output(1, 0, "ic", "scored", Some(0.1 + 0.2)),
        ],
        dead_letters: vec![letter(0, 1)],
        offsets: vec![PartitionOffsets {
            topic: "in".into(),
            partition: 0,
            committed: Some(2),
            metadata: String::new(),
            begin: 0,
            end: 2,
        }],
        scores: vec![
            row("ia", "scored", Some(5.1)),
            row("ib", "rejected", None),
            row("ic", "scored", Some(0.1 + 0.2)),
        ],
    }
}

/// What the oracle says of the evidence after `change`.
fn verdict(change: impl FnOnce(&mut Evidence)) -> Verdict {
    let mut evidence = evidence();
    change(&mut evidence);
    evidence.judge(Moment::Settled)
}

fn counts(verdict: &Verdict) -> (usize, usize, usize) {
    (verdict.lost.len(), verdict.doubled.len(), verdict.mismatched.len())
}

fn expect(change: impl FnOnce(&mut Evidence), expected: (usize, usize, usize)) -> Result<()> {
    let verdict = verdict(change);
    ensure!(counts(&verdict) == expected, "{verdict:?}, not {expected:?}");
    Ok(())
}

fn clean() -> Result<()> {
    let verdict = verdict(|_| {});
    ensure!(verdict.is_clean() && verdict.items == 3, "{verdict:?}");
    Ok(())
}

fn lost() -> Result<()> {
    // Its row stays behind without an output.
    expect(|evidence| drop(evidence.outputs.remove(2)), (1, 0, 1))?;
    expect(
        |evidence| {
            evidence.outputs.remove(2);
            evidence.scores.remove(2);
        },
        (1, 0, 0),
    )
}

fn uncovered() -> Result<()> {
    let cut = |evidence: &mut Evidence| {
        evidence.offsets[0].committed = Some(1);
        evidence.outputs.remove(2);
        evidence.scores.remove(2);
    };
    expect(cut, (1, 0, 0))?;
    let mut middle = evidence();
    cut(&mut middle);
    ensure!(middle.judge(Moment::Interrupted).is_clean(), "in the middle that is no fault");
    Ok(())
}

fn doubled() -> Result<()> {
    expect(|evidence| evidence.outputs.push(output(1, 0, "ic", "scored", Some(0.1 + 0.2))), (0, 1, 0))
}

fn ahead() -> Result<()> {
    let mut middle = evidence();
    middle.offsets[0].committed = Some(1);
    let verdict = middle.judge(Moment::Interrupted);
    ensure!(counts(&verdict) == (0, 1, 0), "{verdict:?}");
    Ok(())
}

fn mismatched() -> Result<()> {
    expect(|evidence| evidence.scores[2].score = Some(0.3), (0, 0, 1))?;
    expect(|evidence| evidence.outputs.push(output(7, 0, "ic", "scored", Some(0.3))), (0, 0, 1))?;
    expect(|evidence| evidence.outputs[0].value = Some("no JSON".into()), (1, 0, 2))
}

fn wrong_status() -> Result<()> {
    expect(|evidence| evidence.inputs[1].items[0].status = "gone".into(), (0, 0, 1))
}

fn dead_letters() -> Result<()> {
    expect(|evidence| evidence.dead_letters.clear(), (1, 0, 0))?;
    expect(|evidence| evidence.dead_letters.push(letter(0, 1)), (0, 1, 0))?;
    expect(|evidence| evidence.dead_letters.push(letter(1, 0)), (0, 1, 0))?;
    expect(|evidence| evidence.dead_letters.push(letter(9, 0)), (0, 0, 1))
}

fn stray_row() -> Result<()> {
    expect(|evidence| evidence.scores.push(row("other", "scored", Some(1.0))), (0, 0, 1))
}

fn bitmap() -> Result<()> {
    // Bits 1 and 8 are set: offsets 1 and 8 beyond a committed 0.
    let metadata = r#"{"v":1,"s":0,"d":"AgE="}"#;
    let mut middle = evidence();
    middle.offsets[0].committed = Some(0);
    middle.offsets[0].metadata = metadata.into();
    middle.outputs.drain(..2);
    middle.dead_letters.clear();
    middle.scores.drain(..2);
    let verdict = middle.judge(Moment::Interrupted);
    ensure!(verdict.is_clean(), "offset 1 is covered and 0 is not: {verdict:?}");
    Ok(())
}
