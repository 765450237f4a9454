//! Rows on standard output, as a table, JSON lines or CSV.

use super::{
    args::OutputFormat,
    record::{Line, Row},
};
use crate::{fault::ItemError, inference::Scored};
use std::{
    borrow::Cow,
    io::{self, Write},
};
use unicode_width::UnicodeWidthStr;

/// The widest that the table makes its column of names; longer names push their own row aside.
const NAME_WIDTH_LIMIT: usize = 60;

const CSV_HEADER: [&str; 11] = [
    "image",
    "status",
    "score",
    "std",
    "scores",
    "text",
    "decode",
    "forwards",
    "model_version",
    "error_code",
    "error_message",
];

/// Writes rows one by one, each complete and flushed before the next.
pub struct RowWriter {
    format: OutputFormat,
    name_width: usize,
}

impl RowWriter {
    /// A writer for inputs of these names: the table aligns its columns to them.
    pub fn new<'a>(format: OutputFormat, names: impl Iterator<Item = &'a str>) -> Self {
        let widest = names.map(|name| printable(name).width()).max().unwrap_or(0);
        Self { format, name_width: widest.clamp("IMAGE".len(), NAME_WIDTH_LIMIT) }
    }

    /// What comes before the first row.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn header(&self, out: &mut dyn Write) -> io::Result<()> {
        match self.format {
            OutputFormat::Table => self.table_line(out, "SCORE", "STD", "IMAGE", "ANSWER"),
            OutputFormat::Csv => csv_line(out, &CSV_HEADER),
            OutputFormat::Jsonl => Ok(()),
        }
    }

    /// One row.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn row(&self, row: &Row, out: &mut dyn Write) -> io::Result<()> {
        match self.format {
            OutputFormat::Table => self.table_row(row, out)?,
            OutputFormat::Jsonl => {
                serde_json::to_writer(&mut *out, &Line::from(row))?;
                out.write_all(b"\n")?;
            }
            OutputFormat::Csv => csv_row(row, out)?,
        }
        out.flush()
    }

    fn table_row(&self, Row { image, outcome }: &Row, out: &mut dyn Write) -> io::Result<()> {
        match outcome {
            Ok(Scored { answer, .. }) => {
                let score = format!("{:.4}", answer.score());
                let std = answer.scores.first().map_or_else(String::new, |value| format!("{:.4}", value.std));
                self.table_line(out, &score, &std, image, answer.text.trim())
            }
            Err(error) => self.table_line(out, "rejected", "", image, reason(image, error)),
        }
    }

    fn table_line(
        &self,
        out: &mut dyn Write,
        score: &str,
        std: &str,
        image: &str,
        answer: &str,
    ) -> io::Result<()> {
        let image = printable(image);
        let padding = self.name_width.saturating_sub(image.width());
        let line = format!("{score:>8}  {std:>7}  {image}{:padding$}  {}", "", printable(answer));
        writeln!(out, "{}", line.trim_end())
    }
}

/// The message without the image's name, which stands beside it.
pub(super) fn reason<'a>(image: &str, error: &'a ItemError) -> &'a str {
    let rest = error.message.strip_prefix(image).and_then(|rest| rest.strip_prefix(": "));
    rest.unwrap_or(&error.message)
}

/// `text` with what a terminal would obey, or a line break would tear, spelled out.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    // Directional overrides let a name show as another one.
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
    };
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match is_unsafe(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

fn csv_row(Row { image, outcome }: &Row, out: &mut dyn Write) -> io::Result<()> {
    match outcome {
        Ok(Scored { answer, version, .. }) => {
            let scores: Vec<_> = answer.scores.iter().map(|value| value.score.to_string()).collect();
            let std = answer.scores.first().map_or_else(String::new, |value| value.std.to_string());
            let decode = serde_json::to_value(answer.decode)?;
            csv_line(
                out,
                &[
                    image,
                    "scored",
                    &answer.score().to_string(),
                    &std,
                    &scores.join(";"),
                    &answer.text,
                    decode.as_str().unwrap_or_default(),
                    &answer.forwards.to_string(),
                    &version.version,
                    "",
                    "",
                ],
            )
        }
        Err(error) => csv_line(
            out,
            &[image, "rejected", "", "", "", "", "", "", "", &error.code.to_string(), &error.message],
        ),
    }
}

fn csv_line(out: &mut dyn Write, fields: &[&str]) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(fields)?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fault::{ErrorCode, Stage},
        score::{Answer, DecodeKind, ModelVersion, ScoreValue},
    };
    use serde_json::Value;
    use std::sync::Arc;

    fn scored(image: &str) -> Row {
        let answer = Answer {
            scores: vec![
                ScoreValue::from_distribution(vec![0.1, 0.2, 0.7], 1.0, 3.0),
                ScoreValue::from_distribution(vec![1.0, 0.0, 0.0], 1.0, 3.0),
            ],
            text: "It is 2.6000, \"good\" .".into(),
            tokens: vec![7, 8],
            decode: DecodeKind::Generated,
            forwards: 3,
        };
        let version = ModelVersion { model: "m".into(), version: "sha256:1".into(), preprocess_revision: 1 };
        Row {
            image: image.into(),
            outcome: Ok(Scored { answer, version: Arc::new(version), width: 4, height: 3 }),
        }
    }

    fn rejected(image: &str) -> Row {
        let message = format!("{image}: JPEG ends early; re-export or re-upload it");
        Row {
            image: image.into(),
            outcome: Err(ItemError::new(ErrorCode::ImageTruncated, Stage::Decode, message)),
        }
    }

    fn write(format: OutputFormat, rows: &[Row]) -> String {
        let writer = RowWriter::new(format, rows.iter().map(|row| row.image.as_str()));
        let mut out = Vec::new();
        writer.header(&mut out).unwrap();
        for row in rows {
            writer.row(row, &mut out).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_of_json_has_every_key_in_order_and_nothing_rounded() {
        let text = write(OutputFormat::Jsonl, &[scored("a.jpg"), rejected("b.jpg")]);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let keys: Vec<_> = lines[0].as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "image",
            "status",
            "score",
            "scores",
            "distributions",
            "std",
            "text",
            "tokens",
            "decode",
            "forwards",
            "model_version",
        ];
        assert_eq!(keys, expected);
        let answer = scored("a.jpg").outcome.unwrap().answer;
        assert_eq!(lines[0]["score"].as_f64(), Some(answer.score()));
        assert_eq!(lines[0]["scores"][1].as_f64(), Some(1.0));
        assert_eq!(lines[0]["distributions"][0][2].as_f64().map(|p| p as f32), Some(0.7));
        assert_eq!(lines[0]["tokens"], serde_json::json!([7, 8]));
        assert_eq!(
            text.lines().nth(1).unwrap(),
            r#"{"image":"b.jpg","status":"rejected","error":{"code":"image_truncated","stage":"decode","message":"b.jpg: JPEG ends early; re-export or re-upload it"}}"#
        );
    }

    #[test]
    fn the_table_is_aligned_and_says_why_a_row_was_rejected() {
        let text = write(OutputFormat::Table, &[scored("a.jpg"), rejected("写真.jpg")]);
        assert_eq!(
            text,
            "   SCORE      STD  IMAGE     ANSWER\n  2.6000   0.6633  a.jpg     It is 2.6000, \"good\" .\nrejected           写真.jpg  JPEG ends early; re-export or re-upload it\n"
        );
    }

    #[test]
    fn a_name_cannot_command_the_terminal() {
        let text = write(OutputFormat::Table, &[scored("a\u{1b}[2J\n\u{202e}gpj.b")]);
        assert!(text.contains(r"a\u{1b}[2J\n\u{202e}gpj.b"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn csv_reads_back() {
        let text = write(OutputFormat::Csv, &[scored("a, \"b\".jpg"), rejected("c.jpg")]);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        assert_eq!(reader.headers().unwrap(), &CSV_HEADER[..]);
        let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(&rows[0][0], "a, \"b\".jpg");
        assert_eq!(rows[0][2].parse::<f64>().unwrap(), scored("a").outcome.unwrap().answer.score());
        assert_eq!(&rows[0][6], "generated");
        assert_eq!((&rows[1][1], &rows[1][9]), ("rejected", "image_truncated"));
    }
}
