//! The coefficients of one dimension of a resize: bicubic convolution, as Pillow rounds it.
//!
//! Pillow computes in doubles, normalises each output's weights to sum to 1, and rounds them to
//! 22-bit fixed point (`Resample.c`, `precompute_coeffs` and `normalize_coeffs_8bpc`). The order of
//! operations here is the same, since the last bit of a coefficient can change a pixel.

use std::ops::Range;

/// Fractional bits of a coefficient: 32, less 8 for the sample and 2 for overshoot and sign.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// What an accumulator starts from, so that the final shift rounds to nearest.
pub(super) const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// Bits of a coefficient's lower part. Split in two, each part fits the 16-bit multiplications of
/// the vector units: `coefficient == upper * 2^LOWER_BITS + lower`, `0 <= lower < 2^LOWER_BITS`.
pub(super) const LOWER_BITS: u32 = 11;

/// Coefficients are stored in whole groups of this many, the last one filled up with zeros.
pub(super) const GROUP: usize = 4;

/// How one output position is computed from the input positions along a dimension.
pub(super) struct Taps {
    /// First input position, counted from the image's own edge.
    pub first: usize,
    /// Input positions that lie inside the image.
    pub count: usize,
    /// Sum of the coefficients of positions in the padding around the image.
    pub outside: i32,
}

/// All output positions of one dimension.
pub(super) struct Filter {
    pub taps: Vec<Taps>,
    /// Coefficients of an output position: a multiple of [`GROUP`].
    pub stride: usize,
    pub coefficients: Vec<i32>,
    /// [`LOWER_BITS`] halves of `coefficients`, for the vector units.
    pub upper: Vec<i16>,
    pub lower: Vec<i16>,
}

/// One dimension of the resize of an image that stands in a padded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dimension {
    /// Size of the frame, padding included.
    pub frame: usize,
    /// Where the image lies in the frame.
    pub image: Range<usize>,
    /// The size that the whole frame is resized to.
    pub resized: usize,
    /// The part of it that is wanted.
    pub wanted: Range<usize>,
}

impl Filter {
    pub fn new(dimension: &Dimension) -> Self {
        let Dimension { frame, image, resized, wanted } = dimension;
        let scale = *frame as f64 / *resized as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let longest = support.ceil() as usize * 2 + 1;
        let stride = longest.min(image.len()).next_multiple_of(GROUP);
        let mut filter = Self {
            taps: Vec::with_capacity(wanted.len()),
            stride,
            coefficients: vec![0; stride * wanted.len()],
            upper: Vec::new(),
            lower: Vec::new(),
        };
        let mut weights = Vec::with_capacity(longest);
        for (row, position) in wanted.clone().enumerate() {
            let center = (position as f64 + 0.5) * scale;
            // Truncation towards zero is what C's conversion does, also for a negative start.
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let end = ((center + support + 0.5) as i64).clamp(0, *frame as i64) as usize;
            weights.clear();
            weights.extend(
                (first..end).map(|input| bicubic((input as f64 - center + 0.5) * (1.0 / filter_scale))),
            );
            let total: f64 = weights.iter().sum();
            let inside = first.max(image.start)..end.min(image.end);
            let mut outside = 0;
            let mut kept = 0;
            for (input, weight) in (first..end).zip(&weights) {
                let normalized = if total == 0.0 { *weight } else { weight / total };
                let coefficient = fixed_point(normalized);
                if inside.contains(&input) {
                    filter.coefficients[row * stride + kept] = coefficient;
                    kept += 1;
                } else {
                    outside += coefficient;
                }
            }
            let first = if kept == 0 { 0 } else { inside.start - image.start };
            filter.taps.push(Taps { first, count: kept, outside });
        }
        filter.upper =
            filter.coefficients.iter().map(|coefficient| (coefficient >> LOWER_BITS) as i16).collect();
        filter.lower = filter
            .coefficients
            .iter()
            .map(|coefficient| (coefficient & ((1 << LOWER_BITS) - 1)) as i16)
            .collect();
        filter
    }

    /// The coefficients of output `position`, padding zeros included.
    pub fn row(&self, position: usize) -> Range<usize> {
        position * self.stride..(position + 1) * self.stride
    }
}

/// Keys' cubic convolution kernel with a = -0.5 (R. G. Keys, 1981, equation 15), in the order of
/// operations of Pillow's `bicubic_filter`.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Nearest fixed-point number, halves away from zero.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// The rounded, clipped sample of an accumulator.
pub(super) fn sample(accumulator: i32) -> u8 {
    (accumulator >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_sizes_copy() {
        let filter = Filter::new(&Dimension { frame: 7, image: 0..7, resized: 7, wanted: 0..7 });
        for (position, taps) in filter.taps.iter().enumerate() {
            for (offset, &coefficient) in filter.coefficients[filter.row(position)].iter().enumerate() {
                let own = taps.first + offset == position && offset < taps.count;
                assert_eq!(coefficient, if own { 1 << PRECISION_BITS } else { 0 });
            }
        }
    }

    proptest! {
        #[test]
        fn taps_stay_inside_and_weights_add_up(
            frame in 1_usize..3000,
            start in 0.0_f64..1.0,
            length in 0.0_f64..1.0,
            resized in 1_usize..600,
        ) {
            let start = ((frame - 1) as f64 * start) as usize;
            let end = start + 1 + ((frame - start - 1) as f64 * length) as usize;
            let filter = Filter::new(&Dimension { frame, image: start..end, resized, wanted: 0..resized });
            for (position, taps) in filter.taps.iter().enumerate() {
                prop_assert!(taps.first + taps.count <= end - start);
                prop_assert!(taps.count <= filter.stride);
                let coefficients = &filter.coefficients[filter.row(position)];
                prop_assert!(coefficients[taps.count..].iter().all(|&coefficient| coefficient == 0));
                let total = coefficients.iter().sum::<i32>() + taps.outside;
                let rounding = (frame as i32 * 4 / resized as i32 + 8) / 2;
                prop_assert!((total - (1 << PRECISION_BITS)).abs() <= rounding, "{total}");
            }
        }

        #[test]
        fn halves_make_up_the_coefficient(frame in 1_usize..500, resized in 1_usize..500) {
            let filter = Filter::new(&Dimension { frame, image: 0..frame, resized, wanted: 0..resized });
            for (index, &coefficient) in filter.coefficients.iter().enumerate() {
                let whole = (i32::from(filter.upper[index]) << LOWER_BITS) + i32::from(filter.lower[index]);
                prop_assert_eq!(whole, coefficient);
            }
        }
    }
}
