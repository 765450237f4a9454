//! The judge: nothing lost, nothing doubled, no output that differs from its row.
//!
//! It knows only the files that a run leaves behind, so anybody else can come to the same verdict.

use crate::kafka::PartitionOffsets;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// A record that was sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Input {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// `null` for a tombstone.
    pub value_base64: Option<String>,
    /// None for a record that announces nothing, such as a test event.
    pub items: Vec<InputItem>,
}

/// An item of a record, and how it has to end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputItem {
    pub bucket: String,
    pub key: String,
    /// Alternatives are separated by `|`, where the moment of a fault decides.
    pub status: String,
}

impl InputItem {
    fn may_end(&self, status: &str) -> bool {
        self.status.split('|').any(|expected| expected == status)
    }
}

/// A record of the output or dead-letter topic.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Committed {
    pub partition: i32,
    pub offset: i64,
    pub headers: HashMap<String, Option<String>>,
    pub value: Option<String>,
}

/// What counts of an output's value.
#[derive(Clone, Debug, Deserialize)]
struct Output {
    id: String,
    status: String,
    score: Option<f64>,
    source: Position,
}

#[derive(Clone, Debug, Deserialize)]
struct Position {
    topic: String,
    partition: i32,
    offset: i64,
    item: u32,
}

/// What counts of a row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScoreRow {
    pub id: String,
    pub status: String,
    pub score: Option<f64>,
}

/// Everything that a verdict rests on.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pub inputs: Vec<Input>,
    pub outputs: Vec<Committed>,
    pub dead_letters: Vec<Committed>,
    pub offsets: Vec<PartitionOffsets>,
    pub scores: Vec<ScoreRow>,
}

/// Whether everything must have come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// In the middle: what offsets cover must be there, and nothing else may.
    Interrupted,
    /// At the end: offsets must cover everything too.
    Settled,
}

/// What is wrong, item by item.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Input items.
    pub items: usize,
    pub lost: Vec<String>,
    pub doubled: Vec<String>,
    pub mismatched: Vec<String>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.doubled.is_empty() && self.mismatched.is_empty()
    }

    /// The first complaint of each kind.
    pub fn complaint(&self) -> String {
        let kinds = [("lost", &self.lost), ("doubled", &self.doubled), ("mismatched", &self.mismatched)];
        let shown = kinds.iter().filter_map(|(kind, all)| {
            let first = all.first()?;
            Some(format!("{} {kind}, such as {first}", all.len()))
        });
        shown.collect::<Vec<_>>().join("; ")
    }
}

type Place = (i32, i64, u32);

impl Evidence {
    pub fn read(folder: &Path) -> Result<Self> {
        let offsets = std::fs::read_to_string(folder.join("offsets.json"))?;
        Ok(Self {
            inputs: lines(&folder.join("inputs.jsonl"))?,
            outputs: lines(&folder.join("outputs.jsonl"))?,
            dead_letters: lines(&folder.join("dead_letters.jsonl"))?,
            offsets: serde_json::from_str(&offsets).context("offsets.json")?,
            scores: lines(&folder.join("scores.jsonl"))?,
        })
    }

    pub fn judge(&self, moment: Moment) -> Verdict {
        let mut verdict = Verdict::default();
        let covered = self.covered();
        let rows: HashMap<&str, &ScoreRow> = self.scores.iter().map(|row| (row.id.as_str(), row)).collect();
        let expected = self.expected();
        let outputs = self.outputs_by_place(&expected, &mut verdict);
        let letters = self.letters_by_place(&expected, &mut verdict);
        verdict.items = expected.len();
        for (place, item) in &expected {
            let found = outputs.get(place).map(Vec::as_slice).unwrap_or_default();
            let letters = letters.get(place).copied().unwrap_or(0);
            let named = format!("item {} of {}/{} ({})", place.2, place.0, place.1, item.key);
            if !covered.contains(&(place.0, place.1)) {
                if moment == Moment::Settled {
                    verdict.lost.push(format!("{named}: no committed offset covers it"));
                }
                if !found.is_empty() || letters > 0 {
                    verdict.doubled.push(format!("{named}: committed, and its offset is not"));
                }
                continue;
            }
            match found {
                [] => verdict.lost.push(format!("{named}: covered by the offsets, and has no output")),
                [_] => {}
                more => verdict.doubled.push(format!("{named}: {} committed outputs", more.len())),
            }
            for output in found {
                if let Err(difference) = agrees(output, &rows, item, &outputs) {
                    verdict.mismatched.push(format!("{named}: {difference}"));
                }
            }
            let ended = found.first().map_or(item.status.as_str(), |output| output.status.as_str());
            let wanted = usize::from(matches!(ended, "rejected" | "dead"));
            if letters < wanted {
                verdict.lost.push(format!("{named}: {} without a dead letter", item.status));
            } else if letters > wanted {
                verdict.doubled.push(format!("{named}: {letters} dead letters, not {wanted}"));
            }
        }
        if moment == Moment::Settled {
            let told: HashSet<&str> = outputs.values().flatten().map(|output| output.id.as_str()).collect();
            for row in self.scores.iter().filter(|row| !told.contains(row.id.as_str())) {
                verdict.mismatched.push(format!("row {}: no output speaks of it", row.id));
            }
        }
        verdict
    }

    /// The ids that outputs speak of.
    pub fn output_ids(&self) -> BTreeSet<String> {
        let read = |record: &Committed| serde_json::from_str::<Output>(record.value.as_deref()?).ok();
        self.outputs.iter().filter_map(read).map(|output| output.id).collect()
    }

    /// Rows that no output speaks of, yet.
    pub fn rows_without_output(&self) -> usize {
        let told = self.output_ids();
        self.scores.iter().filter(|row| !told.contains(&row.id)).count()
    }

    /// Offsets that the group has committed: below the committed one, or in the metadata's bitmap.
    fn covered(&self) -> HashSet<(i32, i64)> {
        let mut covered = HashSet::new();
        for partition in &self.offsets {
            let committed = partition.committed.unwrap_or(partition.begin);
            let finished = finished_beyond(&partition.metadata);
            covered.extend((0..committed).map(|offset| (partition.partition, offset)));
            covered.extend(finished.into_iter().map(|beyond| (partition.partition, committed + beyond)));
        }
        covered
    }

    fn expected(&self) -> BTreeMap<Place, &InputItem> {
        let items = self.inputs.iter().flat_map(|input| {
            let places = (0..).map(|item| (input.partition, input.offset, item));
            places.zip(&input.items)
        });
        items.collect()
    }

    fn outputs_by_place(
        &self,
        expected: &BTreeMap<Place, &InputItem>,
        verdict: &mut Verdict,
    ) -> BTreeMap<Place, Vec<Output>> {
        let topics: BTreeSet<&str> = self.inputs.iter().map(|input| input.topic.as_str()).collect();
        let mut found: BTreeMap<Place, Vec<Output>> = BTreeMap::new();
        for record in &self.outputs {
            let at = format!("output {}/{}", record.partition, record.offset);
            let value = record.value.as_deref().unwrap_or_default();
            match serde_json::from_str::<Output>(value) {
                Err(error) => verdict.mismatched.push(format!("{at}: {error}")),
                Ok(output) => {
                    let Position { topic, partition, offset, item } = &output.source;
                    let place = (*partition, *offset, *item);
                    if topics.contains(topic.as_str()) && expected.contains_key(&place) {
                        found.entry(place).or_default().push(output);
                    } else {
                        verdict.mismatched.push(format!("{at}: for an item that was never sent, {place:?}"));
                    }
                }
            }
        }
        found
    }

    fn letters_by_place(
        &self,
        expected: &BTreeMap<Place, &InputItem>,
        verdict: &mut Verdict,
    ) -> BTreeMap<Place, usize> {
        let mut found = BTreeMap::new();
        for letter in &self.dead_letters {
            let number = |name: &str| letter.headers.get(name)?.as_ref()?.parse::<i64>().ok();
            let place = (|| {
                let (partition, item) = (number("dlq-origin-partition")?, number("dlq-item")?);
                Some((
                    i32::try_from(partition).ok()?,
                    number("dlq-origin-offset")?,
                    u32::try_from(item).ok()?,
                ))
            })();
            match place.filter(|place| expected.contains_key(place)) {
                Some(place) => *found.entry(place).or_default() += 1,
                None => verdict.mismatched.push(format!(
                    "dead letter {}/{}: for an item that was never sent",
                    letter.partition, letter.offset
                )),
            }
        }
        found
    }
}

/// Whether an output says what its row says, and what had to come out.
fn agrees(
    output: &Output,
    rows: &HashMap<&str, &ScoreRow>,
    item: &InputItem,
    outputs: &BTreeMap<Place, Vec<Output>>,
) -> Result<(), String> {
    if !item.may_end(&output.status) {
        return Err(format!("ended {}, not {}", output.status, item.status));
    }
    let row = rows.get(output.id.as_str()).ok_or_else(|| format!("no row {}", output.id))?;
    if (row.status.as_str(), row.score) == (output.status.as_str(), output.score) {
        return Ok(());
    }
    // Only an upgrade rewrites a row, and then a later output says so.
    let upgraded = row.status == "scored"
        && output.status != "scored"
        && outputs.values().flatten().any(|other| other.id == output.id && other.status == "scored");
    if upgraded {
        return Ok(());
    }
    Err(format!(
        "the output says {} {:?}, the row {} {:?}",
        output.status, output.score, row.status, row.score
    ))
}

/// How far beyond the committed offset finished records lie, by the bitmap `d` in the metadata:
/// base64, least significant bit first.
pub fn finished_beyond(metadata: &str) -> Vec<i64> {
    #[derive(Deserialize)]
    struct Metadata {
        d: String,
    }
    let Ok(Metadata { d }) = serde_json::from_str(metadata) else { return Vec::new() };
    let bytes = BASE64.decode(d).unwrap_or_default();
    let bits = bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
    (0..).zip(bits).filter(|(_, set)| *set).map(|(beyond, _)| beyond).collect()
}

fn lines<T: DeserializeOwned>(file: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let parsed = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
    parsed.with_context(|| file.display().to_string())
}
