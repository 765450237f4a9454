//! ROC4MLLM's score head: logits of the bin tokens to a score, and scores into the answer's text.

use super::config::ScoreHeadConfig;
use crate::score::ScoreValue;

/// What `[SCORE]` looks like in decoded text.
pub const SCORE_TOKEN: &str = "[SCORE]";

/// Reads scores from the logits at the positions that predict `[SCORE]`.
#[derive(Clone, Debug)]
pub struct ScoreHead {
    config: ScoreHeadConfig,
}

impl ScoreHead {
    pub fn new(config: ScoreHeadConfig) -> Self {
        Self { config }
    }

    /// Id of `[SCORE]`.
    pub fn score_id(&self) -> i64 {
        self.config.score_id
    }

    /// Bins of the distribution: as many of the last logits are read.
    pub fn bins(&self) -> i64 {
        self.config.num_tokens
    }

    /// `(min_score, max_score)`.
    pub fn range(&self) -> (f64, f64) {
        (self.config.min_score, self.config.max_score)
    }

    /// The score that the last `bins` logits of one position stand for, unrounded: the softmax over
    /// them, times equally spaced values over the range. Nothing where a logit is not finite.
    pub fn value(&self, logits: &[f32]) -> Option<ScoreValue> {
        let value = ScoreValue::from_distribution(
            softmax(logits)?,
            self.config.min_score,
            self.config.max_score,
        );
        (value.score.is_finite() && value.std.is_finite()).then_some(value)
    }
}

/// Probabilities of logits, rounded to f32 once at the end whatever type the model computes in.
/// Nothing where a logit is not finite.
fn softmax(logits: &[f32]) -> Option<Vec<f32>> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if logits.is_empty() || logits.iter().any(|logit| !logit.is_finite()) {
        return None;
    }
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    Some(weights.into_iter().map(|weight| (weight / total) as f32).collect())
}

/// Puts each score, rounded to `precision` decimals, in the place of its own `[SCORE]`.
pub fn fill_scores(text: &str, scores: &[ScoreValue], precision: u8) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut parts = text.split(SCORE_TOKEN);
    filled.push_str(parts.next().unwrap_or_default());
    let mut scores = scores.iter();
    for part in parts {
        match scores.next() {
            Some(value) => filled.push_str(&rounded(value.score, precision)),
            None => filled.push_str(SCORE_TOKEN),
        }
        filled.push_str(part);
    }
    filled
}

/// A number as Python's `str(round(value, precision))` writes it: half to even on the exact binary
/// value, no trailing zeros, at least one decimal, an exponent outside 1e-4 to 1e16.
pub fn rounded(value: f64, precision: u8) -> String {
    let fixed = format!("{value:.*}", usize::from(precision));
    // Parsing what was just printed gives the nearest double, whose shortest form `{:?}` prints.
    let shortest = format!("{:?}", fixed.parse().unwrap_or(value));
    match shortest.split_once('e') {
        None => shortest,
        Some((digits, exponent)) => {
            let (sign, size) = match exponent.strip_prefix('-') {
                Some(size) => ('-', size),
                None => ('+', exponent),
            };
            format!("{}e{sign}{size:0>2}", digits.trim_end_matches(".0"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> ScoreHead {
        ScoreHead::new(ScoreHeadConfig {
            score_id: 7,
            output_first_id: None,
            output_last_id: None,
            num_tokens: 4,
            min_score: 1.0,
            max_score: 10.0,
        })
    }

    fn value(score: f64) -> ScoreValue {
        ScoreValue { score, distribution: Vec::new(), std: 0.0 }
    }

    #[test]
    fn equal_logits_are_worth_the_middle() {
        let value = head().value(&[3.0; 4]).unwrap();
        assert_eq!(value.distribution, [0.25; 4]);
        assert_eq!(value.score, 5.5);
    }

    #[test]
    fn logits_that_are_not_finite_give_no_score() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(head().value(&[0.0, broken, 0.0, 0.0]).is_none());
        }
        assert!(head().value(&[]).is_none());
    }

    #[test]
    fn each_score_takes_its_own_place() {
        let scores = [value(5.37024), value(2.0)];
        assert_eq!(fill_scores("a [SCORE] b [SCORE] . ", &scores, 4), "a 5.3702 b 2.0 . ");
        assert_eq!(fill_scores("[SCORE][SCORE][SCORE]", &scores, 0), "5.02.0[SCORE]");
        assert_eq!(fill_scores("none", &scores, 4), "none");
    }

    #[test]
    fn numbers_look_as_in_python() {
        // Expected values are what CPython 3.11 prints for str(round(value, precision)).
        for (value, precision, expected) in [
            (5.370201587677002, 0, "5.0"),
            (5.370201587677002, 1, "5.4"),
            (5.370201587677002, 4, "5.3702"),
            (5.370201587677002, 10, "5.3702015877"),
            (3.2040, 4, "3.204"),
            (0.5, 0, "0.0"),
            (1.5, 0, "2.0"),
            (2.5, 0, "2.0"),
            (2.675, 2, "2.67"),
            (0.00005, 5, "5e-05"),
            (0.0001, 4, "0.0001"),
            (-0.00001, 4, "-0.0"),
            (123456.789, 1, "123456.8"),
            (1e16, 2, "1e+16"),
            (1.25e-7, 12, "1.25e-07"),
        ] {
            assert_eq!(rounded(value, precision), expected, "{value} to {precision}");
        }
    }

    proptest! {
        #[test]
        fn a_softmax_sums_to_one_and_ignores_a_shift(
            logits in proptest::collection::vec(-30.0_f32..30.0, 4),
            shift in -50.0_f32..50.0,
        ) {
            let plain = head().value(&logits).unwrap();
            prop_assert!((plain.distribution.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            let shifted: Vec<f32> = logits.iter().map(|logit| logit + shift).collect();
            prop_assert!((head().value(&shifted).unwrap().score - plain.score).abs() < 1e-4);
        }
    }
}
