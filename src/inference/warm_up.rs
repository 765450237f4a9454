//! How many images fit into memory at once, found out before the first one that counts.
//!
//! A device says that its memory is full, and then a smaller batch is tried. A CPU does not: the system grants
//! what it does not have and ends the process later. So there the first runs are watched, and a batch that
//! would not fit is not tried.

use crate::model::checkpoint::available_memory;
use std::fs;

/// Part of the free memory that is left alone, in percent: decode threads and connections need some too.
const LEFT_ALONE: u64 = 10;

/// The largest batch, up to `capacity`, that fits into `available` bytes when two images are held already and
/// each further one takes `growth` more.
pub(super) fn largest(capacity: usize, growth: u64, available: u64) -> usize {
    let room = available / 100 * (100 - LEFT_ALONE);
    let more =
        room.checked_div(growth).map_or(usize::MAX, |more| usize::try_from(more).unwrap_or(usize::MAX));
    capacity.min(more.saturating_add(2))
}

/// [`largest`] by what the machine has and by the peaks of two runs, of one image and of two; `capacity` where
/// the system does not tell.
pub(super) fn fitting(capacity: usize, one: Option<u64>, two: Option<u64>) -> usize {
    let growth = two.zip(one).map(|(two, one)| two.saturating_sub(one)).filter(|growth| *growth > 0);
    match growth.zip(available_memory()) {
        Some((growth, available)) => largest(capacity, growth, available),
        None => capacity,
    }
}

/// What `work` ends with, and the most memory that this process held meanwhile, in bytes.
pub(super) fn peak_of<T>(work: impl FnOnce() -> T) -> (T, Option<u64>) {
    // Resets the peak; a system that does not allow it shows an older one, and nothing grows.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let done = work();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    (done, peak_in(&status))
}

/// `VmHWM` of `/proc/self/status`.
fn peak_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_peak_is_seen_and_forgotten() {
        const BYTES: usize = 64 << 20;
        let (_, before) = peak_of(|| ());
        let (sum, during) = peak_of(|| vec![1_u8; BYTES].iter().map(|&byte| u64::from(byte)).sum::<u64>());
        let (before, during) = (before.unwrap(), during.unwrap());
        assert_eq!(sum, BYTES as u64);
        assert!(during >= before + BYTES as u64 / 2, "{before} and then {during}");
    }

    proptest! {
        #[test]
        fn what_is_chosen_fits_and_one_more_would_not(
            capacity in 3_usize..1_000,
            growth in 1_u64..1 << 40,
            available in 0_u64..1 << 50,
        ) {
            let size = largest(capacity, growth, available);
            prop_assert!((2..=capacity).contains(&size));
            let taken = |size: usize| (size as u128 - 2) * u128::from(growth);
            prop_assert!(taken(size) <= u128::from(available));
            let room = u128::from(available / 100 * (100 - LEFT_ALONE));
            prop_assert!(size == capacity || taken(size + 1) > room);
        }
    }

    #[test]
    fn without_numbers_nothing_is_refused() {
        assert_eq!(fitting(8, None, Some(1)), 8);
        assert_eq!(fitting(8, Some(2), Some(2)), 8);
    }
}
