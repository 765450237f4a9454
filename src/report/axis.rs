//! Round ticks, and where values lie between them.

/// The next of 1, 2 and 5 times a power of ten.
pub fn round_up(step: f64) -> f64 {
    let magnitude = 10_f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * magnitude)
        .find(|candidate| *candidate >= step * (1.0 - 1e-9))
        .unwrap_or(10.0 * magnitude)
}

/// Decimals that tell two multiples of `step` apart.
pub fn decimals(step: f64) -> usize {
    (0..9)
        .find(|digits| {
            let scaled = step * 10_f64.powi(*digits);
            (scaled - scaled.round()).abs() < 1e-6 * scaled
        })
        .unwrap_or(9) as usize
}

/// A stretch of numbers that begins and ends at a tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    pub low: f64,
    pub high: f64,
    pub step: f64,
}

impl Axis {
    /// About this many intervals that hold all of `values`; from 0 to 1 where there are none.
    pub fn around(values: impl IntoIterator<Item = f64>, intervals: f64) -> Self {
        let finite = values.into_iter().filter(|value| value.is_finite());
        let (low, high) = finite
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return Self { low: 0.0, high: 1.0, step: 0.5 };
        }
        // One value alone still needs a stretch around it, and one that numbers of its size can divide.
        let smallest = 1e-9 * low.abs().max(high.abs()).max(1e-3);
        let step = round_up(((high - low) / intervals).max(smallest));
        let first = (low / step + 1e-9).floor() * step;
        let last = (high / step - 1e-9).ceil() * step;
        Self { low: first, high: if last > first { last } else { first + step }, step }
    }

    /// Where a value lies: 0 at the low end, 1 at the high one.
    pub fn position(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// The ticks with their labels.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let decimals = decimals(self.step);
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count)
            .map(|index| {
                let value = self.low + self.step * index as f64;
                // Not "-0.0".
                let value = if value.abs() < self.step / 2.0 { 0.0 } else { value };
                (value, format!("{value:.decimals$}"))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn steps_are_round() {
        assert_eq!([0.07, 0.2, 0.21, 3.0, 7.0].map(round_up), [0.1, 0.2, 0.5, 5.0, 10.0]);
        assert_eq!([0.25, 0.5, 1.0, 20.0].map(decimals), [2, 1, 0, 0]);
    }

    #[test]
    fn ticks_say_what_they_are() {
        let labels = |values: &[f64]| -> Vec<String> {
            let ticks = Axis::around(values.iter().copied(), 4.0).ticks();
            ticks.into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(&[-0.4, 0.55]), ["-0.5", "0.0", "0.5", "1.0"]);
        assert_eq!(labels(&[1.0, 5.0]), ["1", "2", "3", "4", "5"]);
        assert_eq!(labels(&[]), ["0.0", "0.5", "1.0"]);
    }

    proptest! {
        #[test]
        fn an_axis_holds_its_values_in_a_few_ticks(
            values in proptest::collection::vec(-1e4_f64..1e4, 1..20),
            intervals in 2.0_f64..12.0,
        ) {
            let axis = Axis::around(values.iter().copied(), intervals);
            for value in values {
                let position = axis.position(value);
                prop_assert!((-1e-6..=1.0 + 1e-6).contains(&position), "{axis:?} {value} {position}");
            }
            prop_assert!((2..=16).contains(&axis.ticks().len()), "{axis:?}");
        }
    }
}
