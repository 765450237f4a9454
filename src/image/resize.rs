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
    let mut ring = Ring::new(&vertical, width);
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
    /// First input row that has not been resized.
    next: usize,
}

impl Ring {
    fn new(vertical: &Filter, width: usize) -> Self {
        let most = vertical.taps.iter().map(|taps| taps.count).max().unwrap_or(0);
        let capacity = (most + ROWS_AT_ONCE).next_multiple_of(ROWS_AT_ONCE);
        Self { samples: vec![0; capacity * width], width, capacity, next: 0 }
    }

    /// Makes rows `first..end` available: `fill(row, samples)` resizes as many rows from `row` on as
    /// `samples` has room for.
    fn advance(&mut self, first: usize, end: usize, mut fill: impl FnMut(usize, &mut [u8])) {
        self.next = self.next.max(first);
        while self.next < end {
            let place = self.next % self.capacity;
            let rows = ROWS_AT_ONCE.min(end - self.next).min(self.capacity - place);
            fill(self.next, &mut self.samples[place * self.width..(place + rows) * self.width]);
            self.next += rows;
        }
    }

    fn row(&self, row: usize) -> &[u8] {
        let place = row % self.capacity;
        &self.samples[place * self.width..(place + 1) * self.width]
    }
}
