//! Pillow's bicubic resize, bit for bit, without the padded copy of the image.
//!
//! Rows are resized horizontally into a ring that holds just those that the next output row needs,
//! then vertically, with eight-bit samples in between as Pillow has them. Input positions in the
//! padding are never visited: what they add is known from their coefficients' sum.

use super::{
    filter::{self, Dimension, Filter, HALF},
    rgb::RgbImage,
    simd::Instructions,
};

const CHANNELS: usize = 3;

/// Rows that are resized horizontally in one go, so that a coefficient is loaded once for all.
pub(super) const ROWS_AT_ONCE: usize = 4;

/// Where the image lies in its frame and what becomes of the frame, in both dimensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub horizontal: Dimension,
    pub vertical: Dimension,
    /// Colour of the frame around the image.
    pub background: [u8; CHANNELS],
}

impl Plan {
    /// The whole image to `width` x `height`.
    pub fn stretch(image: &RgbImage, width: usize, height: usize) -> Self {
        let dimension = |input: u32, output: usize| Dimension {
            frame: input as usize,
            image: 0..input as usize,
            resized: output,
            wanted: 0..output,
        };
        Self {
            horizontal: dimension(image.width(), width),
            vertical: dimension(image.height(), height),
            background: [0; CHANNELS],
        }
    }
}

/// Resizes `image` by `plan` and hands each finished row (`R, G, B` for each wanted column) to
/// `finished`, with its index, from top to bottom.
pub(super) fn resize(
    image: &RgbImage,
    plan: &Plan,
    instructions: Instructions,
    mut finished: impl FnMut(usize, &[u8]),
) {
    let horizontal = Filter::new(&plan.horizontal);
    let vertical = Filter::new(&plan.vertical);
    let starts = horizontal_starts(&horizontal, plan.background);
    let width = plan.horizontal.wanted.len() * CHANNELS;
    // A row of the frame above or below the image, after its horizontal resize.
    let padding = padding_row(&horizontal, plan.background);
    let mut ring = Ring::new(&vertical, width, image.height() as usize);
    let mut accumulators = vec![0; width];
    let mut output = vec![0; width];
    for (index, taps) in vertical.taps.iter().enumerate() {
        ring.advance(taps.first, taps.first + taps.count, |first, rows| {
            instructions.horizontal(image, first, &horizontal, &starts, rows);
        });
        for (accumulator, &sample) in accumulators.iter_mut().zip(&padding) {
            *accumulator = HALF.wrapping_add(taps.outside.wrapping_mul(i32::from(sample)));
        }
        let rows: Vec<&[u8]> = (taps.first..taps.first + taps.count).map(|row| ring.row(row)).collect();
        instructions.vertical(&rows, &vertical, index, &accumulators, &mut output);
        finished(index, &output);
    }
}

/// A whole image of its own, for uses that are not the model's.
pub(super) fn stretched(image: &RgbImage, width: u32, height: u32) -> Option<RgbImage> {
    let plan = Plan::stretch(image, width as usize, height as usize);
    let mut pixels = Vec::with_capacity(width as usize * height as usize * CHANNELS);
    resize(image, &plan, Instructions::best(), |_, row| pixels.extend_from_slice(row));
    RgbImage::new(width, height, pixels)
}

/// What each output column's accumulators start from: rounding, and the padding beside the image.
/// Four to a column, the last one idle, as the vector units hold them.
fn horizontal_starts(filter: &Filter, background: [u8; CHANNELS]) -> Vec<[i32; 4]> {
    let start = |outside: i32, sample: u8| HALF.wrapping_add(outside.wrapping_mul(i32::from(sample)));
    let [red, green, blue] = background;
    filter
        .taps
        .iter()
        .map(|taps| [start(taps.outside, red), start(taps.outside, green), start(taps.outside, blue), 0])
        .collect()
}

fn padding_row(filter: &Filter, background: [u8; CHANNELS]) -> Vec<u8> {
    let mut row = Vec::with_capacity(filter.taps.len() * CHANNELS);
    for (position, taps) in filter.taps.iter().enumerate() {
        let total = filter.coefficients[filter.row(position)]
            .iter()
            .fold(taps.outside, |sum, &c| sum.wrapping_add(c));
        row.extend(
            background.map(|sample| filter::sample(HALF.wrapping_add(total.wrapping_mul(i32::from(sample))))),
        );
    }
    row
}

/// The horizontally resized rows that an output row may need, each at its index modulo capacity.
struct Ring {
    samples: Vec<u8>,
    width: usize,
    capacity: usize,
    /// Rows of the image.
    height: usize,
    /// First row that has not been resized.
    next: usize,
}

impl Ring {
    fn new(vertical: &Filter, width: usize, height: usize) -> Self {
        let most = vertical.taps.iter().map(|taps| taps.count).max().unwrap_or(0);
        // Rows are filled in blocks, so that some before and some after the needed ones are there.
        let capacity = (most + 2 * ROWS_AT_ONCE).next_multiple_of(ROWS_AT_ONCE);
        Self { samples: vec![0; capacity * width], width, capacity, height, next: 0 }
    }

    /// Makes rows `first..end` available: `fill(row, samples)` resizes as many rows from `row` on as
    /// `samples` has room for.
    fn advance(&mut self, first: usize, end: usize, mut fill: impl FnMut(usize, &mut [u8])) {
        self.next = self.next.max(first / ROWS_AT_ONCE * ROWS_AT_ONCE);
        while self.next < end {
            let place = self.next % self.capacity;
            let rows = ROWS_AT_ONCE.min(self.height - self.next);
            fill(self.next, &mut self.samples[place * self.width..(place + rows) * self.width]);
            self.next += rows;
        }
    }

    fn row(&self, row: usize) -> &[u8] {
        let place = row % self.capacity;
        &self.samples[place * self.width..(place + 1) * self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pixels of all kinds: noise, and runs of black and white that overshoot.
    fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
        let mut state = seed | 1;
        let samples = (0..width * height * 3).map(|index| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            match (index / 24 + seed) % 3 {
                0 => (state >> 24) as u8,
                1 => 0,
                _ => 255,
            }
        });
        RgbImage::new(width, height, samples.collect()).unwrap()
    }

    fn resized(image: &RgbImage, plan: &Plan, instructions: Instructions) -> Vec<u8> {
        let mut rows = Vec::new();
        resize(image, plan, instructions, |index, row| {
            assert_eq!(index * row.len(), rows.len());
            rows.extend_from_slice(row);
        });
        rows
    }

    /// Pillow's two passes over a padded copy, cropped at the end, as plainly as can be.
    fn plainly(image: &RgbImage, plan: &Plan) -> Vec<u8> {
        let (horizontal, vertical) = (&plan.horizontal, &plan.vertical);
        let whole = |dimension: &Dimension| {
            Filter::new(&Dimension {
                image: 0..dimension.frame,
                wanted: 0..dimension.resized,
                ..dimension.clone()
            })
        };
        let frame = |x: usize, y: usize, channel: usize| {
            if horizontal.image.contains(&x) && vertical.image.contains(&y) {
                let (x, y) = (x - horizontal.image.start, y - vertical.image.start);
                image.pixel(x as u32, y as u32)[channel]
            } else {
                plan.background[channel]
            }
        };
        let combine = |filter: &Filter, position: usize, sample: &dyn Fn(usize) -> u8| {
            let taps = &filter.taps[position];
            let coefficients = &filter.coefficients[filter.row(position)];
            let sum = (0..taps.count).fold(HALF, |sum, tap| {
                sum.wrapping_add(coefficients[tap].wrapping_mul(i32::from(sample(taps.first + tap))))
            });
            filter::sample(sum)
        };
        let (across, down) = (whole(horizontal), whole(vertical));
        let width = horizontal.resized;
        let mut between = vec![0; width * vertical.frame * 3];
        for (index, sample) in between.iter_mut().enumerate() {
            let (y, x, channel) = (index / 3 / width, index / 3 % width, index % 3);
            *sample = combine(&across, x, &|input| frame(input, y, channel));
        }
        let mut output = Vec::new();
        for y in vertical.wanted.clone() {
            for index in horizontal.wanted.start * 3..horizontal.wanted.end * 3 {
                output.push(combine(&down, y, &|input| between[input * width * 3 + index]));
            }
        }
        output
    }

    fn dimension(frame: usize, start: usize, length: usize, resized: usize, crop: usize) -> Dimension {
        let before = (resized - crop) / 2;
        Dimension { frame, image: start..start + length, resized, wanted: before..before + crop }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_padded_resize_equals_the_resize_of_a_padded_copy(
            width in 1_u32..90,
            height in 1_u32..90,
            edge in 1_usize..70,
            margin in 0_usize..9,
            background: [u8; 3],
            seed: u32,
        ) {
            let image = picture(width, height, seed);
            let frame = width.max(height) as usize;
            let crop = edge.saturating_sub(margin).max(1);
            let across = |length: usize| dimension(frame, (frame - length) / 2, length, edge, crop);
            let plan = Plan { horizontal: across(width as usize), vertical: across(height as usize), background };
            let expected = plainly(&image, &plan);
            prop_assert_eq!(&resized(&image, &plan, Instructions::Portable), &expected);
            prop_assert_eq!(&resized(&image, &plan, Instructions::best()), &expected);
        }

        #[test]
        fn vector_instructions_change_no_bit(
            width in 1_u32..400,
            height in 1_u32..400,
            resized_width in 1_usize..300,
            resized_height in 1_usize..300,
            seed: u32,
        ) {
            let image = picture(width, height, seed);
            let plan = Plan::stretch(&image, resized_width, resized_height);
            prop_assert_eq!(
                resized(&image, &plan, Instructions::best()),
                resized(&image, &plan, Instructions::Portable)
            );
        }
    }

    #[test]
    fn long_reductions_wrap_alike() {
        // More than 4,112 taps, whose lower halves alone overflow 32 bits.
        for (width, height) in [(40_000, 3), (3, 40_000)] {
            let image =
                RgbImage::new(width, height, vec![255; width as usize * height as usize * 3]).unwrap();
            let plan = Plan::stretch(&image, 9, 9);
            let portable = resized(&image, &plan, Instructions::Portable);
            assert_eq!(portable, vec![255; 9 * 9 * 3]);
            assert_eq!(resized(&image, &plan, Instructions::best()), portable);
        }
    }
}
