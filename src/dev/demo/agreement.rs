//! Whether table and topic say the same.

use super::{DemoError, photos::Photo, say};
use crate::{kafka::Delivery, record::output::OutputRecord, store::ScoreRow};
use std::{collections::HashMap, io::Write};

/// Differences that are printed.
const SHOWN_DIFFERENCES: usize = 20;

/// What a comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// One line each: the key and what differs.
    pub differences: Vec<String>,
    /// Outputs that came again with the same id and score, where delivery allows that.
    pub repeated: usize,
}

/// Holds every photo to one row and one output that equals it.
pub fn compare<'a>(
    photos: impl Iterator<Item = &'a Photo>,
    rows: &[ScoreRow],
    outputs: &[OutputRecord],
    delivery: Delivery,
) -> Agreement {
    let mut agreement = Agreement::default();
    let mut rows_by_key: HashMap<&str, Vec<&ScoreRow>> = HashMap::new();
    for row in rows {
        let key = row.object.as_ref().map_or("", |object| object.key.as_str());
        rows_by_key.entry(key).or_default().push(row);
    }
    let mut outputs_by_key: HashMap<&str, Vec<&OutputRecord>> = HashMap::new();
    for output in outputs {
        outputs_by_key.entry(output.key.as_deref().unwrap_or_default()).or_default().push(output);
    }
    for photo in photos {
        let rows = rows_by_key.remove(photo.key.as_str()).unwrap_or_default();
        let outputs = outputs_by_key.remove(photo.key.as_str()).unwrap_or_default();
        agreement.item(&photo.key, &rows, &outputs, delivery);
    }
    for key in rows_by_key.keys() {
        agreement.differences.push(format!("{key}: a row for an object that was never uploaded"));
    }
    for key in outputs_by_key.keys() {
        agreement.differences.push(format!("{key}: an output for an object that was never uploaded"));
    }
    agreement
}

impl Agreement {
    /// Prints the differences.
    ///
    /// # Errors
    /// [`DemoError::Disagreement`] if there are any.
    pub fn check(&self, out: &mut dyn Write) -> Result<(), DemoError> {
        for difference in self.differences.iter().take(SHOWN_DIFFERENCES) {
            say(out, difference)?;
        }
        match self.differences.first() {
            Some(first) => {
                Err(DemoError::Disagreement { count: self.differences.len(), first: first.clone() })
            }
            None => Ok(()),
        }
    }

    fn item(&mut self, key: &str, rows: &[&ScoreRow], outputs: &[&OutputRecord], delivery: Delivery) {
        let ([row], [first, again @ ..]) = (rows, outputs) else {
            self.differences.push(format!("{key}: {} rows and {} outputs", rows.len(), outputs.len()));
            return;
        };
        let repeated = |output: &&&OutputRecord| output.id == first.id && output.score == first.score;
        let same = again.iter().filter(repeated).count();
        if delivery == Delivery::AtLeastOnce && same == again.len() {
            self.repeated += same;
        } else if !again.is_empty() {
            self.differences.push(format!(
                "{key}: {} outputs, {} of them repeat the first",
                outputs.len(),
                same
            ));
        }
        for (what, equal) in [
            ("id", first.id == row.id),
            ("status", first.status == row.status),
            ("score", first.score == row.score),
            ("list of scores", first.scores == row.scores),
            ("model version", first.model_version == row.model_version),
            (
                "error",
                first.error.as_ref().map(|error| error.code) == row.error.as_ref().map(|error| error.code),
            ),
        ] {
            if !equal {
                self.differences.push(format!("{key}: another {what} in the topic than in the table"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        object::{ObjectRef, ScoreId},
        record::Position,
        score::{Answer, DecodeKind, ModelVersion, ScoreValue},
    };

    fn photo(key: &str) -> Photo {
        Photo { image: format!("/p/{key}"), key: key.into(), path: format!("/p/{key}").into() }
    }

    fn scored(key: &str, score: f64) -> (ScoreRow, OutputRecord) {
        let model = ModelVersion { model: "m".into(), version: "v".into(), preprocess_revision: 1 };
        let object = ObjectRef::new("photos", key);
        let id = ScoreId::derive(&object, &model);
        let value = ScoreValue { score, distribution: vec![1.0], std: 0.0 };
        let answer = Answer {
            scores: vec![value],
            text: String::new(),
            tokens: Vec::new(),
            decode: DecodeKind::Generated,
            forwards: 1,
        };
        let row = ScoreRow::scored(id, object.clone(), &model, &answer, None);
        let source = Position { topic: "t".into(), partition: 0, offset: 0, item: 0 };
        let mut output = OutputRecord::new(id, row.status, Some(&object), &model, source, row.scored_at);
        (output.score, output.scores) = (row.score, row.scores.clone());
        (row, output)
    }

    fn differences(rows: &[ScoreRow], outputs: &[OutputRecord], delivery: Delivery) -> Agreement {
        compare([photo("a.jpg"), photo("b.jpg")].iter(), rows, outputs, delivery)
    }

    #[test]
    fn equal_rows_and_outputs_agree_and_anything_else_is_named() {
        let ((row_a, output_a), (row_b, output_b)) = (scored("a.jpg", 3.0), scored("b.jpg", 4.0));
        let rows = [row_a.clone(), row_b.clone()];
        let outputs = [output_b.clone(), output_a.clone()];
        let exactly_once = Delivery::Transactional;
        assert_eq!(differences(&rows, &outputs, exactly_once), Agreement::default());

        let lost = differences(&rows, &outputs[..1], exactly_once);
        assert_eq!(lost.differences, ["a.jpg: 1 rows and 0 outputs"]);
        let unstored = differences(&rows[..1], &outputs, exactly_once);
        assert_eq!(unstored.differences, ["b.jpg: 0 rows and 1 outputs"]);

        let twice = [output_b.clone(), output_a.clone(), output_a.clone()];
        assert_eq!(differences(&rows, &twice, exactly_once).differences.len(), 1);
        let allowed = differences(&rows, &twice, Delivery::AtLeastOnce);
        assert_eq!(allowed, Agreement { differences: Vec::new(), repeated: 1 });

        let mut changed = output_a.clone();
        changed.score = Some(3.0 + f64::EPSILON * 2.0);
        let drifted = [output_b.clone(), output_a, changed.clone()];
        assert_eq!(differences(&rows, &drifted, Delivery::AtLeastOnce).differences.len(), 1);
        let other = differences(&rows, &[output_b, changed], exactly_once);
        assert_eq!(other.differences, ["a.jpg: another score in the topic than in the table"]);

        let (row_c, output_c) = scored("c.jpg", 1.0);
        let strangers = differences(
            &[row_a, row_b, row_c],
            &[outputs[0].clone(), outputs[1].clone(), output_c],
            exactly_once,
        );
        assert_eq!(strangers.differences.len(), 2);
    }
}
