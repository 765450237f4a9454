//! The whole scorer on a GPU: a checkpoint of the published dimensions with made-up weights, from its files
//! to scores, beside the GPU's own matrix multiplication and what `plan` says of it.
//!
//! `cargo bench --bench gpu -- --device cuda:0` writes 15 GB to a temporary folder (TMPDIR says where) and
//! needs a GPU with 24 GB or more, in a build against a CUDA libtorch. Without `--device` nothing is measured.
//! Numbers name other sizes of batch (`-- --device cuda:0 1 4`), `--layers N` takes fewer layers of vision and
//! language model, `--photos N` other than 1536 photos.
//!
//! Every image gets the same answer: what the layers add to a token's embedding is small, and the head finds
//! in an embedding the token that comes next. That changes none of the layers' work.

mod support {
    pub mod device;
    pub mod photo;
    pub mod results;
}

use roc4mllm::{
    image::PREPROCESS_REVISION,
    inference::{ScoreBatch, Scorer, ScorerError, slot::SlotPool},
    model::{
        ModelSettings, TorchScorer,
        checkpoint::{expected_tensors, write_weights},
        config::ModelConfig,
        gpu,
        prompt::PromptTokens,
        settings::PromptChoice,
        tokenizer::Tokenizer,
        transfer::read_backs,
    },
    plan::{
        device::DeviceFigures,
        estimate::{Estimate, ImageBytes, PartBytes, estimate},
        work::{PromptLengths, Work},
    },
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use support::{
    device::{Place, names},
    photo::photo,
    results::{Entry, record},
};
use tch::{Kind, Tensor};

/// Unless others are named.
const BATCHES: [usize; 6] = [1, 2, 8, 16, 32, 64];
const RUNS: usize = 10;
/// Generating takes several times as long.
const GENERATE_RUNS: usize = 3;
const END: i64 = 2;
/// Eleven in, the score; fourteen in, the end. No other id stands for a piece that the prompt ends with.
const ANSWER: [i64; 14] = [310, 311, 312, 313, 314, 315, 316, 317, 318, 319, SCORE, 320, 321, END];
const SCORE: i64 = 32_000;
/// Photos that the program scores from a folder, of which so many differ.
const PHOTOS: i64 = 1536;
const DIFFERENT: usize = 8;

fn main() {
    let place = Place::asked();
    let layers = number("--layers");
    let named: Vec<usize> = names().filter_map(|name| name.parse().ok()).collect();
    let batches = if named.is_empty() { BATCHES.to_vec() } else { named };
    if !place.is_gpu() && layers.is_none() {
        println!("gpu: not measured; name a GPU with `--device cuda:0`");
        return;
    }
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(1);
    let ceilings = ceilings(place);
    println!(
        "{}: {:.1} GB, copies {:.0} GB/s, multiplies {:.0} TFLOP/s in bf16",
        ceilings.name,
        ceilings.memory as f64 / 1e9,
        ceilings.bandwidth / 1e9,
        ceilings.flops / 1e12
    );

    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = Instant::now();
    let lengths = write_checkpoint(folder.path(), layers, place);
    println!("written in {:.1} s", start.elapsed().as_secs_f64());
    let plan = plan(&ModelConfig::read(folder.path()).expect("a config.json"), lengths, ceilings);

    let settings = ModelSettings {
        checkpoint: folder.path().display().to_string(),
        device: named_device(),
        ..ModelSettings::default()
    };
    gpu::forget_peak(place.device).expect("the allocator's numbers");
    let start = Instant::now();
    let mut scorer = TorchScorer::load(&settings, PREPROCESS_REVISION).expect("a loaded model");
    place.settle();
    println!(
        "loaded in {:.1} s: {:.2} GB of weights, {:.2} GB of the device taken",
        start.elapsed().as_secs_f64(),
        plan.weights.total() as f64 / 1e9,
        peak(place) / 1e9
    );
    measure(&mut scorer, &plan, &batches, place);
    drop(scorer);
    let photos = usize::try_from(number("--photos").unwrap_or(PHOTOS)).expect("a number of photos");
    score_folder(folder.path(), photos, batches.iter().copied().max().unwrap_or(1));
}

/// The value of a flag.
fn number(flag: &str) -> Option<i64> {
    std::env::args().skip_while(|argument| argument != flag).nth(1)?.parse().ok()
}

fn named_device() -> roc4mllm::model::device::Device {
    let named = std::env::args().skip_while(|argument| argument != "--device").nth(1);
    named.as_deref().unwrap_or("cpu").parse().expect("a device")
}

/// The most bytes that tensors took on the device.
fn peak(place: Place) -> f64 {
    gpu::peak(place.device).expect("the allocator's numbers").unwrap_or(0) as f64
}

/// What the device itself reaches: its memory, a copy within it, and a large multiplication, medians.
fn ceilings(place: Place) -> DeviceFigures {
    let edge = if place.is_gpu() { 8192 } else { 1024 };
    let random = || Tensor::randn([edge, edge], (Kind::BFloat16, place.device));
    let (a, b) = (random(), random());
    let (from, to) =
        (Tensor::zeros([edge * edge * 16], (Kind::Float, place.device)), random().view([-1]).repeat([32]));
    let median = |work: &dyn Fn()| {
        let mut times: Vec<Duration> = (0..30)
            .map(|_| {
                let start = Instant::now();
                work();
                place.settle();
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64()
    };
    let multiply = median(&|| drop(a.mm(&b)));
    let from = from.view_dtype(Kind::BFloat16);
    let copy = median(&|| {
        let mut to = to.shallow_clone();
        to.copy_(&from);
    });
    let memory = gpu::memory(place.device).expect("the device's memory");
    DeviceFigures {
        name: place.label(),
        memory: memory.map_or(0, |memory| memory.total),
        // Read and written.
        bandwidth: 2.0 * 2.0 * from.numel() as f64 / copy,
        flops: 2.0 * (edge as f64).powi(3) / multiply,
    }
}

/// Writes a checkpoint that gives [`ANSWER`] to every image.
fn write_checkpoint(folder: &Path, layers: Option<i64>, place: Place) -> PromptLengths {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let golden = fixtures.join("golden/ckpt_safetensors");
    for name in ["tokenizer.model", "special_tokens_map.json", "tokenizer_config.json"] {
        fs::copy(golden.join(name), folder.join(name)).expect("a tokenizer's file");
    }
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&fs::read(path).expect("a settings file")).expect("JSON")
    };
    let write = |name: &str, value: &Value| {
        fs::write(folder.join(name), value.to_string()).expect("a settings file is written");
    };
    let mut preprocessor = read(&golden.join("preprocessor_config.json"));
    (preprocessor["size"], preprocessor["crop_size"]) = (json!(448), json!(448));
    write("preprocessor_config.json", &preprocessor);
    let mut config = read(&fixtures.join("plan/config.json"));
    if let Some(layers) = layers {
        config["num_hidden_layers"] = json!(layers);
        config["visual_config"]["visual_model"]["num_hidden_layers"] = json!(layers);
    }
    write("config.json", &config);
    let bins = config["num_tokens"].as_i64().expect("a number of bins");
    let mut added = Map::from_iter([("[SCORE]".to_owned(), json!(SCORE))]);
    added.extend((0..bins).map(|bin| (format!("[IMG{bin}]"), json!(SCORE + 1 + bin))));
    write("added_tokens.json", &Value::Object(added));

    let config = ModelConfig::read(folder).expect("a config.json");
    let tokenizer = Tokenizer::open(folder).expect("a tokenizer");
    let prompt = PromptTokens::of_choice(&PromptChoice::default(), &tokenizer).expect("a prompt");
    let last = *prompt.after_image.last().expect("text after the image");
    assert!(!ANSWER.contains(&last), "the prompt ends with a token of the answer");

    let weights = expected_tensors(&config).into_iter().filter(|(_, weight)| !weight.role.may_be_absent());
    let mut weights: BTreeMap<String, Tensor> = weights
        .map(|(name, weight)| {
            let size = match name.as_str() {
                "model.embed_tokens.weight" => 1.0,
                // What a layer adds to its input.
                name if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => 1e-4,
                _ => 0.02,
            };
            let tensor = Tensor::empty(&weight.shape, (Kind::Float, place.device)).uniform_(-size, size);
            let tensor = if weight.shape.len() == 1 { tensor + 1.0 } else { tensor };
            (name, tensor.to_kind(Kind::BFloat16).to_device(tch::Device::Cpu))
        })
        .collect();
    let (embeddings, head) = (&weights["model.embed_tokens.weight"], &weights["lm_head.weight"]);
    for (token, next) in std::iter::once(&last).chain(&ANSWER).zip(ANSWER) {
        head.get(next).copy_(&(embeddings.get(*token) * 0.1));
    }
    // Several files, as large checkpoints have.
    write_weights(folder, &weights, 2_000_000_000).expect("written weights");
    weights.clear();
    PromptLengths {
        prefix: prompt.before_image.len() as u64,
        image: config.image_positions().unsigned_abs(),
        suffix: prompt.after_image.len() as u64,
        answer: ANSWER.len() as u64,
    }
}

/// What `plan` knows of the checkpoint, on a device with these ceilings.
struct Plan {
    work: Work,
    weights: PartBytes,
    image: ImageBytes,
    /// With all of the arithmetic reached.
    estimate: Estimate,
}

fn plan(config: &ModelConfig, lengths: PromptLengths, ceilings: DeviceFigures) -> Plan {
    let passes = lengths.verified();
    let work = Work::of(config, &passes);
    let mut weights = PartBytes::default();
    for (name, tensor) in expected_tensors(config) {
        if tensor.role.may_be_absent() {
            continue;
        }
        let part = match name {
            name if name.starts_with("model.vision_model.") => &mut weights.vision,
            name if name.starts_with("model.visual_abstractor.") => &mut weights.abstractor,
            _ => &mut weights.language,
        };
        *part += 2 * tensor.shape.iter().product::<i64>().unsigned_abs();
    }
    let image = ImageBytes::of(config, &lengths, &passes, 2);
    let estimate = estimate(&work, &weights, &image, passes.len(), ceilings, 1.0, 1 << 30);
    Plan { work, weights, image, estimate }
}

impl Plan {
    fn at_most(&self, batch: usize) -> f64 {
        let found = self.estimate.batches.iter().find(|line| line.batch == batch as u64);
        found.map_or(f64::NAN, |line| line.at_most_images_per_second)
    }
}

/// Images a second for each size of batch, verified and generated.
fn measure(scorer: &mut TorchScorer, plan: &Plan, batches: &[usize], place: Place) {
    let flops = plan.estimate.device.flops;
    println!(
        "\n{:.3} TFLOP an image; largest batch by plan: {}",
        plan.work.total / 1e12,
        plan.estimate.largest_batch
    );
    println!(
        "{:>5} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8} {:>9} {:>9}   first run",
        "batch", "verify/s", "at most", "of it", "of peak", "ms", "GB", "plan, GB", "gen/s"
    );
    let pool = SlotPool::new(batches.iter().copied().max().unwrap_or(1), scorer.image_size());
    let mut alone = None;
    for &batch in batches {
        let images = images(&pool, batch);
        gpu::forget_peak(place.device).expect("the allocator's numbers");
        let start = Instant::now();
        answered(scorer.score(&images), None);
        let first = start.elapsed().as_secs_f64();
        let waits = read_backs();
        let verify = median(RUNS, || answered(scorer.score(&images), Some(1)));
        assert_eq!(read_backs() - waits, RUNS as u64 + 1, "one wait a batch");
        let held = peak(place);
        let generate = median(GENERATE_RUNS, || answered(scorer.score_afresh(&images), Some(ANSWER.len())));
        let rate = batch as f64 / verify;
        let planned = (plan.weights.total() + batch as u64 * plan.image.total) as f64;
        let of_peak = rate * plan.work.total / flops;
        println!(
            "{batch:>5} {rate:>9.1} {:>9.1} {:>9.2} {of_peak:>8.2} {:>8.2} {:>8.2} {:>9.2} {:>9.1}   {:.0} ms",
            plan.at_most(batch),
            rate / plan.at_most(batch),
            verify * 1e3,
            held / 1e9,
            planned / 1e9,
            batch as f64 / generate,
            first * 1e3
        );
        let alone = *alone.get_or_insert(rate);
        // What a CPU makes of a few layers is for trying this benchmark alone.
        if !place.is_gpu() {
            continue;
        }
        let device = &plan.estimate.device.name;
        record(&[
            Entry {
                name: &format!("gpu_peak_fraction_b{batch}"),
                value: rate * plan.work.total / 1e12,
                unit: "TFLOP/s",
                against: &format!("torch.mm, M 8192, N 8192, K 8192, bf16, {device}"),
                against_value: flops / 1e12,
                ratio: of_peak,
                runs: RUNS,
            },
            Entry {
                name: &format!("gpu_verify_speedup_b{batch}"),
                value: rate,
                unit: "images/s",
                against: &format!("generate, batch {batch}, {device}"),
                against_value: batch as f64 / generate,
                ratio: rate * generate / batch as f64,
                runs: GENERATE_RUNS,
            },
            Entry {
                name: &format!("gpu_batch_gain_b{batch}"),
                value: rate,
                unit: "images/s",
                against: &format!("verify, batch 1, {device}"),
                against_value: alone,
                ratio: rate / alone,
                runs: RUNS,
            },
        ]);
    }
}

fn images(pool: &SlotPool, count: usize) -> ScoreBatch {
    let slot = |seed: usize| {
        let mut slot = pool.lease();
        // Normalised pixel values lie between -2 and 2.
        for (place, value) in slot.values_mut().iter_mut().enumerate() {
            let hash = (place as u32).wrapping_mul(0x9E37_79B1) ^ (seed as u32).wrapping_mul(0x85EB_CA77);
            *value = (hash.wrapping_mul(0x2C1B_3C6D) >> 8) as f32 / (1 << 22) as f32 - 2.0;
        }
        slot
    };
    ScoreBatch { slots: (0..count).map(slot).collect() }
}

/// Every image must have got the answer, in so many passes.
fn answered(
    answers: Result<Vec<Result<roc4mllm::score::Answer, roc4mllm::fault::ItemError>>, ScorerError>,
    passes: Option<usize>,
) {
    for answer in answers.expect("answers") {
        let answer = answer.expect("an answer");
        assert!(answer.tokens.iter().map(|&token| i64::from(token)).eq(ANSWER), "{:?}", answer.tokens);
        assert!(passes.is_none_or(|passes| passes == answer.forwards as usize), "{}", answer.forwards);
    }
}

/// Seconds; one run more than `runs` is made, and not counted.
fn median(runs: usize, mut run: impl FnMut()) -> f64 {
    run();
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[runs / 2].as_secs_f64()
}

/// `roc4mllm score` over a folder of photos: what decoding, preprocessing and writing leave of it.
fn score_folder(checkpoint: &Path, count: usize, batch: usize) {
    let photos = tempfile::tempdir().expect("a temporary folder");
    let name = |index: usize| photos.path().join(format!("{index:05}.jpg"));
    for index in 0..DIFFERENT.min(count) {
        fs::write(name(index), photo(1600 + 16 * index, 1200)).expect("a photo is written");
    }
    for index in DIFFERENT..count {
        fs::hard_link(name(index % DIFFERENT), name(index)).expect("another name of a photo");
    }
    let start = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
        .args(["score", "--format", "jsonl", "--batch-size", &batch.to_string()])
        .args(["--device", &named_device().to_string(), "--checkpoint"])
        .args([checkpoint, photos.path()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let times: Vec<Duration> = lines
        .map(|line| {
            let line = line.expect("a line");
            assert!(line.contains(r#""status":"scored""#), "{line}");
            start.elapsed()
        })
        .collect();
    assert!(child.wait().expect("its end").success());
    assert_eq!(times.len(), count);
    // The first batches wait for nothing but the model, and the last for nobody.
    let (first, last) = (times[count / 4], times[count - 1]);
    let steady = (count - 1 - count / 4) as f64 / (last - first).as_secs_f64();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "\n`score` over {count} photos of 1600x1200 in batches of {batch}, {threads} cores: first scores after \
         {:.1} s, then {steady:.0} images/s, {:.1} s in all",
        times[0].as_secs_f64(),
        last.as_secs_f64()
    );
}
