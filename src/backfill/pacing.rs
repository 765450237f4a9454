//! How fast a backfill goes. Pure: time is an argument.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A batch is about this much time's worth.
const BATCH_SECONDS: f64 = 0.5;
/// A killed run repeats a batch at most, so it stays small.
const MAX_BATCH: usize = 500;

/// Objects a second, above zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    per_second: f64,
}

/// A text that is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no rate: write a number above 0 as 50/s, 600/min or 10000/h")]
pub struct NoRate(String);

impl Rate {
    /// Whatever Kafka takes.
    pub const FASTEST: Self = Self { per_second: 1e6 };

    /// Objects enqueued and noted together.
    pub fn batch(self) -> usize {
        ((self.per_second * BATCH_SECONDS) as usize).clamp(1, MAX_BATCH)
    }

    fn time_for(self, count: usize) -> Duration {
        Duration::try_from_secs_f64(count as f64 / self.per_second).unwrap_or(Duration::MAX)
    }
}

impl FromStr for Rate {
    type Err = NoRate;

    fn from_str(text: &str) -> Result<Self, NoRate> {
        let no_rate = || NoRate(text.to_owned());
        let (count, unit) = text.split_once('/').ok_or_else(no_rate)?;
        let seconds = match unit {
            "s" => 1.0,
            "min" => 60.0,
            "h" => 3_600.0,
            _ => return Err(no_rate()),
        };
        let per_second = count.parse::<f64>().map_err(|_| no_rate())? / seconds;
        // Outside of this it is a typing mistake.
        if (0.001..=1e6).contains(&per_second) { Ok(Self { per_second }) } else { Err(no_rate()) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/s", self.per_second)
    }
}

/// When the next batch may go. What was missed while something else was slow is not caught up on.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rate: Rate,
    next: Instant,
}

impl Pace {
    /// The first batch may go at once.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, next: now }
    }

    /// How long a batch of `count` has to wait at `now`; it counts as gone then.
    pub fn admit(&mut self, now: Instant, count: usize) -> Duration {
        let at = self.next.max(now);
        let after = self.rate.time_for(count);
        self.next = at.checked_add(after).unwrap_or(at);
        at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_are_read_by_their_unit() {
        let rate = |text: &str| text.parse::<Rate>().unwrap().per_second;
        assert_eq!((rate("50/s"), rate("600/min"), rate("0.5/s"), rate("7200/h")), (50.0, 10.0, 0.5, 2.0));
        for text in ["", "50", "0/s", "-1/s", "NaN/s", "inf/s", "5/day", "/s", "1e9/s", "1/s/s"] {
            assert!(text.parse::<Rate>().unwrap_err().to_string().contains("600/min"), "{text}");
        }
    }

    #[test]
    fn batches_are_half_a_second_and_bounded() {
        let batch = |text: &str| text.parse::<Rate>().unwrap().batch();
        assert_eq!((batch("1/min"), batch("100/s"), batch("100000/s")), (1, 50, 500));
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_has_more_than_the_rate_and_a_batch(
            per_second in 0.5_f64..5_000.0,
            steps in proptest::collection::vec((0_u64..400, 1_usize..500), 1..60),
        ) {
            let rate = Rate { per_second };
            let begin = Instant::now();
            let mut pace = Pace::new(rate, begin);
            let mut now = begin;
            let mut sent: Vec<(Duration, usize)> = Vec::new();
            for (busy_ms, count) in steps {
                now += Duration::from_millis(busy_ms);
                now += pace.admit(now, count);
                sent.push((now - begin, count));
                for (first, (from, _)) in sent.iter().enumerate() {
                    let before_last: usize = sent[first..sent.len() - 1].iter().map(|(_, count)| count).sum();
                    let allowed = (now - begin - *from).as_secs_f64() * per_second + 1e-3;
                    prop_assert!(before_last as f64 <= allowed, "{before_last} > {allowed}");
                }
            }
        }
    }
}
