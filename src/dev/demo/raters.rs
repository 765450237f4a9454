//! Raters of the demo: parts of its photographs, and what is said of them.

use crate::{
    dev::demo_model::{Degradation, Source, cut_out, degrade, jpeg},
    train::random::Random,
};
use image::{RgbImage, imageops};
use std::path::Path;

/// Parts of a photograph, drawn as those that the demo's model was trained on.
const PARTS: usize = 56;
/// The long edge of a part, in pixels.
const EDGE: u32 = 128;
/// And of the photograph that parts are cut out of: enough for the smallest.
const PHOTO_EDGE: u32 = 512;
const QUALITY: i32 = 92;
/// Raters and how far each is apart from what a part is worth: as far as those disagreed whom the demo's model
/// has learned from, so that nothing but their preference is new.
pub const RATERS: [(&str, f64); 5] = [("ann", -1.0), ("bob", 0.0), ("eve", 1.0), ("joe", -0.5), ("sue", 0.5)];

/// A part of a photograph and what it is worth to raters, from 1 to 10.
pub struct Part {
    pub key: String,
    pub content: Vec<u8>,
    pub score: f64,
}

/// What raters have said before, and what they say now.
#[derive(Default)]
pub struct Rated {
    /// Made worse in known ways, and rated by how much: as the demo's model has learned it.
    pub known: Vec<Part>,
    /// In sepia, and the darker the better: of that it knows nothing.
    pub new: Vec<Part>,
}

/// Of so many parts one is new. The rest is more, since it takes more photographs to show that a model has not
/// become worse at what it was good at than that it has become much better at something.
const ONE_NEW_IN: usize = 3;

/// Parts of the photographs that can be decoded, of either kind.
pub fn rate<'a>(photos: impl Iterator<Item = &'a Path>) -> Rated {
    let mut rated = Rated::default();
    for (number, photo) in photos.enumerate() {
        let Ok(Source { photo, .. }) = Source::read(photo) else { continue };
        let (width, height) = scaled(&photo);
        let photo = imageops::thumbnail(&photo, width, height);
        for index in 0..PARTS {
            let mut random = Random::new(number as u64, &format!("rated/{index}"));
            let part = cut_out(&photo, EDGE, &mut random);
            let is_known = !(number + index).is_multiple_of(ONE_NEW_IN);
            let (kind, part, score) = match is_known {
                true => {
                    let degradations = Degradation::draw(&mut random);
                    let score = 1.0 + 9.0 * Degradation::quality(&degradations);
                    ("known", degrade(part, &degradations, &mut random), score)
                }
                false => {
                    let exposure = [Degradation::Exposure(f64::from(random.symmetric(0.7)))];
                    let part = degrade(part, &exposure, &mut random);
                    let score = 10.0 - 9.0 * brightness(&part) / 255.0;
                    ("sepia", in_sepia(part), score)
                }
            };
            let Ok(content) = jpeg(&part, QUALITY) else { continue };
            let key = format!("{kind}/{number:03}-{index:02}.jpg");
            let part = Part { key, content, score };
            if is_known { rated.known.push(part) } else { rated.new.push(part) }
        }
    }
    rated
}

/// Width and height of a photograph with a long edge of [`PHOTO_EDGE`].
fn scaled(photo: &RgbImage) -> (u32, u32) {
    let scale = f64::from(PHOTO_EDGE) / f64::from(photo.width().max(photo.height()).max(1));
    let scaled = |length: u32| (f64::from(length) * scale).round().max(1.0) as u32;
    (scaled(photo.width()), scaled(photo.height()))
}

fn in_sepia(mut photo: RgbImage) -> RgbImage {
    for pixel in photo.pixels_mut() {
        let grey = grey(pixel.0);
        pixel.0 = [grey, grey * 4 / 5, grey / 2].map(|value| value as u8);
    }
    photo
}

/// From 0 to 255.
fn grey([red, green, blue]: [u8; 3]) -> u32 {
    (299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue)) / 1_000
}

fn brightness(photo: &RgbImage) -> f64 {
    let total: f64 = photo.pixels().map(|pixel| f64::from(grey(pixel.0))).sum();
    total / f64::from((photo.width() * photo.height()).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageSettings, decode};
    use std::fs;

    #[test]
    fn each_part_is_rated_once_and_dark_ones_in_sepia_are_liked() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [20_u8, 120, 220].map(|level| {
            let path = folder.path().join(format!("{level}.png"));
            RgbImage::from_pixel(400, 300, image::Rgb([level, level / 2, level])).save(&path).unwrap();
            path
        });
        let broken = folder.path().join("broken.jpg");
        fs::write(&broken, b"no photograph").unwrap();
        let rated = rate(paths.iter().chain([&broken]).map(|path| path.as_path()));
        assert_eq!((rated.known.len(), rated.new.len()), (2 * PARTS, PARTS), "of three photographs");
        let keys: std::collections::HashSet<_> =
            rated.known.iter().chain(&rated.new).map(|part| part.key.as_str()).collect();
        assert_eq!(keys.len(), 3 * PARTS);
        for part in &rated.new {
            let photo = decode(&part.content, &ImageSettings::local()).unwrap();
            let [red, green, blue] = photo.pixel(5, 5);
            assert!(red >= green && green >= blue, "{red} {green} {blue}");
            let liked = 10.0 - 9.0 * f64::from(red) / 255.0;
            assert!((part.score - liked).abs() < 0.2, "{} at {red}", part.score);
        }
        assert!(rated.known.iter().all(|part| (1.0..=10.0).contains(&part.score)));
    }
}
