//! Images a second on one core: from JPEG bytes to pixel values, beside libjpeg-turbo's decode of
//! the same bytes alone, and beside Pillow and the usual processor.

mod support {
    pub mod photo;
    pub mod python;
    pub mod results;
    pub mod timing;
}

use roc4mllm::image::{ImageSettings, PreprocessMode, Preprocessor, decode as decode_image};
use std::{
    fs,
    hint::black_box,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use support::{
    photo::photo,
    python::{folder, interpreter},
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

/// Turns that each contender has.
const TURNS: usize = 5;

const PHOTOS: [Photo; 3] = [
    Photo { name: "12mp", width: 4032, height: 3024, runs: 21 },
    Photo { name: "2mp", width: 1632, height: 1224, runs: 51 },
    Photo { name: "small", width: 300, height: 200, runs: 301 },
];

fn main() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let folder_path = temporary.path();
    fs::write(folder_path.join("preprocessor_config.json"), PREPROCESSOR_CONFIG).expect("a file in it");
    fs::write(folder_path.join("config.json"), "{}").expect("a file in it");
    let preprocessor = Preprocessor::open(folder_path).expect("a readable configuration");
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

        let path = folder_path.join(format!("{name}.jpg"));
        fs::write(&path, &jpeg).expect("a file in the folder");
        let mut python = Python::start(&path);
        let mut against_pillow = |what, work: &mut dyn FnMut()| {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            // In turns, so that a machine that slows down slows both.
            for turn in 0..=TURNS {
                let each = runs.div_ceil(TURNS);
                let times = python.times(what, each);
                let start = thread_time();
                (0..each).for_each(|_| work());
                let mean = (thread_time() - start).as_secs_f64() / each as f64;
                // Not the first turn: it warms up.
                if turn > 0 {
                    theirs.extend(times);
                    ours.push(mean);
                }
            }
            (median(ours) * 1e3, median(theirs) * 1e3)
        };
        let (ours, pillow) = against_pillow("preprocess", &mut || {
            preprocessor.read(&jpeg, &exact, black_box(&mut values)).expect("a decodable photo");
        });
        let (ours_decoded, pillow_decoded) = against_pillow("decode", &mut || {
            black_box(decode_image(&jpeg, &exact).expect("a decodable photo"));
        });
        println!(
            "{name:>6}: {ours:.2} ms, Pillow and the usual processor {pillow:.2} ms: {:.2} times; decoding alone \
             {ours_decoded:.2} ms, Pillow's {pillow_decoded:.2} ms",
            pillow / ours
        );
        let (speedup, decode_cost) = (format!("preprocess_{name}_speedup"), format!("decode_{name}_cost"));
        let entry = |name, value, against, against_value, ratio| Entry {
            name,
            value,
            unit: "ms",
            against,
            against_value,
            ratio,
            runs,
        };
        record(&[
            entry(&speedup, ours, "Pillow and the usual processor in numpy", pillow, pillow / ours),
            entry(
                &decode_cost,
                ours_decoded,
                "Pillow's decode alone",
                pillow_decoded,
                ours_decoded / pillow_decoded,
            ),
        ]);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A Python process that preprocesses one file as often as it is told to.
struct Python {
    child: Child,
}

impl Python {
    fn start(file: &Path) -> Self {
        let child = Command::new(interpreter().expect("the Python packages of the benchmarks"))
            .arg(folder().join("measure.py"))
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        Self { child }
    }

    /// Processor seconds of its thread, run by run.
    fn times(&mut self, what: &str, runs: usize) -> Vec<f64> {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{what} {runs}").and_then(|()| stdin.flush()).expect("Python reads");
        let mut line = String::new();
        // It writes one line an order, so nothing is left in the buffer.
        BufReader::new(self.child.stdout.as_mut().expect("a pipe"))
            .read_line(&mut line)
            .expect("Python answers");
        let times = line.split_whitespace().map(|time| time.parse().expect("a number"));
        let times: Vec<f64> = times.collect();
        assert_eq!(times.len(), runs, "Python answers with each run");
        times
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends with its input.
        let _ = self.child.wait();
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
