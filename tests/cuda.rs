//! The model on a GPU: what the golden files say, training, and memory that runs out.
//!
//! Where no GPU can be used none of these tests exists: one line says so, and all that is tested is that
//! the program says so too. `cargo test --test cuda` on a machine with a GPU, in a build against a CUDA
//! libtorch, runs them.

mod support {
    pub mod synthetic_checkpoint;
}

use libtest_mimic::{Arguments, Failed, Trial};
use roc4mllm::{
    image::{Fit, ImageSettings, PREPROCESS_REVISION, Preprocessor},
    inference::{
        batcher::BatchCap,
        metrics::InferenceMetrics,
        runner::Runner,
        scorer::{ScoreBatch, Scorer},
        slot::{Slot, SlotPool},
    },
    model::{
        ModelError, ModelSettings, TorchScorer,
        device::{Device, Dtype, Quantize},
        gpu,
        settings::{DecodeMode, PromptChoice},
        transfer::read_backs,
    },
    score::{Answer, DecodeKind},
};
use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
    sync::Arc,
    time::Duration,
};
use support::synthetic_checkpoint;
use tch::{Kind, Tensor};

/// How close a score in f32 is to the reference's.
const TOLERANCE: f64 = 1e-4;
/// And in types of 16 bits.
const ROUGH_TOLERANCE: f64 = 0.02;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let found = "cuda".parse::<Device>().expect("a device").open();
    let mut trials =
        vec![trial("an_absent_gpu_ends_the_program_with_2", an_absent_gpu_ends_the_program_with_2)];
    match found {
        Ok(_) => trials.extend([
            trial("golden_scores_in_f32", golden_scores_in_f32),
            trial("golden_scores_in_16_bits", golden_scores_in_16_bits),
            trial("every_layout_of_a_checkpoint_loads", every_layout_of_a_checkpoint_loads),
            trial("json_lines_are_those_of_a_cpu", json_lines_are_those_of_a_cpu),
            trial("eight_bit_weights_score_as_on_a_cpu", eight_bit_weights_score_as_on_a_cpu),
            trial("a_batch_waits_for_the_device_once", a_batch_waits_for_the_device_once),
            trial("golden_losses_of_training", golden_losses_of_training),
            trial("a_trained_checkpoint_scores_on_a_cpu", a_trained_checkpoint_scores_on_a_cpu),
            trial("memory_that_runs_out_splits_the_batch", memory_that_runs_out_splits_the_batch),
            trial("a_model_that_does_not_fit_is_refused", a_model_that_does_not_fit_is_refused),
            trial("a_gpu_s_memory_is_told", a_gpu_s_memory_is_told),
        ]),
        Err(error) => {
            eprintln!("cuda: NOT TESTED on a GPU: scores, training, memory that runs out ({error})")
        }
    }
    // One at a time: some fill the GPU's memory.
    libtest_mimic::run(&Arguments { test_threads: Some(1), ..arguments }, trials).exit_code()
}

fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok::<(), Failed>(())
    })
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(name)).unwrap()).unwrap()
}

/// The question of the golden `assess` prompt.
fn question() -> String {
    let prompts = json("prompts.json");
    let (_, rest) = prompts["assess"]["prompt"].as_str().unwrap().split_once("<|image|>").unwrap();
    rest.rsplit_once(" ASSISTANT:").unwrap().0.to_owned()
}

/// The images that the reference reads as they are, by name, and what it answers.
fn answered(file: &str) -> Vec<(PathBuf, Value)> {
    let garbled = fs::read(golden("pixel_values_sane.safetensors")).unwrap();
    let garbled: Vec<String> =
        SafeTensors::deserialize(&garbled).unwrap().names().into_iter().map(str::to_owned).collect();
    let answers = json(file);
    let mut files: Vec<PathBuf> =
        fs::read_dir(golden("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let stem = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let found: Vec<_> = files
        .into_iter()
        .filter(|path| !garbled.contains(&stem(path)))
        .map(|path| {
            let answer = answers["assess"][stem(&path)].clone();
            assert!(answer.is_object(), "{file}: assess/{}: missing", stem(&path));
            (path, answer)
        })
        .collect();
    assert!(found.len() > 10, "{file}: {} answers", found.len());
    found
}

fn settings(checkpoint: &str, dtype: Dtype) -> ModelSettings {
    ModelSettings {
        checkpoint: golden(checkpoint).display().to_string(),
        device: Device::Cuda(0),
        dtype,
        prompt: PromptChoice::Text(question()),
        ..ModelSettings::default()
    }
}

fn scorer(settings: &ModelSettings) -> TorchScorer {
    TorchScorer::load(settings, PREPROCESS_REVISION).unwrap()
}

fn slots<'a>(pool: &SlotPool, files: impl IntoIterator<Item = &'a PathBuf>) -> Vec<Slot> {
    let preprocessor = Preprocessor::open(&golden("ckpt_safetensors")).unwrap().with_fit(Fit::Pad);
    let read = |file: &PathBuf| {
        let mut slot = pool.lease();
        preprocessor.read(&fs::read(file).unwrap(), &ImageSettings::local(), slot.values_mut()).unwrap();
        slot
    };
    files.into_iter().map(read).collect()
}

/// Answers in batches of `size`.
fn score(scorer: &mut TorchScorer, files: &[PathBuf], size: usize) -> Vec<Answer> {
    let pool = SlotPool::new(size, scorer.image_size());
    let mut answers = Vec::new();
    for batch in files.chunks(size) {
        let scored = scorer.score(&ScoreBatch { slots: slots(&pool, batch) }).unwrap();
        answers.extend(scored.into_iter().map(|answer| answer.unwrap()));
    }
    answers
}

#[track_caller]
fn assert_near(place: &str, found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "{place}: {found}, not {expected}");
}

/// Scores every golden image in batches of 1 and of 8, verified and generated, and gives the largest
/// distance to the golden scores.
fn compare_golden(file: &str, checkpoint: &str, dtype: Dtype, tolerance: f64) -> f64 {
    let (files, expected): (Vec<_>, Vec<_>) = answered(file).into_iter().unzip();
    let mut largest: f64 = 0.0;
    for decode in [DecodeMode::Generate, DecodeMode::Verify] {
        let mut scorer = scorer(&ModelSettings { decode, ..settings(checkpoint, dtype) });
        let mut verified = 0;
        for size in [1, 8] {
            let answers = score(&mut scorer, &files, size);
            for ((file, expected), answer) in files.iter().zip(&expected).zip(&answers) {
                let place = format!("{dtype}, {decode}, batches of {size}: {}", file.display());
                assert_eq!(serde_json::json!(answer.tokens), expected["generated_ids"], "{place}");
                let scores = expected["scores"].as_array().unwrap();
                assert_eq!(answer.scores.len(), scores.len(), "{place}");
                for (found, expected) in answer.scores.iter().zip(scores) {
                    let expected = expected["score"].as_f64().unwrap();
                    assert_near(&place, found.score, expected, tolerance);
                    largest = largest.max((found.score - expected).abs());
                }
                verified += usize::from(answer.decode == DecodeKind::Verified);
            }
        }
        // All but those that the first draft is learnt from.
        let at_least = if decode == DecodeMode::Verify { files.len() } else { 0 };
        assert!(verified >= at_least && (at_least > 0 || verified == 0), "{decode}: {verified} verified");
    }
    largest
}

fn golden_scores_in_f32() {
    let largest = compare_golden("generate_f32.json", "ckpt_safetensors", Dtype::F32, TOLERANCE);
    println!("f32: golden scores are met within {largest:.1e}");
}

fn golden_scores_in_16_bits() {
    for (file, dtype) in [("generate_bf16.json", Dtype::Bf16), ("generate_fp16.json", Dtype::F16)] {
        let largest = compare_golden(file, "ckpt_safetensors", dtype, ROUGH_TOLERANCE);
        println!("{dtype}: golden scores are met within {largest:.1e}");
    }
}

fn every_layout_of_a_checkpoint_loads() {
    compare_golden("generate_bf16.json", "ckpt_bin_bf16", Dtype::Auto, ROUGH_TOLERANCE);
    compare_golden("generate_f32.json", "ckpt_safetensors_sharded", Dtype::Auto, TOLERANCE);
}

fn command(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_roc4mllm")).args(arguments).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn json_lines_are_those_of_a_cpu() {
    let (checkpoint, images) = (golden("ckpt_safetensors"), golden("images"));
    let run = |device: &str| {
        let (checkpoint, images) = (checkpoint.to_str().unwrap(), images.to_str().unwrap());
        let options = ["--format", "jsonl", "--dtype", "f32", "--device", device, "--checkpoint", checkpoint];
        let output = command(&[&["score"], &options[..], &[images]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        lines(&output)
    };
    let (here, there) = (run("cpu"), run("cuda"));
    assert_eq!(here.len(), there.len());
    for (here, there) in here.iter().zip(&there) {
        let place = here["image"].as_str().unwrap();
        for field in ["image", "status", "tokens", "model_version"] {
            assert_eq!(here[field], there[field], "{place}: {field}");
        }
        assert_near(place, there["score"].as_f64().unwrap(), here["score"].as_f64().unwrap(), TOLERANCE);
    }
}

fn eight_bit_weights_score_as_on_a_cpu() {
    let files: Vec<PathBuf> = answered("generate_f32.json").into_iter().map(|(file, _)| file).collect();
    let quantized = ModelSettings { quantize: Quantize::Int8, ..settings("ckpt_safetensors", Dtype::F32) };
    let here = score(&mut scorer(&ModelSettings { device: Device::Cpu, ..quantized.clone() }), &files, 4);
    let there = score(&mut scorer(&quantized), &files, 4);
    for ((file, here), there) in files.iter().zip(&here).zip(&there) {
        assert_eq!(here.tokens, there.tokens, "{}", file.display());
        assert_near(&file.display().to_string(), there.score(), here.score(), 1e-3);
    }
    let refused = ModelSettings { quantize: Quantize::W8a8, ..quantized };
    match TorchScorer::load(&refused, PREPROCESS_REVISION) {
        Err(error @ ModelError::Quantize { .. }) => assert!(error.to_string().contains("int8"), "{error}"),
        _ => panic!("w8a8 on a GPU"),
    }
}

fn a_batch_waits_for_the_device_once() {
    let files: Vec<PathBuf> = answered("generate_f32.json").into_iter().map(|(file, _)| file).collect();
    let mut scorer = scorer(&settings("ckpt_safetensors", Dtype::Bf16));
    score(&mut scorer, &files, 8);
    let before = read_backs();
    let answers = score(&mut scorer, &files[..8], 8);
    assert!(answers.iter().all(|answer| answer.decode == DecodeKind::Verified));
    assert_eq!(read_backs() - before, 1);
}

fn an_absent_gpu_ends_the_program_with_2() {
    let (checkpoint, images) = (golden("ckpt_safetensors"), golden("images"));
    let (checkpoint, images) = (checkpoint.to_str().unwrap(), images.to_str().unwrap());
    let data = golden("train_data.json");
    let output = tempfile::tempdir().unwrap();
    let trained = output.path().join("trained");
    let train = ["train", "--data", data.to_str().unwrap(), "--images", images, "--output"];
    let train = [&train[..], &[trained.to_str().unwrap()]].concat();
    for command_line in [vec!["score", images], train] {
        let options = ["--checkpoint", checkpoint, "--device", "cuda:99"];
        let output = command(&[&command_line[..], &options].concat());
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        let said = message.lines().last().unwrap_or_default();
        assert!(said.contains("cuda:99") && said.contains("`cpu`"), "{message}");
        assert!(output.stdout.is_empty());
    }
    assert!(!trained.exists());
}

/// Trains as `train_results.json` was made, but for the learning rate, with `more` arguments; gives the
/// losses.
fn train(output: &Path, rate: f64, more: &[&str]) -> Vec<f64> {
    let run = &json("train_results.json")["adamw"];
    let number = |value: &Value| value.as_f64().unwrap().to_string();
    let (rate, decay) = (rate.to_string(), number(&run["weight_decay"]));
    let (beta1, beta2) = (number(&run["betas"][0]), number(&run["betas"][1]));
    let epsilon = number(&run["eps"]);
    let (checkpoint, data, images) =
        (golden("ckpt_safetensors"), golden("train_data.json"), golden("images"));
    let options = [
        ["--checkpoint", checkpoint.to_str().unwrap()],
        ["--data", data.to_str().unwrap()],
        ["--images", images.to_str().unwrap()],
        ["--output", output.to_str().unwrap()],
        ["--device", "cuda"],
        ["--shuffle", "false"],
        ["--emd-reduction", "batch"],
        ["--lr-schedule", "constant"],
        ["--warmup-ratio", "0"],
        ["--batch-size", "4"],
        ["--max-steps", "3"],
        ["--learning-rate", &rate],
        ["--weight-decay", &decay],
        ["--max-grad-norm", "0"],
        ["--adam-beta1", &beta1],
        ["--adam-beta2", &beta2],
        ["--adam-epsilon", &epsilon],
    ];
    let ended = command(&[&["train"], options.as_flattened(), more].concat());
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let text = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let loss = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap();
    text.lines().map(loss).collect()
}

fn golden_losses_of_training() {
    let run = &json("train_results.json")["adamw"];
    let (expected, rate) = (&run["loss_before_step_1_2_3_and_after"], run["lr"].as_f64().unwrap());
    let folder = tempfile::tempdir().unwrap();
    for (name, more) in [("kept", &[][..]), ("recomputed", &["--gradient-checkpointing"])] {
        let arguments = [&["--dtype", "f32", "--train", "all"], more].concat();
        let losses = train(&folder.path().join(name), rate, &arguments);
        assert_eq!(losses.len(), 3);
        for (step, loss) in losses.iter().enumerate() {
            let expected = expected[step].as_f64().unwrap();
            assert_near(&format!("{name}: step {}", step + 1), *loss, expected, TOLERANCE);
        }
        println!("f32, {name}: losses {losses:?}, golden {expected}");
    }
}

fn a_trained_checkpoint_scores_on_a_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("trained");
    let losses = train(&output, 1e-2, &["--dtype", "bf16", "--train", "lora", "--lora-rank", "4"]);
    assert!(losses[2] < losses[0], "{losses:?}");
    let files: Vec<PathBuf> = answered("generate_f32.json").into_iter().map(|(file, _)| file).collect();
    let trained = ModelSettings {
        checkpoint: output.display().to_string(),
        ..settings("ckpt_safetensors", Dtype::F32)
    };
    let there = score(&mut scorer(&trained), &files, 4);
    let here = score(&mut scorer(&ModelSettings { device: Device::Cpu, ..trained }), &files, 4);
    for ((file, here), there) in files.iter().zip(&here).zip(&there) {
        assert_eq!(here.tokens, there.tokens, "{}", file.display());
        assert_near(&file.display().to_string(), there.score(), here.score(), TOLERANCE);
    }
}

/// What takes a GPU's memory, but for about `left` bytes.
fn fill_memory(left: i64) -> Vec<Tensor> {
    const MIB: i64 = 1 << 20;
    let mut held = Vec::new();
    for size in [1024 * MIB, 64 * MIB, 16 * MIB] {
        while let Ok(piece) = Tensor::f_empty([size], (Kind::Uint8, tch::Device::Cuda(0))) {
            held.push(piece);
        }
    }
    held.truncate(held.len() - usize::try_from(left / (16 * MIB)).unwrap());
    held
}

fn memory_that_runs_out_splits_the_batch() {
    const BATCH: usize = 1024;
    let files: Vec<PathBuf> = answered("generate_f32.json").into_iter().map(|(file, _)| file).collect();
    let mut scorer = scorer(&settings("ckpt_safetensors", Dtype::F32));
    let alone = score(&mut scorer, &files, 8);
    let pool = SlotPool::new(2 * BATCH + 1, scorer.image_size());
    let metrics = Arc::new(InferenceMetrics::default());
    let cap = BatchCap::new(BATCH, Duration::from_secs(600));
    let mut runner = Runner::new(Box::new(scorer), &pool, cap, Arc::clone(&metrics), Arc::default());
    let batch = slots(&pool, files.iter().cycle().take(BATCH));

    let held = fill_memory(80 << 20);
    let mut verdicts = Vec::new();
    runner.run(batch, &mut |verdict| verdicts.push(verdict)).unwrap();
    assert_eq!(verdicts.len(), BATCH);
    for (index, verdict) in verdicts.iter().enumerate() {
        let (answer, alone) = (verdict.as_ref().unwrap(), &alone[index % files.len()]);
        let place = format!("image {index}");
        assert_eq!(answer.tokens, alone.tokens, "{place}");
        assert_near(&place, answer.score(), alone.score(), TOLERANCE);
    }
    let splits = metrics.out_of_memory.get();
    assert!(splits >= 1, "memory did not run out");
    let capacity = runner.capacity();
    assert!(capacity < BATCH, "{capacity}");
    println!("out of memory: split {splits} times, {BATCH} images scored, batches of {capacity} from now on");

    runner.warm_up(&pool).unwrap();
    println!("warm-up finds batches of {}", runner.capacity());
    assert!((1..BATCH).contains(&runner.capacity()));
    drop(held);
}

fn a_model_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    synthetic_checkpoint::write(folder.path(), 1 << 30);
    let large = ModelSettings {
        checkpoint: folder.path().display().to_string(),
        ..settings("ckpt_safetensors", Dtype::Bf16)
    };
    let held = fill_memory(512 << 20);
    let refused = match TorchScorer::load(&large, PREPROCESS_REVISION) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("1 GiB of weights fit into half of that"),
    };
    assert!(refused.contains("on the GPU") && refused.contains("is available"), "{refused}");
    println!("{refused}");
    drop(held);
    scorer(&large);
}

fn a_gpu_s_memory_is_told() {
    const BYTES: u64 = 256 << 20;
    let device = tch::Device::Cuda(0);
    let piece = || Tensor::zeros([BYTES as i64], (Kind::Uint8, device));
    let first = piece();
    let before = gpu::memory(device).unwrap().unwrap();
    assert!(before.free < before.total);
    drop(first);
    gpu::forget_peak(device).unwrap();
    let peak = gpu::peak(device).unwrap().unwrap();
    // What the allocator keeps is free for this process; others may take and give back meanwhile.
    let freed = gpu::memory(device).unwrap().unwrap().free.abs_diff(before.free);
    assert!(freed.abs_diff(BYTES) < BYTES / 2, "{freed}");
    drop(piece());
    assert_eq!(gpu::peak(device).unwrap().unwrap(), peak + BYTES);
    assert_eq!(gpu::memory(device).unwrap().unwrap().total, before.total);
}
