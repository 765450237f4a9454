//! The reference's training samples: the JSON that its `train.py --data_path` reads.
//!
//! An array of `{"image", "gt_score", "target", "conversations"}`, or the same objects one after another as
//! in JSON Lines. `gt_score` is a number, or a list of one per `[SCORE]` in the answers; `target` is the
//! rating distribution, or a list of one per `[SCORE]`; `image` is a path below the folder of images.

use super::elements::{Element, Elements};
use super::fields::{kind, list_or_lists, number, number_or_list, syntax};
use super::{LabelFileError, Refusal, Scale};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::Path,
};

/// Stands for a score in an answer.
pub const SCORE_TOKEN: &str = "[SCORE]";

/// Stands for the image in a question.
pub const IMAGE_TOKEN: &str = "<|image|>";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Turn {
    /// `human` or `gpt`.
    pub from: String,
    pub value: String,
}

/// One image with what is to be said of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Path below the folder of images.
    pub image: String,
    /// One per [`SCORE_TOKEN`] in the answers.
    pub gt_scores: Vec<f64>,
    /// The rating distribution of each score, over the scale's bins; empty where the file has none.
    pub targets: Vec<Vec<f64>>,
    pub conversations: Vec<Turn>,
    /// Fields that training does not read, such as `id`.
    pub extra: Map<String, Value>,
    /// The line it begins on, from 1; 0 for a sample that was read from no file.
    pub line: usize,
}

impl Sample {
    /// How many scores its answers ask for. As in the reference, a conversation begins with `human`: an
    /// earlier turn is no part of it.
    pub fn score_tokens(&self) -> usize {
        score_tokens(&self.conversations)
    }

    /// Whether a score head of this scale can be trained on it: turns in order, as many scores as
    /// [`SCORE_TOKEN`]s, every score within the range, every distribution over its bins, and the image shown in a
    /// question. A sample may have no distribution at all.
    ///
    /// # Errors
    /// What is wrong first.
    pub fn check(&self, scale: &Scale) -> Result<(), Refusal> {
        check_turns(&self.conversations)?;
        let tokens = self.score_tokens();
        if self.gt_scores.len() != tokens {
            return Err(Refusal::ScoreCount { scores: self.gt_scores.len(), tokens });
        }
        self.gt_scores.iter().try_for_each(|score| scale.check_score(*score))?;
        if !self.targets.is_empty() && self.targets.len() != tokens {
            return Err(Refusal::TargetCount { targets: self.targets.len(), scores: tokens });
        }
        self.targets.iter().try_for_each(|target| scale.check_distribution(target))
    }

    fn read(Element { line, bytes }: &Element) -> Result<Self, (usize, Refusal)> {
        let mut fields: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| {
            let (within, refusal) = syntax(&error);
            (line + within - 1, refusal)
        })?;
        let here = |refusal| (*line, refusal);
        Ok(Self {
            image: image(fields.shift_remove("image")).map_err(here)?,
            gt_scores: number_or_list("gt_score", fields.shift_remove("gt_score")).map_err(here)?,
            targets: list_or_lists("target", fields.shift_remove("target"), number).map_err(here)?,
            conversations: turns(fields.shift_remove("conversations")).map_err(here)?,
            extra: fields,
            line: *line,
        })
    }
}

impl Serialize for Sample {
    /// As the reference reads it: a single score and a single distribution are no lists of one.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("image", &self.image)?;
        match self.gt_scores.as_slice() {
            [] => {}
            [score] => map.serialize_entry("gt_score", score)?,
            scores => map.serialize_entry("gt_score", scores)?,
        }
        map.serialize_entry("conversations", &self.conversations)?;
        match self.targets.as_slice() {
            [] => {}
            [target] => map.serialize_entry("target", target)?,
            targets => map.serialize_entry("target", targets)?,
        }
        for (name, value) in &self.extra {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Scores that the answers of a conversation ask for.
pub(super) fn score_tokens(turns: &[Turn]) -> usize {
    let answers = turns.iter().skip_while(|turn| turn.from != "human").filter(|turn| turn.from == "gpt");
    answers.map(|turn| turn.value.matches(SCORE_TOKEN).count()).sum()
}

/// Whether questions and answers come by turns, and one of the questions shows the image.
pub(super) fn check_turns(turns: &[Turn]) -> Result<(), Refusal> {
    let leading = usize::from(turns.first().is_some_and(|turn| turn.from == "gpt"));
    let expected = ["human", "gpt"].into_iter().cycle();
    for ((turn, Turn { from, .. }), expected) in turns.iter().enumerate().skip(leading).zip(expected) {
        if from != expected {
            return Err(Refusal::Role { turn: turn + 1, from: from.clone() });
        }
    }
    if turns.len() < leading + 2 {
        return Err(Refusal::NoAnswer);
    }
    let shown = turns[leading..].iter().any(|turn| turn.from == "human" && turn.value.contains(IMAGE_TOKEN));
    if shown { Ok(()) } else { Err(Refusal::NoImage) }
}

/// Reads samples one at a time, however many there are.
///
/// A sample that is refused is an error of its own, and reading goes on after it; a file that can't be
/// understood as a whole ends with its error.
pub struct SampleReader<R> {
    elements: Elements<R>,
    scale: Option<Scale>,
}

impl SampleReader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`LabelFileError::Read`].
    pub fn open(path: &Path) -> Result<Self, LabelFileError> {
        let file = path.display().to_string();
        match File::open(path) {
            Ok(open) => Ok(Self::new(file, BufReader::with_capacity(1 << 16, open))),
            Err(source) => Err(LabelFileError::Read { file, source }),
        }
    }
}

impl<R: BufRead> SampleReader<R> {
    /// Reads from anything; `file` is what messages call it.
    pub fn new(file: impl Into<String>, reader: R) -> Self {
        Self { elements: Elements::new(file.into(), reader), scale: None }
    }

    /// Refuses what [`Sample::check`] refuses.
    pub fn checked(self, scale: Scale) -> Self {
        Self { scale: Some(scale), ..self }
    }
}

impl<R: BufRead> Iterator for SampleReader<R> {
    type Item = Result<Sample, LabelFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        let element = match self.elements.next()? {
            Ok(element) => element,
            Err(error) => return Some(Err(error)),
        };
        let sample = Sample::read(&element).and_then(|sample| match &self.scale {
            Some(scale) => sample.check(scale).map(|()| sample).map_err(|refusal| (element.line, refusal)),
            None => Ok(sample),
        });
        Some(sample.map_err(|(line, refusal)| LabelFileError::Refused {
            file: self.elements.file().to_owned(),
            line,
            refusal,
        }))
    }
}

/// Writes samples as an array, one a line.
pub struct SampleWriter<W> {
    writer: W,
    begun: bool,
}

impl<W: Write> SampleWriter<W> {
    /// Writes to `writer`, which should be buffered.
    pub fn new(writer: W) -> Self {
        Self { writer, begun: false }
    }

    /// Writes one more.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&mut self, sample: &Sample) -> io::Result<()> {
        self.writer.write_all(if self.begun { b",\n" } else { b"[\n" })?;
        self.begun = true;
        serde_json::to_writer(&mut self.writer, sample).map_err(io::Error::from)
    }

    /// Ends the array and gives the writer back, flushed.
    ///
    /// # Errors
    /// What the writer says.
    pub fn finish(mut self) -> io::Result<W> {
        self.writer.write_all(if self.begun { b"\n]\n" } else { b"[]\n" })?;
        self.writer.flush()?;
        Ok(self.writer)
    }
}

fn image(value: Option<Value>) -> Result<String, Refusal> {
    match value {
        Some(Value::String(image)) if !image.is_empty() => Ok(image),
        None | Some(Value::Null | Value::String(_)) => {
            Err(Refusal::Missing { field: "image", remedy: "name a file below the folder of images" })
        }
        Some(other) => Err(kind("image", "a path", &other)),
    }
}

/// `[{"from", "value"}]`.
pub(super) fn turns(value: Option<Value>) -> Result<Vec<Turn>, Refusal> {
    let list = match value {
        Some(Value::Array(list)) => list,
        None | Some(Value::Null) => {
            let remedy = "give a turn from human with <|image|>, and an answer from gpt with [SCORE]";
            return Err(Refusal::Missing { field: "conversations", remedy });
        }
        Some(other) => return Err(kind("conversations", "a list of turns", &other)),
    };
    list.into_iter()
        .map(|turn| match turn {
            Value::Object(mut fields) => {
                Ok(Turn { from: part("from", &mut fields)?, value: part("value", &mut fields)? })
            }
            other => Err(kind("conversations", "turns of the form {\"from\", \"value\"}", &other)),
        })
        .collect()
}

fn part(field: &'static str, turn: &mut Map<String, Value>) -> Result<String, Refusal> {
    match turn.shift_remove(field) {
        Some(Value::String(text)) => Ok(text),
        None => Err(Refusal::Missing { field, remedy: "give each turn both from and value" }),
        Some(other) => Err(kind(field, "text", &other)),
    }
}

#[cfg(test)]
mod tests;
