//! What a photo looks like, in 80 bytes that recompression, scaling and small crops hardly change.
//!
//! A perceptual hash is the signs of the 64 lowest spatial frequencies (DCT-II) of the photo's luma at
//! 32 x 32 pixels, whatever its shape. Signs survive recompression and scaling nearly untouched. A crop,
//! though, shifts every frequency: 3% off one side turns 6 of 64 signs in the median and up to 20, where
//! unrelated photos begin to look alike. So a fingerprint holds the hash of the whole photo and those of
//! nine trimmed copies, and two photos are near where the whole of one is the whole or a trimmed copy of
//! the other: then 8 signs cover such a crop, and the nearest unrelated photos are 13 apart.

use super::near::RADIUS;
use crate::image::{self, ImageError, ImageSettings, RgbImage};
use serde::{Deserialize, Serialize};
use std::{array, f64::consts::PI, sync::LazyLock};

/// Hashes of a fingerprint: the whole photo's and the trimmed copies'.
pub const HASHES: usize = 10;

/// The share of an edge that a trimmed copy lacks on a side.
const TRIM: f64 = 0.03;

/// What is left and right, or above and below, of a trimmed copy, in trims.
const MARGINS: [[(f64, f64); 2]; HASHES] = {
    const NONE: (f64, f64) = (0.0, 0.0);
    const FIRST: (f64, f64) = (1.0, 0.0);
    const LAST: (f64, f64) = (0.0, 1.0);
    const BOTH: (f64, f64) = (1.0, 1.0);
    [
        [NONE, NONE],
        [FIRST, NONE],
        [LAST, NONE],
        [NONE, FIRST],
        [NONE, LAST],
        [FIRST, FIRST],
        [FIRST, LAST],
        [LAST, FIRST],
        [LAST, LAST],
        [BOTH, BOTH],
    ]
};

/// Pixels along an edge of what the hashes are made from.
const SQUARE: u32 = 256;

/// Samples along an edge of what is transformed.
const SAMPLES: usize = 32;

/// Frequencies along an edge that any of the 64 has.
const FREQUENCIES: usize = 9;

/// Below this, a coefficient is noise of rounding and compression: that of a blank photo, say. In steps
/// of eight-bit luma times 32.
const SILENCE: f64 = 0.5;

/// The perceptual hashes of a photo and of its trimmed copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint {
    /// The whole photo's first.
    hashes: [u64; HASHES],
}

impl Fingerprint {
    /// Of an image file, turned upright by its EXIF orientation.
    ///
    /// # Errors
    /// [`ImageError`] where it can't be decoded within `settings`.
    pub fn of_file(bytes: &[u8], settings: &ImageSettings) -> Result<Self, ImageError> {
        image::upright_square(bytes, settings, SQUARE).map(|square| Self::of_pixels(&square))
    }

    /// Of pixels in any size.
    pub fn of_pixels(image: &RgbImage) -> Self {
        let areas = Areas::new(image);
        Self { hashes: MARGINS.map(|margins| hash(&areas.samples(margins))) }
    }

    /// From what [`hashes`](Self::hashes) gave.
    pub fn from_hashes(hashes: [u64; HASHES]) -> Self {
        Self { hashes }
    }

    /// All hashes, to be stored.
    pub fn hashes(&self) -> &[u64; HASHES] {
        &self.hashes
    }

    /// The hash of the whole photo.
    pub fn whole(&self) -> u64 {
        self.hashes[0]
    }

    /// The hashes of the trimmed copies.
    pub fn trimmed(&self) -> &[u64] {
        &self.hashes[1..]
    }

    /// How many signs differ where the whole of one photo is most like the other or a trimmed copy of it.
    pub fn distance(&self, other: &Self) -> u32 {
        let nearest = |whole: u64, hashes: &[u64; HASHES]| {
            hashes.iter().fold(u64::BITS, |nearest, hash| nearest.min((hash ^ whole).count_ones()))
        };
        nearest(self.whole(), &other.hashes).min(nearest(other.whole(), &self.hashes))
    }

    /// Whether the photos are copies or near-copies of one another: at most [`RADIUS`] apart.
    pub fn is_near(&self, other: &Self) -> bool {
        self.distance(other) <= RADIUS
    }
}

/// Sums of luma over any rectangle of an image in constant time (Crow 1984).
struct Areas {
    width: usize,
    height: usize,
    /// `sums[y * (width + 1) + x]`: everything above and left of (x, y).
    sums: Vec<f64>,
}

impl Areas {
    fn new(image: &RgbImage) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let mut sums = vec![0.0; (width + 1) * (height + 1)];
        for (y, row) in image.pixels().chunks_exact(3 * width).enumerate() {
            let mut of_row = 0.0;
            for (x, pixel) in row.chunks_exact(3).enumerate() {
                let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(f64::from);
                // Rec. 601, as JPEG has it.
                of_row += 0.299 * red + 0.587 * green + 0.114 * blue;
                sums[(y + 1) * (width + 1) + x + 1] = sums[y * (width + 1) + x + 1] + of_row;
            }
        }
        Self { width, height, sums }
    }

    /// The mean luma in each of 32 x 32 cells over what is left inside the margins.
    fn samples(&self, [across, down]: [(f64, f64); 2]) -> [[f64; SAMPLES]; SAMPLES] {
        let cell = |edge: usize, margins: (f64, f64), index: usize| {
            let (first, last) = (margins.0 * TRIM, 1.0 - margins.1 * TRIM);
            (first + (last - first) * index as f64 / SAMPLES as f64) * edge as f64
        };
        array::from_fn(|row| {
            let (top, bottom) = (cell(self.height, down, row), cell(self.height, down, row + 1));
            array::from_fn(|column| {
                let (left, right) = (cell(self.width, across, column), cell(self.width, across, column + 1));
                let sum = self.sum(right, bottom) - self.sum(left, bottom) - self.sum(right, top)
                    + self.sum(left, top);
                sum / ((right - left) * (bottom - top))
            })
        })
    }

    /// Everything above and left of a point between pixels.
    fn sum(&self, x: f64, y: f64) -> f64 {
        let (column, row) = ((x as usize).min(self.width - 1), (y as usize).min(self.height - 1));
        let (right, below) = (x - column as f64, y - row as f64);
        let at = |row: usize, column: usize| self.sums[row * (self.width + 1) + column];
        let along = |row: usize| at(row, column) + (at(row, column + 1) - at(row, column)) * right;
        along(row) + (along(row + 1) - along(row)) * below
    }
}

/// The lowest frequencies but the mean itself, as (down, across).
static LOWEST: LazyLock<[(usize, usize); 64]> = LazyLock::new(|| {
    let mut all: Vec<(usize, usize)> = (0..FREQUENCIES)
        .flat_map(|down| (0..FREQUENCIES).map(move |across| (down, across)))
        .skip(1)
        .collect();
    all.sort_by_key(|&(down, across)| (down * down + across * across, down));
    array::from_fn(|index| all[index])
});

/// `COSINES[frequency][sample]` of an orthonormal DCT-II.
static COSINES: LazyLock<[[f64; SAMPLES]; FREQUENCIES]> = LazyLock::new(|| {
    array::from_fn(|frequency| {
        let scale = if frequency == 0 { 1.0 } else { 2.0_f64 } / SAMPLES as f64;
        array::from_fn(|sample| {
            scale.sqrt() * (PI * (sample as f64 + 0.5) * frequency as f64 / SAMPLES as f64).cos()
        })
    })
});

fn hash(samples: &[[f64; SAMPLES]; SAMPLES]) -> u64 {
    let dot = |one: &[f64; SAMPLES], other: &[f64; SAMPLES]| -> f64 {
        one.iter().zip(other).map(|(one, other)| one * other).sum()
    };
    // By frequency across, then by row.
    let rows: [[f64; SAMPLES]; FREQUENCIES] =
        array::from_fn(|across| array::from_fn(|row| dot(&COSINES[across], &samples[row])));
    LOWEST.iter().enumerate().fold(0, |hash, (bit, &(down, across))| {
        let coefficient = dot(&COSINES[down], &rows[across]);
        hash | (u64::from(coefficient > SILENCE) << bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_four_distinct_frequencies_without_the_mean() {
        let mut frequencies = LOWEST.to_vec();
        assert!(!frequencies.contains(&(0, 0)));
        assert!(
            frequencies.iter().all(|(down, across)| down * down + across * across < FREQUENCIES.pow(2) + 1)
        );
        frequencies.sort_unstable();
        frequencies.dedup();
        assert_eq!(frequencies.len(), 64);
    }

    #[test]
    fn areas_are_exact_between_pixels() {
        let image = RgbImage::painted(3, 2, |x, y| [(10 * x + 100 * y) as u8; 3]);
        let areas = Areas::new(&image);
        let near =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}, {expected}");
        near(areas.sum(3.0, 2.0), 10.0 * 6.0 + 300.0);
        near(areas.sum(1.5, 1.0), 0.5 * 10.0);
        near(areas.sum(1.5, 1.5), 5.0 + 0.5 * (100.0 + 55.0));
    }

    /// A picture with something in every frequency.
    fn busy(width: u32, height: u32) -> RgbImage {
        RgbImage::painted(width, height, |x, y| {
            let (x, y) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
            let wave = (7.0 * x + 3.0 * (5.0 * y).sin()).sin() + (4.0 * x * y).cos() + x - y;
            [(128.0 + 40.0 * wave) as u8; 3]
        })
    }

    #[test]
    fn blank_photos_are_near_each_other_and_nothing_else() {
        let blank = |level: u8| Fingerprint::of_pixels(&RgbImage::painted(50, 40, |_, _| [level; 3]));
        assert_eq!(blank(20), blank(240));
        assert_eq!(blank(20).hashes(), &[0; HASHES]);
        assert!(!blank(20).is_near(&Fingerprint::of_pixels(&busy(50, 40))));
    }

    #[test]
    fn neither_size_nor_shape_matters() {
        let whole = Fingerprint::of_pixels(&busy(400, 300));
        for (width, height) in [(200, 150), (64, 64), (399, 1001)] {
            let other = Fingerprint::of_pixels(&busy(width, height));
            assert!(whole.distance(&other) <= 4, "{width}x{height}: {}", whole.distance(&other));
        }
        // The smallest photo there is still has a fingerprint.
        Fingerprint::of_pixels(&busy(1, 1));
    }

    #[test]
    fn distance_is_symmetric_and_reads_trimmed_copies_on_either_side() {
        let of = |whole: u64, trimmed: u64| {
            Fingerprint::from_hashes(array::from_fn(|index| if index == 0 { whole } else { trimmed }))
        };
        let (one, other) = (of(0, u64::MAX), of(u64::MAX ^ 0b111, 0xffff_0000));
        assert_eq!((one.distance(&other), other.distance(&one)), (3, 3));
        // Two trimmed copies alike say nothing.
        assert_eq!(of(0, 0xff00_ff00_ff00_ff00).distance(&of(u64::MAX, 0xff00_ff00_ff00_ff00)), 32);
        let json = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), one);
    }
}
