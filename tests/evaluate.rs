//! The `evaluate` command as a process: what it measures, compares and writes, and how it ends.

use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn golden(name: &str) -> PathBuf {
    let folder = env::var_os("ROC4MLLM_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden"), PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "{}: no such golden file", path.display());
    path
}

fn roc4mllm(command: &str, checkpoint: &str) -> Command {
    let mut process = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
    process.arg(command).arg("--checkpoint").arg(golden(checkpoint)).args(["--dtype", "f32"]);
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        process.env_remove(name);
    }
    process
}

fn evaluate<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    roc4mllm("evaluate", "ckpt_safetensors").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "standard error: {}", text(&output.stderr));
}

/// The checkpoint's lowest and highest score, and its number of bins.
fn scale() -> (f64, f64, usize) {
    let config: Value =
        serde_json::from_slice(&fs::read(golden("ckpt_safetensors/config.json")).unwrap()).unwrap();
    let number = |key: &str| config[key].as_f64().unwrap_or_else(|| panic!("config.json: {key}"));
    (number("min_score"), number("max_score"), config["img_token_num"].as_u64().unwrap() as usize)
}

fn image_names() -> Vec<String> {
    let entries = fs::read_dir(golden("images")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A label for each image: two raters' scores, spread over the scale.
fn label_of(index: usize) -> [f64; 2] {
    let (low, high, _) = scale();
    let share = (index * 5 % 13) as f64 / 13.0;
    [low + (high - low) * share, low + (high - low) * (share * 0.5 + 0.25)]
}

/// All golden images labelled in CSV, with the lines given at the end.
fn csv(folder: &Path, further: &str) -> PathBuf {
    let mut text = String::from("image,rater,score\n");
    for (index, name) in image_names().iter().enumerate() {
        for (rater, score) in ["ann", "bob"].iter().zip(label_of(index)) {
            text.push_str(&format!("{name},{rater},{score}\n"));
        }
    }
    let path = folder.join("labels.csv");
    fs::write(&path, text + further).unwrap();
    path
}

fn scores() -> BTreeMap<String, f64> {
    let output = roc4mllm("score", "ckpt_safetensors")
        .args(["--format", "jsonl"])
        .arg(golden("images"))
        .output()
        .unwrap();
    assert_exit(&output, 0);
    text(&output.stdout)
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let name = Path::new(line["image"].as_str().unwrap()).file_name().unwrap();
            (name.to_str().unwrap().to_owned(), line["score"].as_f64().unwrap())
        })
        .collect()
}

fn metric(attribute: &Value, name: &str) -> f64 {
    attribute["metrics"][name]["value"].as_f64().unwrap_or_else(|| panic!("{name}: {attribute}"))
}

#[test]
fn predictions_are_scores_and_metrics_are_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let labels = csv(folder.path(), "");
    let output = evaluate([
        "--labels".as_ref(),
        labels.as_os_str(),
        "--images".as_ref(),
        golden("images").as_os_str(),
        "--format".as_ref(),
        "json".as_ref(),
    ]);
    assert_exit(&output, 0);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let photos = found["evaluation"]["photos"].as_array().unwrap();
    let scores = scores();
    assert_eq!(photos.len(), scores.len());
    let (mut absolute, mut square) = (0.0, 0.0);
    for (index, photo) in photos.iter().enumerate() {
        let image = photo["image"].as_str().unwrap();
        assert_eq!(image, image_names()[index], "in the order of the labels");
        let (predicted, label) = (
            photo["outcome"]["scores"][0]["score"].as_f64().unwrap(),
            photo["label"]["scores"][0].as_f64().unwrap(),
        );
        assert!(
            (predicted - scores[image]).abs() <= 1e-4,
            "{image}: {predicted}, score says {}",
            scores[image]
        );
        let mean = label_of(index).iter().sum::<f64>() / 2.0;
        assert!((label - mean).abs() < 1e-9, "{image}: {label}, both raters say {mean}");
        assert_eq!(photo["label"]["distributions"][0].as_array().unwrap().len(), scale().2);
        absolute += (predicted - label).abs();
        square += (predicted - label).powi(2);
    }
    let attribute = &found["evaluation"]["attributes"][0];
    let count = photos.len() as f64;
    assert!((metric(attribute, "mae") - absolute / count).abs() < 1e-9);
    assert!((metric(attribute, "rmse") - (square / count).sqrt()).abs() < 1e-9);
    assert_eq!(metric(attribute, "score_rate"), 1.0);
    for name in ["srcc", "plcc", "krcc", "mae", "rmse", "emd", "accuracy"] {
        let value = metric(attribute, name);
        let [low, high] = [0, 1].map(|end| attribute["metrics"][name]["interval"][end].as_f64().unwrap());
        assert!(low <= value && value <= high && low < high, "{name}: {value} in {low} to {high}");
    }
}

#[test]
fn the_references_json_with_distributions_is_read_as_it_is() {
    let labels = golden("train_data.json");
    let samples: Vec<Value> = serde_json::from_slice(&fs::read(&labels).unwrap()).unwrap();
    let images = golden("images");
    let output = evaluate([
        "--labels".as_ref(),
        labels.as_os_str(),
        "--images".as_ref(),
        images.as_os_str(),
        "--format".as_ref(),
        "json".as_ref(),
    ]);
    assert_exit(&output, 0);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let photos = found["evaluation"]["photos"].as_array().unwrap();
    assert_eq!(photos.len(), samples.len());
    for (photo, sample) in photos.iter().zip(&samples) {
        assert_eq!(photo["image"], sample["image"]);
        let score = if sample["gt_score"].is_array() {
            sample["gt_score"].clone()
        } else {
            json!([sample["gt_score"]])
        };
        assert_eq!(photo["label"]["scores"], score);
    }
    assert!(found["evaluation"]["attributes"][0]["metrics"]["emd"]["value"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_model_against_itself_in_another_format_differs_in_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (labels, report) = (csv(folder.path(), ""), folder.path().join("report.html"));
    let arguments = |format: &'static str| {
        let output = evaluate([
            "--labels".as_ref(),
            labels.as_os_str(),
            "--images".as_ref(),
            golden("images").as_os_str(),
            "--against".as_ref(),
            golden("ckpt_bin").as_os_str(),
            "--report".as_ref(),
            report.as_os_str(),
            "--format".as_ref(),
            format.as_ref(),
        ]);
        assert_exit(&output, 0);
        output
    };
    let found: Value = serde_json::from_slice(&arguments("json").stdout).unwrap();
    let comparison = &found["comparison"];
    assert_eq!(comparison["identical"], true);
    assert_eq!(comparison["photos"].as_u64().unwrap() as usize, image_names().len());
    for (name, compared) in comparison["metrics"].as_object().unwrap() {
        // Weights at other addresses are multiplied in another order, which the last digits show.
        for number in [
            &compared["difference"]["value"],
            &compared["difference"]["interval"][0],
            &compared["difference"]["interval"][1],
        ] {
            assert!(number.as_f64().unwrap().abs() < 1e-4, "{name}: {compared}");
        }
    }
    let page = fs::read_to_string(&report).unwrap();
    assert!(page.contains("both gave the same scores"));
    assert!(page.contains("data:image/jpeg;base64,"), "the worst mistakes have thumbnails");
    assert!(!page.contains("http:") && !page.contains("https:"));
    let table = arguments("table");
    let table = text(&table.stdout);
    let srcc = table.lines().find(|line| line.starts_with("SRCC")).unwrap();
    assert!(srcc.contains("   +0.0000   ") || srcc.contains("   -0.0000   "), "{table}");
    assert!(table.lines().next().unwrap().contains("CHAMPION  CHALLENGER  DIFFERENCE"), "{table}");
}

#[test]
fn what_cannot_be_scored_or_read_is_counted_and_the_exit_code_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (low, high, _) = scale();
    let further =
        format!("missing.jpg,ann,{low}\n../README.md,ann,{low}\n{},ann,{}\n", image_names()[0], high + 1.0);
    let labels = csv(folder.path(), &further);
    let run = |format: &'static str| {
        let output = evaluate([
            "--labels".as_ref(),
            labels.as_os_str(),
            "--images".as_ref(),
            golden("images").as_os_str(),
            "--format".as_ref(),
            format.as_ref(),
        ]);
        assert_exit(&output, 3);
        output
    };
    let json = run("json");
    let found: Value = serde_json::from_slice(&json.stdout).unwrap();
    let photos = found["evaluation"]["photos"].as_array().unwrap();
    let errors: Vec<&str> =
        photos.iter().filter_map(|photo| photo["outcome"]["error"]["code"].as_str()).collect();
    assert_eq!(errors, ["object_missing", "unsupported"]);
    assert_eq!(
        found["evaluation"]["attributes"][0]["photos"].as_u64().unwrap() as usize,
        image_names().len()
    );
    assert_eq!(found["refused"].as_array().unwrap().len(), 1);
    assert!(text(&json.stderr).contains("labels.csv, line "), "{}", text(&json.stderr));
    let table = run("table");
    let table = text(&table.stdout);
    assert!(
        table.contains("2 of ") && table.contains("missing.jpg: ") && table.contains("1 labels"),
        "{table}"
    );
}

#[test]
fn what_cannot_be_begun_exits_with_2_and_names_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let labels = csv(folder.path(), "");
    let empty = folder.path().join("empty.csv");
    fs::write(&empty, "image,score\n").unwrap();
    let columns = folder.path().join("columns.csv");
    fs::write(&columns, "photo,rating\na.jpg,1\n").unwrap();
    let (labels, empty, columns) =
        (labels.to_str().unwrap(), empty.to_str().unwrap(), columns.to_str().unwrap());
    let plain = golden("base_safetensors");
    for (arguments, named) in [
        (vec!["--labels", "/no/such/labels.csv"], "/no/such/labels.csv"),
        (vec!["--labels", empty], "empty.csv"),
        (vec!["--labels", columns], "columns.csv"),
        (vec!["--labels", labels, "--images", "/no/such/folder"], "/no/such/folder"),
        (vec!["--labels", labels, "--against", "/no/such/checkpoint"], "/no/such/checkpoint"),
        (vec!["--labels", labels, "--against", plain.to_str().unwrap()], "base_safetensors"),
        (vec!["--labels", labels, "--confidence", "95"], "--confidence"),
        (vec!["--labels", labels, "--batch-size", "0"], "--batch-size"),
        (vec![], "--labels"),
    ] {
        let output = evaluate(&arguments);
        assert_exit(&output, 2);
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(text(&output.stderr).contains(named), "{arguments:?}: {}", text(&output.stderr));
    }
    let report = ["--labels", labels, "--report", "/no/such/folder/report.html"];
    assert_exit(&evaluate(report), 1);
}

#[test]
fn a_quantised_model_is_held_against_itself() {
    let folder = tempfile::tempdir().unwrap();
    let labels = csv(folder.path(), "");
    let images = golden("images");
    let (low, high, _) = scale();
    for quantize in ["w8a8", "int8"] {
        let of = |format: &str| {
            let output = evaluate([
                "--labels".as_ref(),
                labels.as_os_str(),
                "--images".as_ref(),
                images.as_os_str(),
                "--quantize".as_ref(),
                quantize.as_ref(),
                "--format".as_ref(),
                format.as_ref(),
            ]);
            assert_exit(&output, 0);
            text(&output.stdout).to_owned()
        };
        let found: Value = serde_json::from_str(&of("json")).unwrap();
        let version = found["evaluation"]["model"]["version"].as_str().unwrap();
        let exact = found["deviation"]["reference"]["version"].as_str().unwrap();
        assert_eq!(version, format!("{exact}+{quantize}"));
        // Not the same numbers, or nothing was quantised; and not far from them, or it was done wrong.
        let error = found["deviation"]["mean_error"].as_f64().unwrap();
        assert!(error > 0.0 && error < 0.05 * (high - low), "{quantize}: {error}");
        let photos = found["deviation"]["photos"].as_u64().unwrap() as usize;
        assert_eq!(photos + found["deviation"]["unlike"].as_u64().unwrap() as usize, image_names().len());
        let table = of("table");
        assert!(table.contains(&format!("Against {exact} on {photos} photos:")), "{table}");
        assert!(table.contains("score error: ") && table.contains("SRCC"), "{table}");
    }
}
