//! Splits JSON of any length into the values of its outermost array, without reading ahead.

use super::{LabelFileError, Refusal};
use std::io::BufRead;

/// One value, longer than any label: a bracket that is never closed would take in the rest of the file.
const LIMIT: usize = 16 << 20;

/// The values of an array, or values that follow one another as in JSON Lines, each with the line it begins
/// on. The values themselves are not checked.
pub(super) struct Elements<R> {
    file: String,
    reader: R,
    line: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Start,
    /// Within an array; whether a value has been read yet.
    Array {
        begun: bool,
    },
    Lines,
    End,
}

/// The bytes of one value.
pub(super) struct Element {
    pub line: usize,
    pub bytes: Vec<u8>,
}

impl<R: BufRead> Elements<R> {
    /// Of `reader`, which messages call `file`.
    pub fn new(file: String, reader: R) -> Self {
        Self { file, reader, line: 1, state: State::Start }
    }

    /// What messages call the input.
    pub fn file(&self) -> &str {
        &self.file
    }

    fn read(&mut self) -> Result<Option<Element>, LabelFileError> {
        let Some(mut next) = self.skip_space()? else {
            return match self.state {
                State::Start => Err(self.malformed("the file is empty; write an array of samples")),
                State::Array { .. } => {
                    Err(self.malformed("the array is never closed; the file is cut short"))
                }
                State::Lines | State::End => Ok(None),
            };
        };
        match (self.state, next) {
            (State::Start, b'[') => {
                self.reader.consume(1);
                self.state = State::Array { begun: false };
                return self.read();
            }
            (State::Start, _) => self.state = State::Lines,
            (State::Array { .. }, b']') => {
                self.reader.consume(1);
                if self.skip_space()?.is_some() {
                    return Err(self.malformed("something follows the end of the array; remove it"));
                }
                return Ok(None);
            }
            (State::Array { begun: true }, b',') => {
                self.reader.consume(1);
                match self.skip_space()? {
                    None => return self.read(),
                    Some(b']') => return Err(self.malformed("a comma ends the array; remove it")),
                    Some(first) => next = first,
                }
            }
            (State::Array { begun: true }, _) => {
                return Err(self.malformed("two samples without a comma between them; add it"));
            }
            (State::Array { begun: false } | State::Lines | State::End, _) => {}
        }
        if let State::Array { begun } = &mut self.state {
            *begun = true;
        }
        self.value(next).map(Some)
    }

    /// The first byte that is no white space; the reader stands before it.
    fn skip_space(&mut self) -> Result<Option<u8>, LabelFileError> {
        loop {
            let buffer = self.reader.fill_buf().map_err(|source| unreadable(&self.file, source))?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let found = buffer.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
            let skipped = found.unwrap_or(buffer.len());
            let next = found.map(|at| buffer[at]);
            self.line += lines(&buffer[..skipped]);
            self.reader.consume(skipped);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    /// The value that begins with `first`.
    fn value(&mut self, first: u8) -> Result<Element, LabelFileError> {
        let line = self.line;
        let mut bytes = Vec::new();
        let mut scan = Scan::new(first);
        loop {
            let buffer = self.reader.fill_buf().map_err(|source| unreadable(&self.file, source))?;
            if buffer.is_empty() {
                if scan.is_scalar() {
                    return Ok(Element { line, bytes });
                }
                return Err(LabelFileError::Malformed {
                    file: self.file.clone(),
                    line,
                    reason: "the sample that begins here is never closed; the file is cut short",
                });
            }
            let (taken, ended) = scan.take(buffer);
            bytes.extend_from_slice(&buffer[..taken]);
            self.line += lines(&buffer[..taken]);
            self.reader.consume(taken);
            if ended {
                return Ok(Element { line, bytes });
            }
            if bytes.len() > LIMIT {
                self.state = State::End;
                return Err(LabelFileError::Refused {
                    file: self.file.clone(),
                    line,
                    refusal: Refusal::TooLong { limit: LIMIT },
                });
            }
        }
    }

    fn malformed(&self, reason: &'static str) -> LabelFileError {
        LabelFileError::Malformed { file: self.file.clone(), line: self.line, reason }
    }
}

impl<R: BufRead> Iterator for Elements<R> {
    type Item = Result<Element, LabelFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::End {
            return None;
        }
        let read = self.read();
        if !matches!(read, Ok(Some(_))) {
            self.state = State::End;
        }
        read.transpose()
    }
}

/// Finds where one value ends, over as many buffers as it takes.
struct Scan {
    kind: Kind,
    begun: bool,
    depth: usize,
    in_text: bool,
    escaped: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// An object or an array.
    Nested,
    Text,
    Scalar,
}

impl Scan {
    fn new(first: u8) -> Self {
        let kind = match first {
            b'{' | b'[' => Kind::Nested,
            b'"' => Kind::Text,
            _ => Kind::Scalar,
        };
        Self { kind, begun: false, depth: 0, in_text: false, escaped: false }
    }

    fn is_scalar(&self) -> bool {
        self.kind == Kind::Scalar
    }

    /// How many bytes of `buffer` belong to the value, and whether it ends there.
    fn take(&mut self, buffer: &[u8]) -> (usize, bool) {
        for (index, &byte) in buffer.iter().enumerate() {
            if self.in_text {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_text = false;
                        if self.kind == Kind::Text {
                            return (index + 1, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match (self.kind, byte) {
                // Never before the byte it begins with, or nothing would ever be read.
                (Kind::Scalar, b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n') if self.begun => {
                    return (index, true);
                }
                (Kind::Scalar, _) => self.begun = true,
                (_, b'"') => self.in_text = true,
                (_, b'{' | b'[') => self.depth += 1,
                (_, b'}' | b']') => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (index + 1, true);
                    }
                }
                _ => {}
            }
        }
        (buffer.len(), false)
    }
}

fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

fn unreadable(file: &str, source: std::io::Error) -> LabelFileError {
    LabelFileError::Read { file: file.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::io::BufReader;

    fn split(text: &str) -> Result<Vec<(usize, String)>, String> {
        Elements::new("a.json".into(), text.as_bytes())
            .map(|element| match element {
                Ok(Element { line, bytes }) => Ok((line, String::from_utf8(bytes).unwrap())),
                Err(error) => Err(error.to_string()),
            })
            .collect()
    }

    #[test]
    fn each_value_has_the_line_it_begins_on() {
        let text = "[\n {\"a\":\n1},\n\n[2, [3]], \"x]\\\"\"\n, 4 ]\n";
        let expected = [(2, "{\"a\":\n1}"), (5, "[2, [3]]"), (5, "\"x]\\\"\""), (6, "4")];
        assert_eq!(split(text).unwrap(), expected.map(|(line, text)| (line, text.to_owned())));
        assert_eq!(split("{\"a\":1}\n{\"b\":2}").unwrap()[1], (2, "{\"b\":2}".into()));
        assert_eq!(split("[]").unwrap(), []);
    }

    #[test]
    fn a_file_that_is_cut_short_says_where() {
        for (text, expected) in [
            ("", "a.json, line 1: the file is empty"),
            ("[\n{}", "line 2: the array is never closed"),
            ("[{},\n", "line 2: the array is never closed"),
            ("[\n{\"a\":\n[1", "line 2: the sample that begins here is never closed"),
            ("[{}\n{}]", "line 2: two samples without a comma"),
            ("[{},]", "a comma ends the array"),
            ("[]\n x", "line 2: something follows the end"),
        ] {
            let error = split(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_bracket_that_is_never_closed_does_not_take_in_the_whole_file() {
        let endless = std::io::Read::chain(&b"[{\"a\": ["[..], std::io::repeat(b'1'));
        let mut elements = Elements::new("a.json".into(), BufReader::new(endless));
        let refused = elements.next().unwrap().err().unwrap();
        assert!(matches!(refused, LabelFileError::Refused { refusal: Refusal::TooLong { .. }, .. }));
        assert!(elements.next().is_none());
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[\\[\\]{},\"\\\\ a\n]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[\"\\[}a]{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_split_is_what_was_written(
            values in proptest::collection::vec(value(), 0..6),
            pretty in any::<bool>(),
            capacity in 1_usize..9,
        ) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&values),
                false => serde_json::to_string(&values),
            }.unwrap();
            let elements = Elements::new("a".into(), BufReader::with_capacity(capacity, text.as_bytes()));
            let mut read = Vec::new();
            for element in elements {
                read.push(serde_json::from_slice::<Value>(&element.unwrap().bytes).unwrap());
            }
            prop_assert_eq!(read, values);
        }

        #[test]
        fn any_bytes_come_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let elements = Elements::new("a".into(), &bytes[..]);
            prop_assert!(elements.count() <= bytes.len() + 1);
        }
    }
}
