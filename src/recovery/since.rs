//! Points in time as people type them. Pure.

use std::str::FromStr;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime};

/// From when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    At(OffsetDateTime),
    Ago(Duration),
}

/// A text that is no point in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no point in time: write 2026-11-23 (UTC), 2026-11-23T05:44:00Z, or how long ago as 30s, 90m, 6h or 7d"
)]
pub struct NoTime(String);

impl Since {
    /// The moment itself.
    pub fn resolve(self, now: OffsetDateTime) -> OffsetDateTime {
        match self {
            Self::At(moment) => moment,
            Self::Ago(duration) => now.checked_sub(duration).unwrap_or(OffsetDateTime::UNIX_EPOCH),
        }
    }
}

/// Milliseconds since the Unix epoch, as Kafka stamps records.
pub fn milliseconds(moment: OffsetDateTime) -> i64 {
    moment.unix_timestamp() * 1000 + i64::from(moment.millisecond())
}

impl FromStr for Since {
    type Err = NoTime;

    fn from_str(text: &str) -> Result<Self, NoTime> {
        let no_time = || NoTime(text.to_owned());
        if let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) {
            return Ok(Self::At(moment));
        }
        if let Ok(day) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
            return Ok(Self::At(day.midnight().assume_utc()));
        }
        let (count, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return Err(no_time()),
        };
        let count: u32 = count.parse().map_err(|_| no_time())?;
        Ok(Self::Ago(Duration::seconds(i64::from(count) * seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    #[test]
    fn every_documented_form_is_read() {
        let now = datetime!(2026-11-23 12:00 UTC);
        let at = |text: &str| text.parse::<Since>().unwrap().resolve(now);
        assert_eq!(at("2026-11-20"), datetime!(2026-11-20 0:00 UTC));
        assert_eq!(at("2026-11-20T05:44:00Z"), datetime!(2026-11-20 05:44 UTC));
        assert_eq!(at("2026-11-20T05:44:00.5+02:00"), datetime!(2026-11-20 03:44:00.5 UTC));
        assert_eq!(at("90m"), datetime!(2026-11-23 10:30 UTC));
        assert_eq!(at("7d"), datetime!(2026-11-16 12:00 UTC));
        assert_eq!(milliseconds(datetime!(1970-01-01 00:00:01.25 UTC)), 1_250);
    }

    #[test]
    fn others_are_refused_with_the_forms_there_are() {
        for text in ["", "yesterday", "5", "m", "-5m", "2026-13-01", "5w", "5ü"] {
            assert!(text.parse::<Since>().unwrap_err().to_string().contains("6h"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*", digits in "[0-9]{0,12}[smhdx]") {
            let now = datetime!(2026-11-23 12:00 UTC);
            for text in [text, digits] {
                if let Ok(since) = text.parse::<Since>() {
                    since.resolve(now);
                }
            }
        }
    }
}
