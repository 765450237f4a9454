//! Pictures that differ from one another as photos do, and whose label a small network learns in seconds: how
//! bright they are.

use std::io::Cursor;

/// Pixels along an edge, and cells of the random pattern.
const EDGE: u32 = 64;
const CELLS: u32 = 8;

/// What pictures of a kind have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gray,
    /// Without red.
    Blue,
}

/// Numbers that are always the same.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // The first numbers of near seeds are near each other.
        (0..8).for_each(|_| {
            random.share();
        });
        random
    }

    /// From 0 to 1.
    pub fn share(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, (self.share() * (last + 1) as f64) as usize);
        }
    }
}

/// A picture of the brightness, from 0 to 1, with a pattern that only this number has.
pub fn picture(number: u64, brightness: f64, kind: Kind) -> image::RgbImage {
    let mut random = Random::new(number + 1);
    let pattern: Vec<f64> = (0..CELLS * CELLS).map(|_| 80.0 * random.share() - 40.0).collect();
    // A pattern that makes the whole brighter would blur what is to be learned.
    let mean = pattern.iter().sum::<f64>() / pattern.len() as f64;
    image::RgbImage::from_fn(EDGE, EDGE, |x, y| {
        let cell = (y * CELLS / EDGE * CELLS + x * CELLS / EDGE) as usize;
        let level = (50.0 + 155.0 * brightness + pattern[cell] - mean).clamp(0.0, 255.0) as u8;
        match kind {
            Kind::Gray => image::Rgb([level; 3]),
            Kind::Blue => image::Rgb([0, level / 2, level]),
        }
    })
}

/// The file of a picture.
pub fn png(picture: &image::RgbImage) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, image::ImageFormat::Png).expect("a PNG");
    file.into_inner()
}

/// The brightness of picture `number`: spread evenly, and in no order.
pub fn brightness(number: u64) -> f64 {
    (number as f64 * 0.618_033_988_749_895).fract()
}
