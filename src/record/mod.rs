//! What is read from and written to Kafka topics, as bytes and types. Pure: no I/O, no clock but
//! the caller's.
//!
//! [`input`] reads every envelope an object notification comes in, [`output`] writes the output
//! record, [`dead_letter`] the record of an item that can't be scored, and [`trace`] carries W3C
//! trace context from one to the other.

pub mod dead_letter;
pub mod input;
pub mod output;
pub mod trace;

/// One header of a record: its name, and a value that may be null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    pub value: Option<Vec<u8>>,
}

impl Header {
    /// A header with a value.
    pub fn new(name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), value: Some(value.into()) }
    }
}

/// The last header of that name, as text; `None` where there is none or it is no UTF-8.
pub fn header_text<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    let header = headers.iter().rev().find(|header| header.name == name)?;
    std::str::from_utf8(header.value.as_deref()?).ok()
}

/// A record ready to be produced: everything but its topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WireRecord {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<Header>,
}

impl WireRecord {
    /// Bytes the record takes, near enough to compare with a broker's limit: what Kafka's record
    /// format adds is bounded by 64 bytes and 10 a header.
    pub fn encoded_len(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|header| header.name.len() + header.value.as_ref().map_or(0, Vec::len) + 10)
            .sum();
        self.key.as_ref().map_or(0, Vec::len) + self.payload.as_ref().map_or(0, Vec::len) + headers + 64
    }
}

/// Where in Kafka an item was read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Position {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Index of the item within the record.
    pub item: u32,
}
