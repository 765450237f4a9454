//! Timing that the benchmarks share.
//!
//! What is compared runs in turns within one process, so that a machine that slows down or has
//! other work slows both sides alike, and medians are compared.

use std::time::Duration;

/// Median time of each contender by `clock`, over `runs` rounds in which each has one turn. A round
/// before the first is not counted.
pub fn interleaved(
    clock: impl Fn() -> Duration,
    runs: usize,
    contenders: &mut [&mut dyn FnMut()],
) -> Vec<Duration> {
    let mut times = vec![Vec::with_capacity(runs); contenders.len()];
    for round in 0..=runs {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            let start = clock();
            contender();
            let taken = clock() - start;
            if round > 0 {
                times.push(taken);
            }
        }
    }
    times
        .into_iter()
        .map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2]
        })
        .collect()
}
