//! A photograph made worse in known ways, and the score that follows from how.

use crate::train::random::Random;
use image::imageops::{self, FilterType};

/// One way to spoil a photograph, with its severity from 0 (as it was) to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Degradation {
    /// Out of focus: a Gaussian of up to 3.5% of the long edge.
    Blur(f64),
    /// Additive Gaussian noise with a standard deviation of up to 90 of 255.
    Noise(f64),
    /// Up to four and a half stops too dark (negative) or three too bright.
    Exposure(f64),
    /// JPEG at quality 30 down to 2.
    Compression(f64),
    /// A picture that tilts by up to 20 degrees and slides out of its frame by up to 35% of either edge, with
    /// black where it ends.
    Framing(f64),
}

/// The least severity that is drawn: less is hard to see in a picture so small.
const LEAST: f64 = 0.15;
/// The share of a perfect quality that the most severe degradation of any kind takes away.
const LOSS: f64 = 0.85;

impl Degradation {
    /// None in one case of eight, one in five, two of different kinds in two; their severities are uniform.
    pub fn draw(random: &mut Random) -> Vec<Self> {
        let mut kinds: [fn(f64) -> Self; 5] =
            [Self::Blur, Self::Noise, Self::Exposure, Self::Compression, Self::Framing];
        let count = [0, 1, 1, 1, 1, 1, 2, 2][random.below(8)];
        random.shuffle(&mut kinds);
        let mut drawn: Vec<Self> = kinds
            .into_iter()
            .take(count)
            .map(|kind| {
                let severity = LEAST + (1.0 - LEAST) * uniform(random);
                let is_dark = matches!(kind(severity), Self::Exposure(_)) && random.below(2) == 0;
                kind(if is_dark { -severity } else { severity })
            })
            .collect();
        drawn.sort_by_key(|degradation| degradation.place());
        drawn
    }

    /// When it happens: a camera's mistakes come before those of an upload.
    fn place(self) -> u8 {
        match self {
            Self::Blur(_) => 0,
            Self::Noise(_) => 1,
            Self::Exposure(_) => 2,
            Self::Compression(_) => 3,
            Self::Framing(_) => 4,
        }
    }

    fn severity(self) -> f64 {
        match self {
            Self::Blur(severity)
            | Self::Noise(severity)
            | Self::Exposure(severity)
            | Self::Compression(severity)
            | Self::Framing(severity) => severity,
        }
    }

    /// What is left of a perfect quality of 1 after all of `degradations`.
    pub fn quality(degradations: &[Self]) -> f64 {
        degradations.iter().map(|degradation| 1.0 - LOSS * degradation.severity().abs()).product()
    }
}

/// `photo` after `degradations`, one after another.
pub fn degrade(photo: image::RgbImage, degradations: &[Degradation], random: &mut Random) -> image::RgbImage {
    degradations.iter().fold(photo, |photo, degradation| match *degradation {
        Degradation::Blur(severity) => {
            let sigma = 0.035 * severity * f64::from(photo.width().max(photo.height()));
            if sigma < 0.1 { photo } else { imageops::blur(&photo, sigma as f32) }
        }
        Degradation::Noise(severity) => noisy(photo, 90.0 * severity, random),
        Degradation::Exposure(severity) => {
            exposed(photo, if severity < 0.0 { 4.5 * severity } else { 3.0 * severity })
        }
        Degradation::Compression(severity) => recompressed(photo, (30.0 - 28.0 * severity).round() as i32),
        Degradation::Framing(severity) => {
            let mut side = || if random.below(2) == 0 { severity } else { -severity };
            let (tilt, across, down) = (side(), side(), side());
            misframed(&photo, 20.0 * tilt, (0.35 * across, 0.35 * down))
        }
    })
}

/// A random part of `photo`, at least half as high as the whole, with a long edge of `edge` pixels.
pub fn cut_out(photo: &image::RgbImage, edge: u32, random: &mut Random) -> image::RgbImage {
    let share = 0.5 + 0.5 * uniform(random);
    let aspect = [1.0, 4.0 / 3.0, 1.5, 0.75][random.below(4)];
    let (width, height) = (f64::from(photo.width()), f64::from(photo.height()));
    let tall = (height.min(width / aspect) * share).max(1.0);
    let wide = (tall * aspect).max(1.0);
    let left = (uniform(random) * (width - wide).max(0.0)) as u32;
    let top = (uniform(random) * (height - tall).max(0.0)) as u32;
    let part = imageops::crop_imm(photo, left, top, wide as u32, tall as u32);
    let scale = f64::from(edge) / wide.max(tall);
    let scaled = |length: f64| (length * scale).round().max(1.0) as u32;
    let mut part = imageops::resize(&*part, scaled(wide), scaled(tall), FilterType::CatmullRom);
    if random.below(2) == 0 {
        imageops::flip_horizontal_in_place(&mut part);
    }
    part
}

/// JPEG bytes at `quality`, 4:2:0.
pub fn jpeg(photo: &image::RgbImage, quality: i32) -> Result<Vec<u8>, turbojpeg::Error> {
    let (width, height) = (photo.width() as usize, photo.height() as usize);
    let format = turbojpeg::PixelFormat::RGB;
    let image =
        turbojpeg::Image { pixels: photo.as_raw().as_slice(), width, pitch: width * 3, height, format };
    turbojpeg::compress(image, quality, turbojpeg::Subsamp::Sub2x2).map(|bytes| bytes.to_vec())
}

/// Uniform over `[0, 1)`.
pub fn uniform(random: &mut Random) -> f64 {
    const STEPS: usize = 1 << 30;
    random.below(STEPS) as f64 / STEPS as f64
}

fn noisy(mut photo: image::RgbImage, deviation: f64, random: &mut Random) -> image::RgbImage {
    for value in photo.iter_mut() {
        // Irwin and Hall: the sum of four uniform numbers is close to normal; here its variance is 1.
        let normal = 3_f64.sqrt() * (0..4).map(|_| f64::from(random.symmetric(0.5))).sum::<f64>();
        *value = (f64::from(*value) + deviation * normal).round().clamp(0.0, 255.0) as u8;
    }
    photo
}

fn exposed(mut photo: image::RgbImage, stops: f64) -> image::RgbImage {
    let gain = stops.exp2();
    // sRGB is close to a power of 2.2: light is scaled, not code values.
    let curve: Vec<u8> = (0..=255)
        .map(|value| {
            let light = (f64::from(value) / 255.0).powf(2.2) * gain;
            (255.0 * light.min(1.0).powf(1.0 / 2.2)).round() as u8
        })
        .collect();
    for value in photo.iter_mut() {
        *value = curve[usize::from(*value)];
    }
    photo
}

fn recompressed(photo: image::RgbImage, quality: i32) -> image::RgbImage {
    let decoded = jpeg(&photo, quality.clamp(1, 100))
        .and_then(|bytes| turbojpeg::decompress(&bytes, turbojpeg::PixelFormat::RGB));
    match decoded {
        Ok(decoded) if decoded.pitch == decoded.width * 3 => {
            image::RgbImage::from_raw(decoded.width as u32, decoded.height as u32, decoded.pixels)
                .unwrap_or(photo)
        }
        _ => photo,
    }
}

/// Turned about its middle by `degrees` and then moved by shares of its edges; bilinear, black outside.
fn misframed(photo: &image::RgbImage, degrees: f64, (across, down): (f64, f64)) -> image::RgbImage {
    let (sine, cosine) = degrees.to_radians().sin_cos();
    let (width, height) = (photo.width(), photo.height());
    let middle = (f64::from(width - 1) / 2.0, f64::from(height - 1) / 2.0);
    let moved = (across * f64::from(width), down * f64::from(height));
    image::RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (f64::from(x) - middle.0 - moved.0, f64::from(y) - middle.1 - moved.1);
        let from = (middle.0 + cosine * x - sine * y, middle.1 + sine * x + cosine * y);
        imageops::interpolate_bilinear(photo, from.0 as f32, from.1 as f32).unwrap_or(image::Rgb([0; 3]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photo() -> image::RgbImage {
        image::RgbImage::from_fn(96, 64, |x, y| {
            image::Rgb([(x * 2) as u8, (y * 3) as u8, ((x ^ y) * 2) as u8])
        })
    }

    /// Mean absolute difference of two photos of one size.
    fn difference(one: &image::RgbImage, other: &image::RgbImage) -> f64 {
        let total: f64 = one.iter().zip(other.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        total / one.len() as f64
    }

    #[test]
    fn worse_looks_worse_and_is_worth_less() {
        let kinds: [fn(f64) -> Degradation; 6] = [
            Degradation::Blur,
            Degradation::Noise,
            Degradation::Exposure,
            |severity| Degradation::Exposure(-severity),
            Degradation::Compression,
            Degradation::Framing,
        ];
        for kind in kinds {
            let after = |severity| {
                let worse = degrade(photo(), &[kind(severity)], &mut Random::new(5, "test"));
                difference(&photo(), &worse)
            };
            let (mild, strong) = (after(0.25), after(1.0));
            assert!(mild < strong && strong > 3.0, "{:?}: {mild} and {strong}", kind(1.0));
            assert!(Degradation::quality(&[kind(1.0)]) < Degradation::quality(&[kind(0.25)]));
        }
        assert_eq!(degrade(photo(), &[], &mut Random::new(5, "test")), photo());
        assert_eq!(Degradation::quality(&[]), 1.0);
    }

    #[test]
    fn parts_have_the_edge_asked_for() {
        let rgb = image::RgbImage::from_fn(300, 200, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let mut random = Random::new(1, "test");
        for _ in 0..50 {
            let part = cut_out(&rgb, 96, &mut random);
            assert_eq!(part.width().max(part.height()), 96);
        }
    }
}
