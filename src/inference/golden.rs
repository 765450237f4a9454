//! The golden image: a picture made here, whose score may not change while the process lives.
//!
//! A device can break in ways that no error tells of: it goes on answering, wrongly. One picture that
//! is scored again and again, between batches, shows that.

use super::{
    failure::EngineFailure,
    runner::{Runner, panic_message},
    scorer::ScoreBatch,
    slot::SlotPool,
};
use crate::image::{Preprocessor, RgbImage};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

/// How far its score may lie from the first one; the same run of the same model on the same device
/// differs by nothing.
const TOLERANCE: f64 = 1e-3;

/// The picture and the preprocessing that images get too.
#[derive(Clone, Debug)]
pub struct GoldenImage {
    picture: RgbImage,
    preprocessor: Preprocessor,
}

impl GoldenImage {
    pub fn new(preprocessor: Preprocessor) -> Self {
        Self { picture: RgbImage::painted(160, 120, paint), preprocessor }
    }

    /// Edge of the input that it is made for.
    pub fn image_size(&self) -> usize {
        self.preprocessor.image_size()
    }

    /// Preprocesses the picture into a slot's `values`.
    ///
    /// # Panics
    /// Unless `values` holds `3 * image_size * image_size` numbers.
    pub fn write(&self, values: &mut [f32]) {
        self.preprocessor.preprocess(&self.picture, values);
    }
}

/// Ramps, a chequered quarter and a disc: slow and fast changes in every channel.
fn paint(x: u32, y: u32) -> [u8; 3] {
    let ramp = |value: u32, most: u32| (value * 255 / most) as u8;
    let (from_x, from_y) = (x.abs_diff(110), y.abs_diff(40));
    if from_x * from_x + from_y * from_y < 900 {
        [230, 190, 40]
    } else if x < 80 && y >= 60 {
        if (x / 5 + y / 5).is_multiple_of(2) { [20, 30, 50] } else { [240, 240, 235] }
    } else {
        [ramp(x, 160), ramp(y, 120), ramp(160 - x, 160)]
    }
}

/// The golden image on the model thread, with the score that it had at start.
pub struct GoldenCheck {
    image: GoldenImage,
    /// Of one slot, leased for good.
    batch: ScoreBatch,
    reference: f64,
    interval: Duration,
    due: Instant,
}

impl GoldenCheck {
    /// Scores the picture for the first time.
    ///
    /// # Errors
    /// [`EngineFailure`] when it gets no score.
    pub fn begin(
        image: GoldenImage,
        interval: Duration,
        runner: &mut Runner,
        slots: &SlotPool,
    ) -> Result<Self, EngineFailure> {
        let batch = ScoreBatch { slots: vec![slots.lease()] };
        let mut check = Self { image, batch, reference: 0.0, interval, due: Instant::now() };
        check.reference = check.score(runner)?.map_err(EngineFailure::golden)?;
        check.passed(runner);
        Ok(check)
    }

    /// When it is to be scored next.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Scores it again; after a wrong score `on_doubt` is told, and it is scored once more at once.
    ///
    /// # Errors
    /// [`EngineFailure`] when it is wrong twice in a row, or when the device or its memory fails.
    pub fn check(&mut self, runner: &mut Runner, on_doubt: impl FnOnce(&str)) -> Result<(), EngineFailure> {
        let first = self.score(runner)?;
        if let Some(reason) = doubt(self.reference, &first) {
            runner.metrics().golden.record(false);
            on_doubt(&reason);
            let second = self.score(runner)?;
            if let Some(reason) = doubt(self.reference, &second) {
                return Err(EngineFailure::golden(reason));
            }
        }
        self.passed(runner);
        Ok(())
    }

    fn score(&mut self, runner: &mut Runner) -> Result<Result<f64, String>, EngineFailure> {
        for slot in &mut self.batch.slots {
            let written = catch_unwind(AssertUnwindSafe(|| self.image.write(slot.values_mut())));
            if let Err(payload) = written {
                return Ok(Err(panic_message(payload.as_ref())));
            }
        }
        runner.score_aside(&self.batch)
    }

    fn passed(&mut self, runner: &Runner) {
        runner.metrics().golden.record(true);
        self.due = Instant::now() + self.interval;
    }
}

/// What is wrong with a later score of the picture, if anything.
pub fn doubt(reference: f64, outcome: &Result<f64, String>) -> Option<String> {
    match outcome {
        // Written so that a score that is no number is doubted too.
        Ok(score) if (score - reference).abs() <= TOLERANCE => None,
        Ok(score) => Some(format!("it was {reference:.6} at start and is {score:.6} now")),
        Err(reason) => Some(reason.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_may_differ_by_rounding_alone() {
        assert_eq!(doubt(5.0, &Ok(5.0)), None);
        assert_eq!(doubt(5.0, &Ok(5.000_5)), None);
        for wrong in [Ok(5.002), Ok(4.9), Ok(f64::NAN), Ok(f64::INFINITY), Err("it broke".into())] {
            assert!(doubt(5.0, &wrong).is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn the_picture_is_the_same_each_time_and_not_plain() {
        let golden = GoldenImage::new(Preprocessor::clip(16));
        let (mut once, mut again) = (vec![0.0; 3 * 16 * 16], vec![1.0; 3 * 16 * 16]);
        golden.write(&mut once);
        golden.write(&mut again);
        assert_eq!(once, again);
        for channel in once.chunks(16 * 16) {
            let (low, high) = channel
                .iter()
                .fold((f32::MAX, f32::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
            assert!(high - low > 1.0, "{low} to {high}");
        }
    }
}
