//! How far a number could be off for the photos that happened to be held out: bootstrap intervals.
//!
//! Photos are drawn with replacement, whole groups of near-duplicates at a time, since photos of one
//! group are not independent. Everything that is measured of one draw is measured of the same photos,
//! so that the interval of a difference between two models is a paired one: what makes a photo hard for
//! both of them cancels.
//!
//! Intervals are percentile intervals. They keep within the range of the statistic, follow any
//! monotonic transformation of it, and for hundreds of photos and more cover as they should (a
//! simulation in the tests holds every metric to that). BCa would correct a skew that is below the
//! simulation's noise here, costs as many further evaluations as there are photos, and has no
//! acceleration for a rate that no photo changes. One limit they share: a rate of exactly 1 has an
//! interval without width, since no draw can hold a failure that the photos don't.

use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};
use serde::{Deserialize, Serialize};
use std::{num::NonZeroUsize, thread};

/// How intervals are computed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapSettings {
    /// Draws; percentiles of fewer than a thousand are coarse.
    pub resamples: u32,
    /// How often an interval is to hold the true value, between 0 and 1.
    pub confidence: f64,
    /// Which draws: the same seed gives the same intervals, on any number of cores.
    pub seed: u64,
}

impl Default for BootstrapSettings {
    fn default() -> Self {
        Self { resamples: 2_000, confidence: 0.95, seed: 0 }
    }
}

/// A number measured of some photos, and the interval that holds the number of all photos like them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    /// Lower and upper end; `None` where too few photos leave some draw without a value.
    pub interval: Option<(f64, f64)>,
}

impl Estimate {
    /// The interval of `confidence` in `drawn`; `None` where `value` is not finite.
    pub fn new(value: f64, drawn: impl Iterator<Item = f64>, confidence: f64) -> Option<Self> {
        value.is_finite().then(|| Self { value, interval: percentiles(drawn.collect(), confidence) })
    }

    /// Half the width of the interval.
    pub fn half_width(&self) -> Option<f64> {
        self.interval.map(|(low, high)| (high - low) / 2.0)
    }
}

/// Which photos are drawn together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    of_photos: Vec<u32>,
    count: usize,
}

impl Groups {
    /// Photos of equal names belong together.
    pub fn by_name<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut known = std::collections::HashMap::new();
        let of_photos = names
            .map(|name| {
                let next = known.len() as u32;
                *known.entry(name).or_insert(next)
            })
            .collect();
        Self { of_photos, count: known.len() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// What `measure` says of each draw, in the order of the draws. It is given a weight for every photo,
/// how often that is in the draw, and memory that is its thread's own.
pub fn resample<W: Default, const N: usize>(
    groups: &Groups,
    settings: &BootstrapSettings,
    measure: impl Fn(&[u32], &mut W) -> [f64; N] + Sync,
) -> Vec<[f64; N]> {
    let draws = settings.resamples as usize;
    let mut results = vec![[f64::NAN; N]; draws];
    if groups.count == 0 {
        return results;
    }
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let chunk = draws.div_ceil(threads).max(1);
    thread::scope(|scope| {
        for (index, results) in results.chunks_mut(chunk).enumerate() {
            let measure = &measure;
            scope.spawn(move || {
                let (mut weights, mut times, mut workspace) = (Vec::new(), Vec::new(), W::default());
                for (draw, result) in (index * chunk..).zip(results) {
                    draw_groups(groups.count, settings.seed, draw as u64, &mut times);
                    weights.clear();
                    weights.extend(groups.of_photos.iter().map(|&group| times[group as usize]));
                    *result = measure(&weights, &mut workspace);
                }
            });
        }
    });
    results
}

/// How often each of `count` groups is in one draw of as many.
fn draw_groups(count: usize, seed: u64, draw: u64, times: &mut Vec<u32>) {
    times.clear();
    times.resize(count, 0);
    // A stream a draw: which thread makes it does not matter. The generator mixes its seed thoroughly.
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed ^ draw.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for _ in 0..count {
        times[random.random_range(0..count)] += 1;
    }
}

/// The ends of the middle `confidence` of the values, linear between neighbours.
fn percentiles(mut drawn: Vec<f64>, confidence: f64) -> Option<(f64, f64)> {
    if drawn.is_empty() || drawn.iter().any(|value| !value.is_finite()) {
        return None;
    }
    drawn.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share.clamp(0.0, 1.0) * (drawn.len() - 1) as f64;
        let (below, above) = (drawn[place.floor() as usize], drawn[place.ceil() as usize]);
        below + (above - below) * place.fract()
    };
    let tail = (1.0 - confidence) / 2.0;
    Some((at(tail), at(1.0 - tail)))
}

#[cfg(test)]
mod tests;
