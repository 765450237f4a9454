//! The network's speed as a fraction of the same machine's matrix multiplication, for layers of the
//! published model's dimensions with made-up weights.
//!
//! Two layers of each part stand for all of them: every layer does the same work, and what is left
//! out (the patch embedding counts, the vocabulary does not) is a few percent of the whole.

mod support {
    pub mod results;
    pub mod timing;
}

use roc4mllm::model::{
    checkpoint::expected_tensors,
    config::{AbstractorConfig, LanguageConfig, ModelConfig, SpecialTokens, VisionConfig},
    family::{Block, Family},
    mplug_owl2::MplugOwl2,
    parameters::Parameters,
};
use std::time::Instant;
use support::{
    results::{Entry, record},
    timing::interleaved,
};
use tch::{Device, Kind, Tensor};

const LAYERS: i64 = 2;
const RUNS: usize = 5;
/// Positions of the prompt's text, about as many as the usual prompt has.
const TEXT: i64 = 64;
/// M, N and K of the multiplications among which the peak is sought: a square one, and the widest of
/// a vision and of a language layer with many rows.
const PEAK_SHAPES: [[i64; 3]; 3] = [[2048, 2048, 2048], [4100, 4096, 1024], [1024, 11008, 4096]];
/// A type that the processor multiplies at less than this fraction of f32's speed, because it has no
/// instructions for it, is not what anybody would run there, and would take an hour.
const WORTHWHILE: f64 = 0.25;

fn main() {
    let _no_grad = tch::no_grad_guard();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    tch::manual_seed(1);
    println!(
        "{:>8} {:>5} {:>5} {:>9} {:>9} {:>9}  {:>8}  peak",
        "", "dtype", "batch", "GFLOP", "ms", "GFLOP/s", "fraction"
    );
    for (kind, dtype) in [(Kind::Float, "f32"), (Kind::BFloat16, "bf16")] {
        if kind != Kind::Float && !worthwhile(kind, dtype, threads) {
            continue;
        }
        let network = network(kind);
        let peak = Peak::new(kind, dtype, threads);
        for batch in [1, 4] {
            let Work { vision, language } = Work::of(network.config(), batch);
            let vision_run = || drop(network.vision().forward(&pixels(batch, kind)).expect("a forward pass"));
            report("vision", batch, vision, &peak, vision_run);
            let positions = TEXT + network.image_positions();
            let width = network.config().language.hidden_size;
            let embeddings = Tensor::randn([batch, positions, width], (kind, Device::Cpu));
            let image = TEXT / 2..TEXT / 2 + network.image_positions();
            let language_run = || {
                let mut cache = network.new_cache(batch, positions).expect("a cache");
                let block = Block { embeddings: &embeddings, image: image.clone() };
                drop(network.forward(&block, &mut cache).expect("a forward pass"));
            };
            report("language", batch, language, &peak, language_run);
        }
    }
}

/// Whether this processor has use for `kind`: records its speed beside that of f32.
fn worthwhile(kind: Kind, dtype: &str, threads: usize) -> bool {
    const EDGE: i64 = 512;
    let operands = |kind| {
        let random = || Tensor::randn([EDGE, EDGE], (kind, Device::Cpu));
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
        against: &format!("torch.mm, M {EDGE}, N {EDGE}, K {EDGE}, f32, {threads} threads"),
        against_value: rate(1),
        ratio,
        runs: RUNS,
    }]);
    if ratio < WORTHWHILE {
        println!("{dtype}: multiplied at {ratio:.3} of f32's speed here; the model is not measured in it");
    }
    ratio >= WORTHWHILE
}

/// Measures one part beside the peak, and prints and records it.
fn report(part: &str, batch: i64, work: f64, peak: &Peak, mut run: impl FnMut()) {
    let mut multiplications: Vec<_> = peak.operands.iter().map(|(a, b)| || drop(a.mm(b))).collect();
    let mut contenders: Vec<&mut dyn FnMut()> = vec![&mut run];
    contenders.extend(multiplications.iter_mut().map(|run| run as &mut dyn FnMut()));
    let start = Instant::now();
    let times = interleaved(|| start.elapsed(), RUNS, &mut contenders);
    let seconds = times[0].as_secs_f64();
    let rate = work / seconds / 1e9;
    let (fastest, [m, n, k]) = times[1..]
        .iter()
        .zip(PEAK_SHAPES)
        .map(|(time, shape)| (2.0 * volume(&shape) / time.as_secs_f64() / 1e9, shape))
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .expect("at least one shape");
    let Peak { dtype, threads, .. } = peak;
    println!(
        "{part:>8} {dtype:>5} {batch:>5} {:>9.1} {:>9.1} {rate:>9.1}  {:>8.2}  {fastest:.1} GFLOP/s at M {m} N {n} K {k}, {threads} threads (medians of {RUNS})",
        work / 1e9,
        seconds * 1e3,
        rate / fastest,
    );
    // The plain name is the largest batch in f32, the type that every processor multiplies at speed.
    let name = match (*dtype, batch) {
        ("f32", 4) => format!("{part}_peak_fraction"),
        _ => format!("{part}_peak_fraction_{dtype}_b{batch}"),
    };
    let against = format!("torch.mm, M {m}, N {n}, K {k}, {dtype}, {threads} threads: {fastest:.1} GFLOP/s");
    record(&[Entry {
        name: &name,
        value: rate,
        unit: "GFLOP/s",
        against: &against,
        against_value: fastest,
        ratio: rate / fastest,
        runs: RUNS,
    }]);
}

/// What the multiplications of the peak work on.
struct Peak {
    operands: Vec<(Tensor, Tensor)>,
    dtype: &'static str,
    threads: usize,
}

impl Peak {
    fn new(kind: Kind, dtype: &'static str, threads: usize) -> Self {
        let random = |rows, columns| Tensor::randn([rows, columns], (kind, Device::Cpu));
        let operands = PEAK_SHAPES.iter().map(|&[m, n, k]| (random(m, k), random(k, n))).collect();
        Self { operands, dtype, threads }
    }
}

/// Floating-point operations of one pass, two a multiplication and addition. Norms, activations and
/// softmax are not counted.
struct Work {
    vision: f64,
    language: f64,
}

impl Work {
    fn of(config: &ModelConfig, batch: i64) -> Self {
        let VisionConfig { hidden_size: width, intermediate_size: wide, patch_size: patch, .. } =
            config.vision;
        let positions = config.vision.positions();
        let embedding = volume(&[positions - 1, 3 * patch * patch, width]);
        let layer =
            volume(&[positions, width, 4 * width + 2 * wide]) + 2.0 * volume(&[positions, positions, width]);
        let vision = embedding + LAYERS as f64 * layer;

        let LanguageConfig { hidden_size: width, intermediate_size: wide, .. } = config.language;
        let positions = TEXT + config.image_positions();
        // A position attends to itself and those before it.
        let attention = 2.0 * volume(&[positions, positions + 1, width]) / 2.0;
        let layer = volume(&[positions, width, 4 * width + 3 * wide]) + attention;
        let language = LAYERS as f64 * layer;
        let operations = 2.0 * batch as f64;
        Self { vision: operations * vision, language: operations * language }
    }
}

fn volume(sizes: &[i64]) -> f64 {
    sizes.iter().map(|&size| size as f64).product()
}

fn pixels(images: i64, kind: Kind) -> Tensor {
    Tensor::randn([images, 3, 448, 448], (kind, Device::Cpu))
}

/// The published dimensions but for the number of layers and the vocabulary.
fn network(kind: Kind) -> MplugOwl2 {
    let config = ModelConfig {
        model_type: "mplug_owl2".into(),
        torch_dtype: None,
        image_aspect_ratio: None,
        language: LanguageConfig {
            vocab_size: 64,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: LAYERS,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            attention_bias: false,
            tie_word_embeddings: false,
        },
        vision: VisionConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: LAYERS,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 448,
            patch_size: 14,
            layer_norm_eps: 1e-6,
        },
        abstractor: AbstractorConfig {
            hidden_size: 1024,
            intermediate_size: 2816,
            num_hidden_layers: 1,
            num_attention_heads: 16,
            num_learnable_queries: 64,
            grid_size: 32,
            layer_norm_eps: 1e-6,
        },
        score: None,
        special: SpecialTokens { bos: 1, eos: vec![2], pad: 0 },
    };
    let weights =
        expected_tensors(&config).into_iter().filter(|(_, expected)| !expected.role.may_be_absent());
    let weights = weights.map(|(name, expected)| {
        let weight = (Tensor::randn(&expected.shape, (Kind::Float, Device::Cpu)) * 0.02).to_kind(kind);
        (name, weight)
    });
    MplugOwl2::new(config, Parameters::new(weights.collect())).expect("every weight is there")
}
