//! Photographs and their copies: recompressed, halved, cropped, turned.

use roc4mllm::{
    image::{self, ImageSettings, RgbImage},
    split::{ContentHash, Fingerprint, Side, SplitSettings, Splitter},
};
use std::{fs, path::Path};

/// Photographs that are of different things.
const SOURCES: usize = 200;

/// A photograph is made smaller to save the test's time; its copies are made of that.
const EDGE: f64 = 900.0;

/// Numbers that are always the same.
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.share()
    }
}

/// What `make setup` gathers.
fn photographs() -> Vec<(String, RgbImage)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps/photos");
    let entries = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}; run `make setup`", folder.display()));
    let mut files: Vec<_> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    files.sort();
    let photos: Vec<(String, RgbImage)> = files
        .iter()
        .filter_map(|file| {
            let decoded = image::decode(&fs::read(file).unwrap(), &ImageSettings::local()).ok()?;
            let longest = f64::from(decoded.width().max(decoded.height()));
            let scale = (EDGE / longest).min(1.0);
            let edge = |pixels: u32| (f64::from(pixels) * scale).round() as u32;
            let smaller = resized(&decoded, edge(decoded.width()), edge(decoded.height()));
            Some((file.file_name().unwrap().to_string_lossy().into_owned(), smaller))
        })
        .collect();
    assert!(photos.len() >= 8, "{}: only {} photographs; run `make setup`", folder.display(), photos.len());
    photos
}

/// As many different photos as are wanted: parts of photographs that overlap little or not at all.
fn sources() -> Vec<(String, RgbImage)> {
    let photographs = photographs();
    let mut random = Random(0x5eed);
    let mut sources = Vec::new();
    for round in 0.. {
        for (name, photograph) in &photographs {
            if sources.len() == SOURCES {
                return sources;
            }
            // The whole one first, then quarters, then eighths, each of its own shape.
            let (parts, index) = match round {
                0 => (1.0, 0),
                1..5 => (2.0, round - 1),
                _ => (3.0, (round - 5) % 9),
            };
            let (row, column) = ((f64::from(index) / parts).floor(), f64::from(index) % parts);
            let cell =
                |position: f64, share: f64| ((position / parts + (1.0 - share) / parts / 2.0), share / parts);
            let (across, down) = (random.between(0.8, 1.0), random.between(0.8, 1.0));
            let ((left, width), (top, height)) = (cell(column, across), cell(row, down));
            let area = if round == 0 { [0.0, 0.0, 1.0, 1.0] } else { [left, top, width, height] };
            sources.push((format!("{name}, part {round}"), part(photograph, area)));
        }
    }
    sources
}

/// The part that begins at these shares of width and height and is that wide and high.
fn part(image: &RgbImage, [left, top, width, height]: [f64; 4]) -> RgbImage {
    let pixels = |share: f64, edge: u32| (share * f64::from(edge)).round() as u32;
    let (x, y) = (pixels(left, image.width()), pixels(top, image.height()));
    let wide = pixels(width, image.width()).clamp(1, image.width() - x);
    let high = pixels(height, image.height()).clamp(1, image.height() - y);
    RgbImage::painted(wide, high, |column, row| image.pixel(x + column, y + row))
}

/// The mean of the pixels that each new one covers.
fn resized(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (width, height) = (width.max(1), height.max(1));
    RgbImage::painted(width, height, |x, y| {
        let span = |position: u32, new: u32, old: u32| {
            let first = u64::from(position) * u64::from(old) / u64::from(new);
            let end = (u64::from(position + 1) * u64::from(old)).div_ceil(u64::from(new));
            first as u32..(end as u32).max(first as u32 + 1)
        };
        let (columns, rows) = (span(x, width, image.width()), span(y, height, image.height()));
        let count = columns.len() as u32 * rows.len() as u32;
        let mut sums = [0_u32; 3];
        for row in rows {
            for column in columns.clone() {
                for (sum, sample) in sums.iter_mut().zip(image.pixel(column, row)) {
                    *sum += u32::from(sample);
                }
            }
        }
        sums.map(|sum| (sum / count) as u8)
    })
}

fn jpeg(image: &RgbImage, quality: i32) -> Vec<u8> {
    let pixels = turbojpeg::Image {
        pixels: image.pixels(),
        width: image.width() as usize,
        pitch: image.width() as usize * 3,
        height: image.height() as usize,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(pixels, quality, turbojpeg::Subsamp::Sub2x2).unwrap().to_vec()
}

/// One copy in each of the three ways; a crop takes 3% from one side, from two that meet, or from both
/// sides of an edge, by turns.
fn copies(image: &RgbImage, index: usize) -> [(&'static str, Vec<u8>); 3] {
    let (near, far) = (0.97, 0.03);
    let crops = [
        [far, 0.0, near, 1.0],
        [0.0, 0.0, near, 1.0],
        [0.0, far, 1.0, near],
        [0.0, 0.0, 1.0, near],
        [far, far, near, near],
        [0.0, 0.0, near, near],
        [0.015, 0.015, near, near],
        [far, far, 0.94, 0.94],
    ];
    [
        ("recompressed", jpeg(image, 60)),
        ("halved", jpeg(&resized(image, image.width() / 2, image.height() / 2), 85)),
        ("cropped", jpeg(&part(image, crops[index % crops.len()]), 85)),
    ]
}

fn fingerprint(file: &[u8]) -> Fingerprint {
    Fingerprint::of_file(file, &ImageSettings::local()).unwrap()
}

#[test]
fn copies_land_on_the_side_of_their_originals() {
    // As many on one side as on the other: a copy that is not recognised is found out in half the cases,
    // and one that is recognised has its original's group.
    let mut splitter = Splitter::new(SplitSettings { holdout: 0.5, ..SplitSettings::default() });
    let sources = sources();
    let originals: Vec<_> = sources
        .iter()
        .map(|(_, image)| {
            let file = jpeg(image, 92);
            splitter.assign(ContentHash::of(&file), Some(&fingerprint(&file)))
        })
        .collect();
    let groups: std::collections::BTreeSet<_> = originals.iter().map(|original| original.group).collect();
    assert!(groups.len() >= SOURCES * 97 / 100, "different photos are in different groups: {}", groups.len());
    let held = originals.iter().filter(|original| original.side == Side::Holdout).count();
    assert!((SOURCES / 4..SOURCES * 3 / 4).contains(&held), "{held} of {SOURCES} are held out");

    let mut astray: std::collections::BTreeMap<&str, Vec<&str>> = Default::default();
    for (index, ((name, image), original)) in sources.iter().zip(&originals).enumerate() {
        for (way, file) in copies(image, index) {
            let copy = splitter.assign(ContentHash::of(&file), Some(&fingerprint(&file)));
            let missed = astray.entry(way).or_default();
            if copy.group != original.group || copy.side != original.side {
                missed.push(name);
            }
        }
    }
    for (way, missed) in astray {
        assert!(missed.len() <= 2, "{} of {SOURCES} {way}: {missed:?}", missed.len());
    }
}

#[test]
fn a_photo_that_was_turned_by_its_metadata_is_the_photo_that_was_turned() {
    let (_, photo) = photographs().swap_remove(1);
    let (width, height) = (photo.width(), photo.height());
    // As a camera held upright stores it: lying, with a note to turn it clockwise.
    let lying = RgbImage::painted(height, width, |x, y| photo.pixel(width - 1 - y, x));
    let plain = jpeg(&lying, 90);
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([6, 0, 0, 0, 0, 0, 0]);
    let length = (exif.len() as u16 + 2).to_be_bytes();
    let noted = [&plain[..2], b"\xFF\xE1", &length, &exif, &plain[2..]].concat();
    assert!(fingerprint(&noted).is_near(&fingerprint(&jpeg(&photo, 90))));
    assert!(!fingerprint(&plain).is_near(&fingerprint(&jpeg(&photo, 90))));
}
