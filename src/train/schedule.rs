//! The learning rate of each step.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// What the learning rate does after its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Falls along half a cosine, to zero one step after the last
    #[default]
    Cosine,
    /// Stays as it is
    Constant,
}

/// The learning rate over a whole run: transformers' `get_cosine_schedule_with_warmup` and
/// `get_constant_schedule_with_warmup`, with the warm-up that its `Trainer` derives from a ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    schedule: LrSchedule,
    peak: f64,
    total_steps: u64,
    warmup_steps: u64,
}

impl LearningRate {
    /// For a run of `total_steps`, of which `warmup_ratio`, from 0 to 1 and rounded up to whole
    /// steps, rise to `peak` in a straight line.
    pub fn new(schedule: LrSchedule, peak: f64, total_steps: u64, warmup_ratio: f64) -> Self {
        let warmup_steps = (total_steps as f64 * warmup_ratio).ceil() as u64;
        Self { schedule, peak, total_steps, warmup_steps }
    }

    /// The rate that the step after `done` others is taken with.
    ///
    /// As in the reference, a warm-up starts from zero, so its very first step changes nothing.
    pub fn after(&self, done: u64) -> f64 {
        if done < self.warmup_steps {
            return self.peak * (done as f64 / self.warmup_steps as f64);
        }
        match self.schedule {
            LrSchedule::Constant => self.peak,
            LrSchedule::Cosine => {
                let falling = self.total_steps.saturating_sub(self.warmup_steps).max(1);
                let progress = (done - self.warmup_steps) as f64 / falling as f64;
                self.peak * (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Total steps, warm-up ratio, peak, steps done, and the rate that transformers 4.31.0 gives:
    /// `_get_cosine_schedule_with_warmup_lr_lambda` with `math.ceil(total * ratio)` warm-up steps.
    const COSINE: &[(u64, f64, f64, u64, f64)] = &[
        (10, 0.0, 1.0, 0, 1.0),
        (10, 0.0, 1.0, 1, 0.9755282581475768),
        (10, 0.0, 1.0, 2, 0.9045084971874737),
        (10, 0.0, 1.0, 3, 0.7938926261462366),
        (10, 0.0, 1.0, 5, 0.5),
        (10, 0.0, 1.0, 8, 0.09549150281252633),
        (10, 0.0, 1.0, 9, 0.024471741852423234),
        (17, 0.03, 2e-05, 0, 0.0),
        (17, 0.03, 2e-05, 1, 2e-05),
        (17, 0.03, 2e-05, 2, 1.9807852804032306e-05),
        (17, 0.03, 2e-05, 5, 1.7071067811865477e-05),
        (17, 0.03, 2e-05, 8, 1.1950903220161286e-05),
        (17, 0.03, 2e-05, 15, 7.612046748871327e-07),
        (17, 0.03, 2e-05, 16, 1.921471959676957e-07),
        (100, 0.07, 0.001, 0, 0.0),
        (100, 0.07, 0.001, 1, 0.000125),
        (100, 0.07, 0.001, 2, 0.00025),
        (100, 0.07, 0.001, 7, 0.000875),
        (100, 0.07, 0.001, 8, 0.001),
        (100, 0.07, 0.001, 9, 0.000999708511183087),
        (100, 0.07, 0.001, 33, 0.0008286018394089862),
        (100, 0.07, 0.001, 50, 0.0005680833245481234),
        (100, 0.07, 0.001, 98, 1.165615404730369e-06),
        (100, 0.07, 0.001, 99, 2.9148881691298814e-07),
        (7, 1.0, 1.0, 0, 0.0),
        (7, 1.0, 1.0, 1, 0.14285714285714285),
        (7, 1.0, 1.0, 2, 0.2857142857142857),
        (7, 1.0, 1.0, 3, 0.42857142857142855),
        (7, 1.0, 1.0, 5, 0.7142857142857143),
        (7, 1.0, 1.0, 6, 0.8571428571428571),
        (1, 0.03, 1.0, 0, 0.0),
        (1000, 0.03, 0.0002, 0, 0.0),
        (1000, 0.03, 0.0002, 1, 6.666666666666667e-06),
        (1000, 0.03, 0.0002, 2, 1.3333333333333333e-05),
        (1000, 0.03, 0.0002, 29, 0.00019333333333333333),
        (1000, 0.03, 0.0002, 30, 0.0002),
        (1000, 0.03, 0.0002, 31, 0.00019999947552365961),
        (1000, 0.03, 0.0002, 333, 0.00015559068033097582),
        (1000, 0.03, 0.0002, 500, 0.00010485622221144484),
        (1000, 0.03, 0.0002, 998, 2.0978998601206556e-09),
        (1000, 0.03, 0.0002, 999, 5.244763404133046e-10),
        (3, 0.5, 1.0, 0, 0.0),
        (3, 0.5, 1.0, 1, 0.5),
        (3, 0.5, 1.0, 2, 1.0),
    ];

    #[test]
    fn cosine_is_that_of_transformers() {
        for &(total, ratio, peak, done, expected) in COSINE {
            let rate = LearningRate::new(LrSchedule::Cosine, peak, total, ratio).after(done);
            assert!((rate - expected).abs() <= 1e-9 * peak, "{total} {ratio} {done}: {rate}, not {expected}");
        }
    }

    proptest! {
        #[test]
        fn every_rate_lies_between_zero_and_the_peak(
            total in 1_u64..5000,
            ratio in 0.0_f64..=1.0,
            peak in 1e-8_f64..10.0,
            cosine in any::<bool>(),
        ) {
            let schedule = if cosine { LrSchedule::Cosine } else { LrSchedule::Constant };
            let rate = LearningRate::new(schedule, peak, total, ratio);
            let rates: Vec<f64> = (0..total).map(|done| rate.after(done)).collect();
            prop_assert!(rates.iter().all(|rate| (0.0..=peak).contains(rate)));
            let warmup = (total as f64 * ratio).ceil() as usize;
            let (rising, rest) = rates.split_at(warmup);
            prop_assert!(rising.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(rest.first().is_none_or(|&first| first == peak));
            match schedule {
                LrSchedule::Cosine => prop_assert!(rest.windows(2).all(|pair| pair[0] > pair[1])),
                LrSchedule::Constant => prop_assert!(rest.iter().all(|&rate| rate == peak)),
            }
        }

        #[test]
        fn scaling_the_peak_scales_every_rate(total in 1_u64..500, ratio in 0.0_f64..=1.0, done in 0_u64..500) {
            let at = |peak| LearningRate::new(LrSchedule::Cosine, peak, total, ratio).after(done);
            prop_assert!((at(3e-4) - 3e-4 * at(1.0)).abs() < 1e-18);
        }
    }
}
