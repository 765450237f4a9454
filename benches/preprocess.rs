//! Images a second on one core: from JPEG bytes to pixel values, beside libjpeg-turbo's decode of
//! the same bytes alone.

mod support {
    pub mod photo;
    pub mod results;
    pub mod timing;
}

use roc4mllm::image::{ImageSettings, PreprocessMode, Preprocessor};
use std::{fs, hint::black_box, time::Duration};
use support::{
    photo::photo,
    results::{Entry, record},
    timing::interleaved,
};

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
            thread_time,
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

/// Processor time of the calling thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "this system has no processor time of a thread");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
