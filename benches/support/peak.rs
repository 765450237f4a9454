//! The fastest matrix multiplication of the machine, as what a network's speed is held against.

use super::{
    device::Place,
    results::{Entry, record},
    timing::interleaved,
};
use roc4mllm::{
    model::config::LanguageConfig,
    plan::work::{LanguagePass, LanguageWork},
};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

pub const RUNS: usize = 5;
/// On a GPU, which takes milliseconds for what takes a CPU seconds.
pub const GPU_RUNS: usize = 20;
/// M, N and K of the multiplications among which the peak is sought: a square one, and the widest of
/// a vision and of a language layer with many rows.
const SHAPES: [[i64; 3]; 3] = [[2048, 2048, 2048], [4100, 4096, 1024], [1024, 11008, 4096]];
/// Sought on a GPU as well: what fills it.
const GPU_SHAPE: [i64; 3] = [8192, 8192, 8192];
/// A type that the processor multiplies at less than this fraction of f32's speed, because it has no
/// instructions for it, is not what anybody would run there, and would take an hour.
const WORTHWHILE: f64 = 0.25;

/// What the multiplications of the peak work on.
pub struct Peak {
    operands: Vec<([i64; 3], Tensor, Tensor)>,
    pub dtype: &'static str,
    place: Place,
}

impl Peak {
    /// In one type after the other that is of use where it is computed: on a CPU f32, and bf16 where it has
    /// instructions for it; on a GPU bf16.
    pub fn of_each_type(place: Place) -> impl Iterator<Item = (Kind, Self)> {
        tch::manual_seed(1);
        println!(
            "{:>8} {:>5} {:>5} {:>9} {:>9} {:>9}  {:>8}  peak",
            "", "dtype", "batch", "GFLOP", "ms", "GFLOP/s", "fraction"
        );
        [(Kind::Float, "f32"), (Kind::BFloat16, "bf16")]
            .into_iter()
            .filter(move |&(kind, dtype)| match place.is_gpu() {
                true => kind == Kind::BFloat16,
                false => kind == Kind::Float || worthwhile(kind, dtype, place),
            })
            .map(move |(kind, dtype)| (kind, Self::new(kind, dtype, place)))
    }

    fn new(kind: Kind, dtype: &'static str, place: Place) -> Self {
        let random = |rows, columns| Tensor::randn([rows, columns], (kind, place.device));
        let shapes = SHAPES.into_iter().chain(place.is_gpu().then_some(GPU_SHAPE));
        let operands = shapes.map(|shape @ [m, n, k]| (shape, random(m, k), random(k, n))).collect();
        Self { operands, dtype, place }
    }

    /// Measures `run`, which does `work` floating-point operations, beside the peak; prints the line of
    /// `part` and `batch`, and records it as `name`.
    pub fn compare(&self, name: &str, part: &str, batch: i64, work: f64, mut run: impl FnMut()) {
        let place = self.place;
        let multiply = |a: &Tensor, b: &Tensor| {
            drop(a.mm(b));
            place.settle();
        };
        let mut multiplications: Vec<_> = self.operands.iter().map(|(_, a, b)| || multiply(a, b)).collect();
        // How long the host takes to tell a GPU what to do: where that is all of the time, it is what waits.
        let mut told = Vec::new();
        let mut run = || {
            let start = Instant::now();
            run();
            told.push(start.elapsed());
            place.settle();
        };
        let mut contenders: Vec<&mut dyn FnMut()> = vec![&mut run];
        contenders.extend(multiplications.iter_mut().map(|run| run as &mut dyn FnMut()));
        let runs = if place.is_gpu() { GPU_RUNS } else { RUNS };
        let times = interleaved(clock(place), runs, &mut contenders);
        told.sort_unstable();
        let seconds = times[0].as_secs_f64();
        let rate = work / seconds / 1e9;
        let (fastest, [m, n, k]) = times[1..]
            .iter()
            .zip(&self.operands)
            .map(|(time, &(shape, ..))| (2.0 * volume(&shape) / time.as_secs_f64() / 1e9, shape))
            .max_by(|(one, _), (other, _)| one.total_cmp(other))
            .expect("at least one shape");
        let (dtype, label) = (self.dtype, place.label());
        let host = match place.is_gpu() {
            true => format!("; the host took {:.2} ms", told[told.len() / 2].as_secs_f64() * 1e3),
            false => String::new(),
        };
        println!(
            "{part:>8} {dtype:>5} {batch:>5} {:>9.1} {:>9.2} {rate:>9.1}  {:>8.2}  {fastest:.1} GFLOP/s at M {m} N {n} K {k}, {label} (medians of {runs}){host}",
            work / 1e9,
            seconds * 1e3,
            rate / fastest,
        );
        let against = format!("torch.mm, M {m}, N {n}, K {k}, {dtype}, {label}: {fastest:.1} GFLOP/s");
        record(&[Entry {
            name: &format!("{name}{}", place.suffix()),
            value: rate,
            unit: "GFLOP/s",
            against: &against,
            against_value: fastest,
            ratio: rate / fastest,
            runs,
        }]);
    }
}

/// Whether this processor has use for `kind`: records its speed beside that of f32.
fn worthwhile(kind: Kind, dtype: &str, place: Place) -> bool {
    const EDGE: i64 = 512;
    let operands = |kind| {
        let random = || Tensor::randn([EDGE, EDGE], (kind, place.device));
        (random(), random())
    };
    let ((a, b), (c, d)) = (operands(kind), operands(Kind::Float));
    let start = Instant::now();
    let times = interleaved(|| start.elapsed(), RUNS, &mut [&mut || drop(a.mm(&b)), &mut || drop(c.mm(&d))]);
    let rate = |index: usize| 2.0 * volume(&[EDGE; 3]) / times[index].as_secs_f64() / 1e9;
    let ratio = rate(0) / rate(1);
    record(&[Entry {
        name: &format!("{dtype}_matmul_speed"),
        value: rate(0),
        unit: "GFLOP/s",
        against: &format!("torch.mm, M {EDGE}, N {EDGE}, K {EDGE}, f32, {}", place.label()),
        against_value: rate(1),
        ratio,
        runs: RUNS,
    }]);
    if ratio < WORTHWHILE {
        println!("{dtype}: multiplied at {ratio:.3} of f32's speed here; the model is not measured in it");
    }
    ratio >= WORTHWHILE
}

/// What work is timed by. That of one thread, this one, is its processor's time, which other programs on the
/// machine cannot stretch: `taskset -c 0` measures on a busy machine.
pub fn clock(place: Place) -> impl Fn() -> Duration {
    let start = Instant::now();
    let alone = !place.is_gpu() && tch::get_num_threads() == 1;
    move || if alone { thread_time() } else { start.elapsed() }
}

/// Processor time of the calling thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "this system has no processor time of a thread");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Floating-point operations of all layers of a language model over `positions` positions of each of
/// `batch` rows, as `roc4mllm plan` counts them.
pub fn language_work(config: &LanguageConfig, positions: i64, batch: i64) -> f64 {
    let new = positions.unsigned_abs();
    let pass = LanguagePass { cached: 0, new, read: new, logits: 0 };
    batch as f64 * LanguageWork::of(config, &[pass]).total()
}

pub fn volume(sizes: &[i64]) -> f64 {
    sizes.iter().map(|&size| size as f64).product()
}
