//! `roc4mllm train`: what it refuses, what it leaves alone, and what it leaves behind.

use roc4mllm::{
    image::PREPROCESS_REVISION,
    inference::Scorer,
    model::{ModelSettings, TorchScorer, checkpoint::Checkpoint, config::ModelConfig},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tch::{Kind, Tensor};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name)
}

/// A run of `roc4mllm train` in a folder of its own.
struct Run {
    folder: TempDir,
    checkpoint: PathBuf,
    samples: Value,
    /// By flag; a switch has no value.
    arguments: BTreeMap<String, Option<String>>,
}

impl Run {
    /// One step over the golden samples, whatever else is said.
    fn new() -> Self {
        let samples = serde_json::from_slice(&fs::read(fixture("train_data.json")).unwrap()).unwrap();
        let run = Self {
            folder: tempfile::tempdir().unwrap(),
            checkpoint: fixture("ckpt_safetensors"),
            samples,
            arguments: BTreeMap::new(),
        };
        run.with(&["--max-steps", "1", "--learning-rate", "1e-3", "--warmup-ratio", "0", "--threads", "1"])
    }

    /// Adds flags and their values, or gives a flag another value.
    fn with(mut self, arguments: &[&str]) -> Self {
        for pair in arguments.chunks(2) {
            self.arguments.insert(pair[0].to_owned(), pair.get(1).map(|&value| value.to_owned()));
        }
        self
    }

    fn from(mut self, checkpoint: &str) -> Self {
        self.checkpoint = fixture(checkpoint);
        self
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("trained")
    }

    fn start(&self) -> Output {
        let data = self.folder.path().join("data.json");
        fs::write(&data, serde_json::to_string_pretty(&self.samples).unwrap()).unwrap();
        Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
            .arg("train")
            .arg("--checkpoint")
            .arg(&self.checkpoint)
            .arg("--data")
            .arg(&data)
            .arg("--images")
            .arg(fixture("images"))
            .arg("--output")
            .arg(self.output())
            .args(self.arguments.iter().flat_map(|(flag, value)| [Some(flag), value.as_ref()]).flatten())
            .output()
            .unwrap()
    }

    /// Trains, and gives what is on standard error.
    fn succeed(&self) -> String {
        let output = self.start();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        log
    }

    /// The one line that says why it didn't train; nothing is left behind.
    fn refusal(&self, code: i32) -> String {
        let output = self.start();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        let message = message.lines().last().unwrap_or_default().to_owned();
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.starts_with("roc4mllm: "), "{message}");
        let left: Vec<_> =
            fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["data.json"], "{message}");
        message
    }

    fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.output().join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn tensors(&self) -> BTreeMap<String, Tensor> {
        Checkpoint::open(&self.output()).unwrap().tensors().unwrap()
    }
}

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    Checkpoint::open(folder).unwrap().tensors().unwrap()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

#[test]
fn only_what_is_chosen_changes() {
    let start = tensors(&fixture("ckpt_safetensors"));
    for (train, parts) in [
        ("language", &["model.layers.", "model.norm.", "model.embed_tokens.", "lm_head."][..]),
        ("abstractor", &["model.visual_abstractor."]),
    ] {
        let run = Run::new().with(&["--train", train]);
        run.succeed();
        for (name, tensor) in run.tensors() {
            let chosen = parts.iter().any(|part| name.starts_with(part));
            // Buffers are never trained, and AdamW's first step moves whatever has any gradient.
            let stays = !chosen || name.ends_with("inv_freq") || name.ends_with("pos_embed");
            if stays {
                assert!(tensor.equal(&start[&name]), "--train {train}: {name} changed");
            } else if tensor.dim() > 1 {
                assert!(!tensor.equal(&start[&name]), "--train {train}: {name} stayed");
            }
        }
    }
}

#[test]
fn batches_add_up_to_one_step() {
    // The EMD of each score by itself, and as many tokens in both batches, make means of means equal.
    let mut run =
        Run::new().with(&["--shuffle", "false", "--batch-size", "1", "--gradient-accumulation", "2"]);
    let samples = run.samples.as_array_mut().unwrap();
    samples.truncate(2);
    let answer = samples[0]["conversations"].clone();
    samples[1]["conversations"] = answer;
    run.succeed();
    let mut whole = Run::new().with(&["--shuffle", "false", "--batch-size", "2"]);
    whole.samples = run.samples.clone();
    whole.succeed();
    let (parts, whole) = ((run.metrics(), run.tensors()), (whole.metrics(), whole.tensors()));
    let loss = |metrics: &[Value]| metrics[0]["loss"].as_f64().unwrap();
    assert!((loss(&parts.0) - loss(&whole.0)).abs() < 1e-5);
    assert_eq!(parts.0.len(), 1);
    let name = "model.layers.0.mlp.up_proj.weight";
    let difference = (&parts.1[name] - &whole.1[name]).abs().mean(Kind::Double).double_value(&[]);
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn clipping_and_the_learning_rate_s_schedule_are_followed() {
    let run = Run::new().with(&["--max-steps", "4", "--batch-size", "1"]).with(&["--warmup-ratio", "0.5"]);
    run.succeed();
    let rates: Vec<f64> = run.metrics().iter().map(|line| line["learning_rate"].as_f64().unwrap()).collect();
    let expected = [0.0, 0.5e-3, 1e-3, 0.5e-3];
    assert!(rates.iter().zip(expected).all(|(rate, expected)| (rate - expected).abs() < 1e-12), "{rates:?}");
}

#[test]
fn the_seed_decides_the_run() {
    let losses = |seed: &str| {
        let run = Run::new().with(&["--max-steps", "3", "--batch-size", "1", "--seed", seed]);
        run.succeed();
        let losses: Vec<f64> = run.metrics().iter().map(|line| line["loss"].as_f64().unwrap()).collect();
        (losses, fs::read(run.output().join("model.safetensors")).unwrap())
    };
    let first = losses("7");
    assert!(first == losses("7"), "the same seed gives another run");
    assert!((8..12).any(|seed| losses(&seed.to_string()).0 != first.0), "no seed gives another order");
}

#[test]
fn a_plain_checkpoint_gets_a_score_head() {
    let scores = ["--num-tokens", "5", "--min-score", "-1", "--max-score", "3.5"];
    let mut run = Run::new().from("base_safetensors").with(&scores).with(&["--emd-weight", "0"]);
    for sample in run.samples.as_array_mut().unwrap() {
        sample["gt_score"] = json!(2.5);
        sample["target"] = json!([0.0, 0.1, 0.2, 0.3, 0.4]);
    }
    run.succeed();
    let config = ModelConfig::read(&run.output()).unwrap();
    let head = config.score.unwrap();
    assert_eq!((head.num_tokens, head.min_score, head.max_score), (5, -1.0, 3.5));
    let rows = config.language.vocab_size;
    assert_eq!(run.tensors()["lm_head.weight"].size()[0], rows);
    assert_eq!(run.metrics().len(), 1);

    let model = ModelSettings { checkpoint: run.output().display().to_string(), ..ModelSettings::default() };
    let scorer = TorchScorer::load(&model, PREPROCESS_REVISION).unwrap();
    assert_eq!(scorer.score_range(), (-1.0, 3.5));
}

#[test]
fn bf16_weights_follow_f32_masters() {
    let run = Run::new().with(&["--dtype", "bf16", "--max-steps", "3", "--batch-size", "4"]);
    let log = run.succeed();
    assert!(log.contains("3 steps over 4 samples"), "{log}");
    let checkpoint = Checkpoint::open(&run.output()).unwrap();
    assert_eq!(checkpoint.config().torch_dtype.as_deref(), Some("bfloat16"));
    assert_eq!(checkpoint.stored_kind(), Kind::BFloat16);
    let losses: Vec<f64> = run.metrics().iter().map(|line| line["loss"].as_f64().unwrap()).collect();
    assert!(losses[2] < losses[0], "{losses:?}");
}

#[test]
fn samples_that_cannot_be_told_apart_are_counted() {
    let mut run = Run::new();
    run.samples[1]["conversations"][1]["value"] = json!("It is ASSISTANT: good [SCORE]. ");
    let image = run.samples[1]["image"].as_str().unwrap().to_owned();
    let log = run.succeed();
    assert_says(&log, &[&image, "is left out", "1 samples and 0 images left out"]);
}

#[test]
fn an_unreadable_image_is_an_error_or_left_out() {
    let mut run = Run::new().with(&["--max-steps", "2", "--shuffle", "false", "--batch-size", "4"]);
    run.samples[2]["image"] = json!("no_such.png");
    let message = run.refusal(2);
    assert_says(&message, &["no_such.png", "on line", "--skip-unreadable"]);

    let run = run.with(&["--skip-unreadable"]);
    let log = run.succeed();
    assert_says(&log, &["no_such.png", "0 samples and 2 images left out"]);

    let mut run = Run::new().with(&["--skip-unreadable"]);
    for sample in run.samples.as_array_mut().unwrap() {
        sample["image"] = json!("../images.json");
    }
    assert_says(&run.refusal(2), &["none of the images of step 1"]);
}

#[test]
fn samples_that_cannot_be_trained_on_are_refused_by_their_line() {
    let refused = |change: &dyn Fn(&mut Value), parts: &[&str]| {
        let mut run = Run::new();
        change(&mut run.samples[1]);
        assert_says(&run.refusal(2), parts);
    };
    refused(&|sample| sample["gt_score"] = json!(11.0), &["data.json, line ", "11"]);
    refused(&|sample| sample["gt_score"] = json!([5.0, 5.0]), &["data.json, line "]);
    refused(&|sample| sample["target"] = json!([0.5, 0.5]), &["data.json, line ", "bins"]);
    refused(
        &|sample| drop(sample.as_object_mut().unwrap().remove("target")),
        &["no target", "--ce-weight", "on line"],
    );
    refused(&|sample| sample["conversations"][0]["from"] = json!("user"), &["line ", "user"]);
    let long = "again and ".repeat(3000);
    refused(
        &|sample| sample["conversations"][1]["value"] = json!(format!("{long}[SCORE]")),
        &["positions", "shorten"],
    );
    refused(
        &|sample| sample["conversations"][1]["value"] = json!("<|image|> is [SCORE]."),
        &["2 of its messages show an image"],
    );
}

#[test]
fn without_distributions_only_their_weights_are_refused() {
    let mut run = Run::new();
    for sample in run.samples.as_array_mut().unwrap() {
        sample.as_object_mut().unwrap().remove("target");
    }
    let run = run.with(&["--ce-weight", "0", "--emd-weight", "0"]);
    run.succeed();
    let line = &run.metrics()[0];
    assert_eq!((&line["ce"], &line["emd"]), (&Value::Null, &Value::Null));
    let sum = line["text"].as_f64().unwrap() + line["l1"].as_f64().unwrap();
    assert!((sum - line["loss"].as_f64().unwrap()).abs() < 1e-5);
}

#[test]
fn what_cannot_be_trained_is_said_on_one_line() {
    let refused = |arguments: &[&str], parts: &[&str]| {
        assert_says(&Run::new().with(arguments).refusal(2), parts);
    };
    refused(&["--learning-rate", "0"], &["--learning-rate is 0"]);
    refused(&["--batch-size", "0"], &["--batch-size is 0"]);
    refused(&["--dtype", "f16"], &["--dtype is f16", "bf16"]);
    refused(&["--num-tokens", "10"], &["give all three"]);
    refused(&["--num-tokens", "10", "--min-score", "1", "--max-score", "10"], &["score tokens already"]);
    refused(&["--device", "cuda:99"], &["cuda:99"]);
    assert_says(&Run::new().from("base_safetensors").refusal(2), &["base_safetensors", "--num-tokens"]);
    assert_says(&Run::new().from("no_such_folder").refusal(2), &["no_such_folder", "is no folder"]);

    let mut empty = Run::new();
    empty.samples = json!([]);
    assert_says(&empty.refusal(2), &["data.json", "no sample"]);

    let run = Run::new();
    fs::create_dir(run.output()).unwrap();
    let output = run.start();
    assert_eq!(output.status.code(), Some(2));
    assert_says(&String::from_utf8_lossy(&output.stderr), &["trained: exists already"]);
}

#[test]
fn a_loss_that_is_no_number_ends_the_run() {
    let run = Run::new().with(&["--max-steps", "40", "--lr-schedule", "constant", "--max-grad-norm", "0"]);
    let run = run.with(&["--l1-weight", "1e38", "--learning-rate", "1e30"]);
    let message = run.refusal(1);
    assert_says(&message, &["step ", "no finite number", "--learning-rate"]);
}
