//! Dead letters: the input record as it came, with headers that say why one item of it failed.

use super::input::ITEM_HEADER;
use super::{Header, Position, WireRecord, header_text};
use crate::fault::ItemError;
use std::fmt;
use std::str::FromStr;

/// The prefix of every header added here.
const PREFIX: &str = "dlq-";
/// How often a record has been put back.
pub const REDRIVE_COUNT_HEADER: &str = "dlq-redrive-count";

/// Set to `origin` where the original was too large to be carried: it lies where `dlq-origin-*` says.
pub const POINTER_HEADER: &str = "dlq-pointer";

/// What kind of end the item came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeadLetterClass {
    /// Permanently bad: putting it back unchanged changes nothing.
    Rejected,
    /// A passing fault that outlasted its deadline: worth putting back.
    Dead,
    /// The model or the process that works on it falls over it.
    Poison,
}

impl DeadLetterClass {
    /// The value of `dlq-class`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Dead => "dead",
            Self::Poison => "poison",
        }
    }
}

impl fmt::Display for DeadLetterClass {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A word that is no class of dead letters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no class of dead letters: expected rejected, dead or poison")]
pub struct UnknownClass(pub String);

impl FromStr for DeadLetterClass {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        [Self::Rejected, Self::Dead, Self::Poison]
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| UnknownClass(text.to_owned()))
    }
}

/// The input record as it was consumed.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    pub key: Option<&'a [u8]>,
    pub payload: Option<&'a [u8]>,
    pub headers: &'a [Header],
}

/// Why the item failed, and in whose hands.
#[derive(Clone, Debug)]
pub struct Cause<'a> {
    pub class: DeadLetterClass,
    pub error: &'a ItemError,
    pub position: &'a Position,
    pub attempts: u32,
    /// Milliseconds since the Unix epoch.
    pub first_failed_ms: i64,
    pub group: &'a str,
    pub worker_version: &'a str,
    pub model_version: &'a str,
}

/// The dead letter for one bad item: original key, bytes and headers, plus `dlq-*` headers.
///
/// `dlq-*` headers of an earlier round are replaced; only the redrive count goes on. Where the whole
/// would be larger than `limit` bytes, the letter points at the original instead of carrying it.
pub fn dead_letter(original: Original<'_>, cause: &Cause<'_>, limit: usize) -> WireRecord {
    let whole = whole(original, cause);
    if whole.encoded_len() <= limit {
        return whole;
    }
    let mut headers = whole.headers;
    headers.retain(|header| header.name.starts_with(PREFIX));
    headers.push(Header::new(POINTER_HEADER, "origin"));
    WireRecord { key: None, payload: None, headers }
}

fn whole(original: Original<'_>, cause: &Cause<'_>) -> WireRecord {
    let mut headers: Vec<Header> =
        original.headers.iter().filter(|header| !header.name.starts_with(PREFIX)).cloned().collect();
    let Position { topic, partition, offset, item } = cause.position;
    let added: [(&str, String); 14] = [
        ("class", cause.class.as_str().to_owned()),
        ("code", cause.error.code.to_string()),
        ("stage", cause.error.stage.to_string()),
        ("message", cause.error.message.clone()),
        ("attempts", cause.attempts.to_string()),
        ("first-failed-ms", cause.first_failed_ms.to_string()),
        ("origin-topic", topic.clone()),
        ("origin-partition", partition.to_string()),
        ("origin-offset", offset.to_string()),
        ("item", item.to_string()),
        ("group", cause.group.to_owned()),
        ("worker-version", cause.worker_version.to_owned()),
        ("model-version", cause.model_version.to_owned()),
        ("redrive-count", redrive_count(original.headers).to_string()),
    ];
    headers.extend(added.into_iter().map(|(name, value)| Header::new(format!("{PREFIX}{name}"), value)));
    WireRecord {
        key: original.key.map(<[u8]>::to_vec),
        payload: original.payload.map(<[u8]>::to_vec),
        headers,
    }
}

/// What a dead letter says of itself, as far as putting it back needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub class: DeadLetterClass,
    /// As written by the release that wrote it, which may know more codes than this one.
    pub code: String,
    /// Where the record, and which item of it, was read.
    pub origin: Position,
    pub redrive_count: u32,
    /// The letter does not carry the original: it lies where `origin` says, unless retention has
    /// deleted it.
    pub points: bool,
}

/// Why a record can't be put back as a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header {PREFIX}{header} is missing or unreadable")]
pub struct NoDeadLetter {
    pub header: &'static str,
}

impl Label {
    /// Reads the `dlq-*` headers.
    ///
    /// # Errors
    /// Names the first header that isn't as [`dead_letter`] writes it; only a missing redrive count
    /// is none.
    pub fn read(headers: &[Header]) -> Result<Self, NoDeadLetter> {
        let text = |header: &'static str| {
            header_text(headers, &format!("{PREFIX}{header}")).ok_or(NoDeadLetter { header })
        };
        fn parsed<T: FromStr>(header: &'static str, text: &str) -> Result<T, NoDeadLetter> {
            text.parse().map_err(|_| NoDeadLetter { header })
        }
        let redrive_count = match header_text(headers, REDRIVE_COUNT_HEADER) {
            Some(count) => parsed("redrive-count", count)?,
            None => 0,
        };
        Ok(Self {
            class: parsed("class", text("class")?)?,
            code: text("code")?.to_owned(),
            origin: Position {
                topic: text("origin-topic")?.to_owned(),
                partition: parsed("origin-partition", text("origin-partition")?)?,
                offset: parsed("origin-offset", text("origin-offset")?)?,
                item: parsed("item", text("item")?)?,
            },
            redrive_count,
            points: header_text(headers, POINTER_HEADER).is_some(),
        })
    }
}

/// The record to put back: the key, bytes and headers of `original`, which is the letter itself unless it
/// points; the item that it is for; and the redrive count one higher.
pub fn redriven(original: &WireRecord, label: &Label) -> WireRecord {
    let mut headers: Vec<Header> =
        original.headers.iter().filter(|header| !header.name.starts_with(PREFIX)).cloned().collect();
    headers.push(Header::new(ITEM_HEADER, label.origin.item.to_string()));
    headers.push(Header::new(REDRIVE_COUNT_HEADER, label.redrive_count.saturating_add(1).to_string()));
    WireRecord { key: original.key.clone(), payload: original.payload.clone(), headers }
}

/// How often the record has been put back already; an unreadable count is none.
pub fn redrive_count(headers: &[Header]) -> u32 {
    header_text(headers, REDRIVE_COUNT_HEADER).and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{ErrorCode, Stage};
    use crate::object::ObjectRef;
    use crate::record::input::{Item, parse};

    fn position(item: u32) -> Position {
        Position { topic: "uploads".into(), partition: 2, offset: 40, item }
    }

    fn cause<'a>(error: &'a ItemError, position: &'a Position) -> Cause<'a> {
        Cause {
            class: DeadLetterClass::Rejected,
            error,
            position,
            attempts: 1,
            first_failed_ms: 1_700_000_000_000,
            group: "scorer",
            worker_version: "0.1.0",
            model_version: "sha256:ab",
        }
    }

    #[test]
    fn the_original_is_kept_byte_for_byte() {
        let headers = vec![
            Header { name: "odd".into(), value: Some(vec![0xff, 0xfe]) },
            Header { name: "none".into(), value: None },
        ];
        let original = Original { key: Some(&[0, 1]), payload: Some(&[0xff]), headers: &headers };
        let error = ItemError::new(ErrorCode::MalformedEvent, Stage::Parse, "no JSON");
        let letter = dead_letter(original, &cause(&error, &position(0)), usize::MAX);
        assert_eq!(letter.key, Some(vec![0, 1]));
        assert_eq!(letter.payload, Some(vec![0xff]));
        assert_eq!(letter.headers[..2], headers[..]);
    }

    #[test]
    fn a_letter_above_the_limit_points_at_the_original() {
        let payload = vec![b'x'; 50_000];
        let headers = vec![Header::new("mine", vec![b'y'; 20_000])];
        let original = Original { key: Some(&payload), payload: Some(&payload), headers: &headers };
        let error = ItemError::new(ErrorCode::MalformedEvent, Stage::Parse, "no JSON");
        let letter = dead_letter(original, &cause(&error, &position(0)), 10_000);
        assert!(letter.encoded_len() < 10_000);
        assert_eq!((&letter.key, &letter.payload), (&None, &None));
        assert_eq!(header_text(&letter.headers, POINTER_HEADER), Some("origin"));
        assert_eq!(header_text(&letter.headers, "dlq-origin-offset"), Some("40"));
        assert!(Label::read(&letter.headers).unwrap().points);
        let carried = dead_letter(original, &cause(&error, &position(0)), 200_000);
        assert_eq!(header_text(&carried.headers, POINTER_HEADER), None);
    }

    #[test]
    fn every_documented_header_is_there_once() {
        let error = ItemError::new(ErrorCode::ImageTruncated, Stage::Decode, "a.jpg: ends early");
        let original = Original { key: None, payload: Some(b"{}"), headers: &[] };
        let letter = dead_letter(original, &cause(&error, &position(3)), usize::MAX);
        for (name, value) in [
            ("dlq-class", "rejected"),
            ("dlq-code", "image_truncated"),
            ("dlq-stage", "decode"),
            ("dlq-message", "a.jpg: ends early"),
            ("dlq-attempts", "1"),
            ("dlq-first-failed-ms", "1700000000000"),
            ("dlq-origin-topic", "uploads"),
            ("dlq-origin-partition", "2"),
            ("dlq-origin-offset", "40"),
            ("dlq-item", "3"),
            ("dlq-group", "scorer"),
            ("dlq-worker-version", "0.1.0"),
            ("dlq-model-version", "sha256:ab"),
            ("dlq-redrive-count", "0"),
        ] {
            assert_eq!(header_text(&letter.headers, name), Some(value), "{name}");
            assert_eq!(letter.headers.iter().filter(|header| header.name == name).count(), 1, "{name}");
        }
    }

    #[test]
    fn a_second_round_replaces_the_first_and_keeps_the_count() {
        let error = ItemError::new(ErrorCode::ImageTruncated, Stage::Decode, "first");
        let original = Original { key: None, payload: Some(b"{}"), headers: &[] };
        let mut once = dead_letter(original, &cause(&error, &position(0)), usize::MAX);
        once.headers.retain(|header| header.name != REDRIVE_COUNT_HEADER);
        once.headers.push(Header::new(REDRIVE_COUNT_HEADER, "2"));
        let again = ItemError::new(ErrorCode::Unsupported, Stage::Decode, "second");
        let original = Original { key: None, payload: Some(b"{}"), headers: &once.headers };
        let twice = dead_letter(original, &cause(&again, &position(0)), usize::MAX);
        assert_eq!(header_text(&twice.headers, "dlq-message"), Some("second"));
        assert_eq!(redrive_count(&twice.headers), 2);
        assert_eq!(twice.headers.len(), once.headers.len());
    }

    #[test]
    fn a_class_is_the_same_word_everywhere() {
        for class in [DeadLetterClass::Rejected, DeadLetterClass::Dead, DeadLetterClass::Poison] {
            assert_eq!(class.to_string().parse(), Ok(class));
        }
        assert!("Dead".parse::<DeadLetterClass>().is_err());
    }

    #[test]
    fn what_is_put_back_is_the_original_and_the_count_goes_up_each_time() {
        let error = ItemError::new(ErrorCode::RetryExhausted, Stage::Fetch, "too long");
        let headers = vec![Header::new("traceparent", "00-ab"), Header { name: "none".into(), value: None }];
        let mut record = WireRecord { key: Some(vec![0xff]), payload: Some(b"{}".to_vec()), headers };
        let first = record.clone();
        for round in 1..=3_u32 {
            let original = Original {
                key: record.key.as_deref(),
                payload: record.payload.as_deref(),
                headers: &record.headers,
            };
            let letter = dead_letter(original, &cause(&error, &position(4)), usize::MAX);
            let label = Label::read(&letter.headers).unwrap();
            assert_eq!((&label.origin, label.redrive_count, label.points), (&position(4), round - 1, false));
            assert_eq!((label.class, label.code.as_str()), (DeadLetterClass::Rejected, "retry_exhausted"));
            record = redriven(&letter, &label);
            assert_eq!((&record.key, &record.payload), (&first.key, &first.payload));
            assert_eq!(record.headers[..2], first.headers[..]);
            assert_eq!(header_text(&record.headers, ITEM_HEADER), Some("4"));
            assert_eq!(redrive_count(&record.headers), round);
            assert_eq!(record.headers.len(), 4);
        }
    }

    #[test]
    fn a_record_that_is_no_dead_letter_says_which_header_it_lacks() {
        assert_eq!(Label::read(&[]), Err(NoDeadLetter { header: "class" }));
        let headers = [Header::new("dlq-class", "odd")];
        assert_eq!(Label::read(&headers), Err(NoDeadLetter { header: "class" }));
        let headers = [Header::new("dlq-redrive-count", "many")];
        assert_eq!(Label::read(&headers), Err(NoDeadLetter { header: "redrive-count" }));
    }

    #[test]
    fn a_letter_put_back_is_read_for_its_item_alone() {
        let payload = br#"{"Records":[
            {"eventName":"ObjectCreated:Put","s3":{"bucket":{"name":"b"},"object":{"key":"good.jpg"}}},
            {"eventName":"ObjectCreated:Put","s3":{"bucket":{"name":"b"},"object":{"key":"bad.jpg"}}}]}"#;
        let error = ItemError::new(ErrorCode::ImageTruncated, Stage::Decode, "ends early");
        let original = Original { key: None, payload: Some(payload), headers: &[] };
        let letter = dead_letter(original, &cause(&error, &position(1)), usize::MAX);
        let parsed = parse(letter.payload.as_deref(), &letter.headers, &[]);
        assert_eq!(parsed.items.len(), 1);
        assert_eq!(parsed.items[0].index, 1);
        assert_eq!(parsed.items[0].outcome, Ok(Item::Score(ObjectRef::new("b", "bad.jpg"))));
    }
}
