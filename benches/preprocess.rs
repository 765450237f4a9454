//! Images a second on one core: from JPEG bytes to pixel values, beside libjpeg-turbo's decode of
//! the same bytes alone.

mod support;

use roc4mllm::image::{ImageSettings, PreprocessMode, Preprocessor};
use std::{fs, hint::black_box};
use support::{Entry, interleaved, record};

/// The published checkpoint's preprocessing.
const PREPROCESSOR_CONFIG: &str = r#"{
    "size": 448, "crop_size": 448, "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711]
}"#;

struct Photo {
    name: &'static str,
    width: usize,
    height: usize,
    runs: usize,
}

const PHOTOS: [Photo; 3] = [
    Photo { name: "12mp", width: 4032, height: 3024, runs: 21 },
    Photo { name: "2mp", width: 1632, height: 1224, runs: 51 },
    Photo { name: "small", width: 300, height: 200, runs: 301 },
];

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("preprocessor_config.json"), PREPROCESSOR_CONFIG).expect("a file in it");
    fs::write(folder.path().join("config.json"), "{}").expect("a file in it");
    let preprocessor = Preprocessor::open(folder.path()).expect("a readable configuration");
    let exact = ImageSettings::default();
    let fast = ImageSettings { preprocess: PreprocessMode::Fast, ..ImageSettings::default() };
    let edge = preprocessor.image_size();
    let mut values = vec![0.0; 3 * edge * edge];
    let mut fast_values = values.clone();

    println!(
        "{:>6} {:>9} {:>8}  {:>26}  {:>26}  {:>26}",
        "", "pixels", "bytes", "decode + preprocess", "fast", "libjpeg-turbo decode alone"
    );
    for Photo { name, width, height, runs } in PHOTOS {
        let jpeg = photo(width, height);
        let mut decompressor = turbojpeg::Decompressor::new().expect("a decompressor");
        let mut pixels = vec![0; width * height * 3];
        let times = interleaved(
            runs,
            &mut [
                &mut || {
                    preprocessor.read(&jpeg, &exact, black_box(&mut values)).expect("a decodable photo");
                },
                &mut || {
                    preprocessor.read(&jpeg, &fast, black_box(&mut fast_values)).expect("a decodable photo");
                },
                &mut || {
                    let image = turbojpeg::Image {
                        pixels: black_box(pixels.as_mut_slice()),
                        width,
                        pitch: width * 3,
                        height,
                        format: turbojpeg::PixelFormat::RGB,
                    };
                    decompressor.decompress(&jpeg, image).expect("a decodable photo");
                },
            ],
        );
        let milliseconds: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        let [whole, reduced, decode] = milliseconds[..] else { unreachable!("three contenders") };
        print!("{name:>6} {width:>4}x{height:<4} {:>8}", jpeg.len());
        for time in [whole, reduced, decode] {
            print!("  {time:>9.2} ms {:>8.1} img/s", 1e3 / time);
        }
        println!("  (medians of {runs}, one core)");
        let entry = |name, value| Entry {
            name,
            value,
            unit: "ms",
            against: "libjpeg-turbo decode alone",
            against_value: decode,
            ratio: value / decode,
            runs,
        };
        let cost = format!("preprocess_{name}_cost");
        let fast_cost = format!("preprocess_{name}_fast_cost");
        record(&[entry(&cost, whole), entry(&fast_cost, reduced)]);
    }
}

/// A JPEG (4:2:0) of a computed scene with about the detail of a photo: smooth shapes, texture in
/// several sizes, and sensor noise. About 2.7 bits a pixel.
fn photo(width: usize, height: usize) -> Vec<u8> {
    const OCTAVES: [(usize, f32); 5] = [(256, 50.0), (64, 28.0), (16, 16.0), (4, 12.0), (1, 17.0)];
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let texture: f32 =
                OCTAVES.iter().map(|&(size, strength)| strength * smooth_noise(x, y, size)).sum();
            let sky = 60.0 * (1.0 - y as f32 / height as f32);
            let hue = 40.0 * smooth_noise(x, y, 512);
            pixels.extend(
                [90.0 + texture + hue, 105.0 + texture, 95.0 + texture + sky - hue]
                    .map(|v| v.clamp(0.0, 255.0) as u8),
            );
        }
    }
    let image = turbojpeg::Image {
        pixels: pixels.as_slice(),
        width,
        pitch: width * 3,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(image, 85, turbojpeg::Subsamp::Sub2x2).expect("an encodable photo").to_vec()
}

/// Value noise in -1..1: random numbers on a grid of `size` pixels, interpolated between.
fn smooth_noise(x: usize, y: usize, size: usize) -> f32 {
    let (column, row) = (x / size, y / size);
    if size == 1 {
        return lattice(column, row, size);
    }
    let ease = |offset: usize| {
        let t = offset as f32 / size as f32;
        t * t * (3.0 - 2.0 * t)
    };
    let (across, down) = (ease(x % size), ease(y % size));
    let mix = |a: f32, b: f32, t: f32| a + (b - a) * t;
    mix(
        mix(lattice(column, row, size), lattice(column + 1, row, size), across),
        mix(lattice(column, row + 1, size), lattice(column + 1, row + 1, size), across),
        down,
    )
}

fn lattice(column: usize, row: usize, size: usize) -> f32 {
    let mut hash =
        (column as u32).wrapping_mul(0x9E37_79B1) ^ (row as u32).wrapping_mul(0x85EB_CA77) ^ size as u32;
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x2C1B_3C6D);
    hash = (hash ^ (hash >> 12)).wrapping_mul(0x297A_2D39);
    (hash >> 8) as f32 / (1 << 23) as f32 - 1.0
}
