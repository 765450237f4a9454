//! Labels as CSV: the header's names are the fields of the labels topic.

mod lines;

use super::vote::parse_time;
use super::{LabelFileError, LabelledObject, Opinion, Refusal, Scale};
use csv::{ErrorKind, StringRecord};
use lines::Lines;
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};
use time::OffsetDateTime;

/// Names that a column may have. Others are passed over, unless one is a near miss.
const COLUMNS: [&str; 8] = ["bucket", "key", "etag", "image", "rater", "score", "votes", "labelled_at"];
/// Jaro-Winkler similarity from which a strange name is a misspelt one.
const SIMILAR: f64 = 0.85;

/// What a label is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// An object in S3.
    Object(LabelledObject),
    /// A file, by the column `image`.
    Image(String),
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct CsvLabel {
    pub place: Place,
    pub rater: Option<String>,
    pub opinion: Opinion,
    pub labelled_at: Option<OffsetDateTime>,
    /// The line it begins on, from 1; the header is the first.
    pub line: usize,
}

/// Reads labels one at a time, however many there are. A line that is refused is an error of its own, and
/// reading goes on after it. A line with neither score nor votes is not labelled yet: it is only counted.
pub struct CsvReader<R> {
    file: String,
    reader: csv::Reader<Lines<R>>,
    columns: Columns,
    scale: Scale,
    unlabelled: u64,
    ended: bool,
}

/// Where in a record each column is.
#[derive(Debug, Default)]
struct Columns {
    places: [Option<usize>; COLUMNS.len()],
}

impl CsvReader<File> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`LabelFileError::Read`], or [`LabelFileError::Header`] for columns that make no label.
    pub fn open(path: &Path, scale: Scale) -> Result<Self, LabelFileError> {
        let file = path.display().to_string();
        match File::open(path) {
            Ok(open) => Self::new(file, open, scale),
            Err(source) => Err(LabelFileError::Read { file, source }),
        }
    }
}

impl<R: Read> CsvReader<R> {
    /// Reads from anything; `file` is what messages call it.
    ///
    /// # Errors
    /// As [`CsvReader::open`].
    pub fn new(file: impl Into<String>, reader: R, scale: Scale) -> Result<Self, LabelFileError> {
        let file = file.into();
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::Headers)
            .buffer_capacity(1 << 16)
            .from_reader(Lines::new(reader));
        let header = match reader.headers() {
            Ok(header) => header,
            Err(error) => return Err(whole_file(file, error)),
        };
        let columns = match Columns::read(header) {
            Ok(columns) => columns,
            Err(reason) => return Err(LabelFileError::Header { file, reason }),
        };
        Ok(Self { file, reader, columns, scale, unlabelled: 0, ended: false })
    }

    /// Lines so far that nobody has filled in.
    pub fn unlabelled(&self) -> u64 {
        self.unlabelled
    }

    fn label(&self, record: &StringRecord, line: usize) -> Result<Option<CsvLabel>, Refusal> {
        let cell = |column: &str| self.columns.cell(record, column);
        let scores = cell("score").map(|text| numbers("score", text)).transpose()?;
        let counts = cell("votes").map(counts).transpose()?;
        let opinion = match (scores, counts) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(Refusal::ScoreAndVotes),
            (Some(scores), None) => Opinion::of_scores(scores),
            (None, Some(counts)) => Opinion::of_counts(&counts, &self.scale)?,
        };
        opinion.check(&self.scale)?;
        let place = match (cell("image"), cell("bucket"), cell("key")) {
            (Some(image), None, None) => Place::Image(image.to_owned()),
            (_, bucket, key) => Place::Object(LabelledObject::new(
                bucket.unwrap_or_default().to_owned(),
                key.unwrap_or_default().to_owned(),
                cell("etag").map(str::to_owned),
            )?),
        };
        let labelled_at = cell("labelled_at").map(parse_time).transpose()?;
        Ok(Some(CsvLabel { place, rater: cell("rater").map(str::to_owned), opinion, labelled_at, line }))
    }
}

impl<R: Read> Iterator for CsvReader<R> {
    type Item = Result<CsvLabel, LabelFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut record = StringRecord::new();
        while !self.ended {
            let before = self.reader.position().byte();
            let read = self.reader.read_record(&mut record);
            let line = self.reader.get_mut().of_record(before);
            let label = match read {
                Ok(true) => self.label(&record, line),
                Ok(false) => {
                    self.ended = true;
                    return None;
                }
                Err(error) if matches!(error.kind(), ErrorKind::Io(_)) => {
                    self.ended = true;
                    return Some(Err(whole_file(self.file.clone(), error)));
                }
                Err(error) => Err(Refusal::Csv(reason(&error))),
            };
            match label {
                Ok(Some(label)) => return Some(Ok(label)),
                Ok(None) => self.unlabelled += 1,
                Err(refusal) => {
                    return Some(Err(LabelFileError::Refused { file: self.file.clone(), line, refusal }));
                }
            }
        }
        None
    }
}

impl Columns {
    fn read(header: &StringRecord) -> Result<Self, String> {
        let mut columns = Self::default();
        for (place, name) in header.iter().enumerate() {
            if let Some(known) = COLUMNS.iter().position(|column| *column == name)
                && columns.places[known].replace(place).is_some()
            {
                return Err(format!("column {name} is there twice; remove one of them"));
            }
        }
        let has = |name: &str| columns.place(name).is_some();
        let placed = (has("bucket") && has("key")) || has("image");
        let rated = has("score") || has("votes");
        let wanted = |column: &str| match column {
            "bucket" | "key" | "image" => !placed,
            "score" | "votes" => !rated,
            _ => !has(column),
        };
        for name in header.iter().filter(|name| !COLUMNS.contains(name)) {
            let similar = |column: &&str| strsim::jaro_winkler(&name.to_lowercase(), column) >= SIMILAR;
            if let Some(meant) = COLUMNS.into_iter().filter(|column| wanted(column)).find(similar) {
                return Err(format!("column {name:?} is unknown; did you mean `{meant}`?"));
            }
        }
        if !rated {
            return Err("there is no column `score` or `votes`; name the columns in the first line".into());
        }
        if !placed {
            return Err(
                "there are no columns `bucket` and `key`, nor `image`; name the columns in the first \
                        line"
                    .into(),
            );
        }
        Ok(columns)
    }

    fn place(&self, name: &str) -> Option<usize> {
        COLUMNS.iter().position(|column| *column == name).and_then(|known| self.places[known])
    }

    /// What a record has in a column; nothing where the cell is empty. Keys and paths may begin or end with
    /// spaces, nothing else does.
    fn cell<'a>(&self, record: &'a StringRecord, name: &str) -> Option<&'a str> {
        let cell = record.get(self.place(name)?)?;
        let cell = if matches!(name, "key" | "image") { cell } else { cell.trim() };
        (!cell.is_empty()).then_some(cell)
    }
}

/// `5.5`, or several numbers, one per `[SCORE]`, with spaces, commas or semicolons between them, in brackets
/// or not.
fn numbers(column: &'static str, text: &str) -> Result<Vec<f64>, Refusal> {
    words(text)
        .map(|word| word.parse().map_err(|_| Refusal::NoNumber { column, text: word.to_owned() }))
        .collect()
}

/// Counts as [`numbers`] are; a list for each `[SCORE]` in brackets of its own.
fn counts(text: &str) -> Result<Vec<Vec<u64>>, Refusal> {
    let inner = text.strip_prefix("[[").and_then(|text| text.strip_suffix("]]"));
    let lists = match inner {
        Some(inner) => inner.split(']').collect(),
        None => vec![text],
    };
    let count = |word: &str| word.parse().map_err(|_| Refusal::Count(word.to_owned()));
    lists.into_iter().map(|list| words(list).map(count).collect()).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let between = |character: char| character.is_whitespace() || matches!(character, ',' | ';' | '[' | ']');
    text.split(between).filter(|word| !word.is_empty())
}

fn whole_file(file: String, error: csv::Error) -> LabelFileError {
    let message = reason(&error);
    match error.into_kind() {
        ErrorKind::Io(source) => LabelFileError::Read { file, source },
        ErrorKind::Utf8 { .. } => LabelFileError::Header { file, reason: format!("{message}; use UTF-8") },
        _ => LabelFileError::Read { file, source: io::Error::other(message) },
    }
}

/// The library's words without the place, which the message names already.
fn reason(error: &csv::Error) -> String {
    match error.kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("it has {len} fields, but the header {expected_len}")
        }
        ErrorKind::Utf8 { .. } => "it is no UTF-8".into(),
        _ => error.to_string().replace('\n', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    const SCALE: Scale = Scale { min_score: 1.0, max_score: 10.0, num_tokens: 10 };

    fn read(text: &str) -> Vec<Result<CsvLabel, String>> {
        CsvReader::new("a.csv", text.as_bytes(), SCALE)
            .unwrap()
            .map(|label| label.map_err(|error| error.to_string()))
            .collect()
    }

    fn header_error(text: &str) -> String {
        CsvReader::new("a.csv", text.as_bytes(), SCALE).err().unwrap().to_string()
    }

    #[test]
    fn columns_are_told_by_their_names() {
        let text = "\u{feff}score,rater,key,bucket,etag,labelled_at,note\r\n\
                    7.5,ann,\"a,\"\"b\"\".jpg\",photos,e1,2026-11-23T05:44:00Z,fine\r\n\
                    3, bob ,b.jpg,photos,,2026-11-23,\r\n";
        let labels = read(text);
        let first = labels[0].as_ref().unwrap();
        let object = LabelledObject { bucket: "photos".into(), key: "a,\"b\".jpg".into(), etag: "e1".into() };
        assert_eq!(first.place, Place::Object(object));
        assert_eq!((first.rater.as_deref(), first.line), (Some("ann"), 2));
        assert_eq!(first.opinion, Opinion::of_scores(vec![7.5]));
        assert_eq!(first.labelled_at, Some(datetime!(2026-11-23 5:44 UTC)));
        let second = labels[1].as_ref().unwrap();
        assert_eq!((second.rater.as_deref(), second.line), (Some("bob"), 3));
        assert_eq!(second.labelled_at, Some(datetime!(2026-11-23 0:00 UTC)));
    }

    #[test]
    fn an_image_may_stand_for_bucket_and_key() {
        let labels = read("image,score,note,bucket_url\nphotos/a.jpg,5,,\n");
        assert_eq!(labels[0].as_ref().unwrap().place, Place::Image("photos/a.jpg".into()));
    }

    #[test]
    fn votes_are_counts_by_bin() {
        for cell in ["0 0 0 0 1 3 0 0 0 0", "0;0;0;0;1;3;0;0;0;0", "\"[0, 0, 0, 0, 1, 3, 0, 0, 0, 0]\""] {
            let labels = read(&format!("bucket,key,votes\np,a,{cell}\n"));
            let opinion = &labels[0].as_ref().unwrap().opinion;
            assert_eq!((opinion.raters, opinion.scores[0]), (4, 5.75), "{cell}");
        }
        let two = "\"[[1,0,0,0,0,0,0,0,0,0],[0,0,0,0,0,0,0,0,0,1]]\"";
        let labels = read(&format!("image,votes\na,{two}\n"));
        assert_eq!(labels[0].as_ref().unwrap().opinion.scores, [1.0, 10.0]);
        let labels = read("image,score\na,1 10\n");
        assert_eq!(labels[0].as_ref().unwrap().opinion.scores, [1.0, 10.0]);
    }

    #[test]
    fn what_nobody_has_filled_in_is_counted_and_passed_over() {
        let mut reader =
            CsvReader::new("a.csv", &b"bucket,key,score\np,a,\np,b,5\np,c,  \n"[..], SCALE).unwrap();
        assert_eq!(reader.by_ref().map(|label| label.unwrap().line).collect::<Vec<_>>(), [3]);
        assert_eq!(reader.unlabelled(), 2);
    }

    #[test]
    fn a_line_that_is_refused_is_named_and_its_neighbours_are_read() {
        let text = "bucket,key,score,votes,labelled_at\n\
                    p,a,5,,\n\
                    p,b,11,,\n\
                    p,c,NaN,,\n\
                    p,d,five,,\n\
                    p,e,5,1 1,\n\
                    p,f,,1 1,\n\
                    p,,5,,\n\
                    p,h,5,,soon\n\
                    p,i,5\n\
                    p,\"j\nj\",5,,\n\
                    p,k,0,,\n";
        let results = read(text);
        let expected = [
            (3, "score 11 is outside 1 to 10"),
            (4, "score NaN is outside 1 to 10"),
            (5, "\"five\" in column score is no number"),
            (6, "both score and votes"),
            (7, "a distribution has 2 bins, but a score has 10"),
            (8, "key is missing"),
            (9, "\"soon\" is no time"),
            (10, "it has 3 fields, but the header 5"),
            (13, "score 0 is outside 1 to 10"),
        ];
        let refused: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        assert_eq!(refused.len(), expected.len(), "{refused:?}");
        for (error, (line, reason)) in refused.iter().zip(expected) {
            assert!(error.starts_with(&format!("a.csv, line {line}: ")), "{error}");
            assert!(error.contains(reason) && error.contains("; "), "{error}");
        }
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2);
    }

    #[test]
    fn lines_are_counted_as_an_editor_counts_them() {
        for end in ["\n", "\r\n"] {
            let text = ["bucket,key,score", "", "p,a,5", "p,\"b\"\"", "\",5", "", "p,c,5", ""].join(end);
            let lines: Vec<usize> = read(&text).into_iter().map(|label| label.unwrap().line).collect();
            assert_eq!(lines, [3, 4, 7], "{end:?}");
        }
    }

    #[test]
    fn a_header_that_makes_no_label_is_refused() {
        for (header, expected) in [
            ("bucket,key", "no column `score` or `votes`"),
            ("key,score", "no columns `bucket` and `key`, nor `image`"),
            ("bucket,key,Score", "did you mean `score`?"),
            ("bucket,key,score,labeled_at", "did you mean `labelled_at`?"),
            ("bucket,key,score,score", "column score is there twice"),
            ("", "no column"),
            ("bucket,key,scores", "did you mean `score`?"),
        ] {
            let error = header_error(header);
            assert!(error.starts_with("a.csv, line 1: ") && error.contains(expected), "{header}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = [b"bucket,key,score,votes\n", bytes.as_slice()].concat();
            let reader = CsvReader::new("a.csv", &text[..], SCALE).unwrap();
            prop_assert!(reader.count() <= bytes.len() + 1);
        }

        #[test]
        fn any_key_is_read_as_it_is(key in "[^\0\r\n]{1,40}", score in 1.0_f64..=10.0) {
            let mut text = Vec::new();
            let mut writer = csv::Writer::from_writer(&mut text);
            writer.write_record(["bucket", "key", "score"]).unwrap();
            writer.write_record(["p", key.as_str(), &score.to_string()]).unwrap();
            writer.flush().unwrap();
            drop(writer);
            let label = CsvReader::new("a.csv", &text[..], SCALE).unwrap().next().unwrap().unwrap();
            prop_assert_eq!(label.opinion.scores, [score]);
            match label.place {
                Place::Object(object) => prop_assert_eq!(object.key, key),
                Place::Image(_) => prop_assert!(false),
            }
        }
    }
}
