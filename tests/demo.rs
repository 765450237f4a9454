//! `roc4mllm demo` says of a folder what `roc4mllm score` says of it.
#![cfg(feature = "dev")]

use serde_json::Value;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

fn roc4mllm() -> Command {
    Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Pictures under names that need escaping, and files that are no pictures.
fn odd_folder(folder: &Path) {
    let mut pictures: Vec<PathBuf> = fs::read_dir(fixtures().join("images"))
        .expect("the pictures")
        .map(|entry| entry.expect("a folder entry").path())
        .collect();
    pictures.sort();
    let long = format!("{}.jpg", "длинное имя ".repeat(9).trim());
    let names = ["a b+c.jpg", "50%25 %2F.png", "нов/фото №1.jpg", "x/y/z...JPG", "'quote\"&<b>.webp", &long];
    for (name, picture) in names.iter().zip(&pictures) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::copy(picture, path).expect("a copy");
    }
    let whole = fs::read(&pictures[0]).expect("a picture");
    fs::write(folder.join("cut short.jpg"), &whole[..whole.len() / 2]).expect("a file");
    fs::write(folder.join("empty.png"), b"").expect("a file");
    fs::write(folder.join("page.jpg"), b"<!doctype html><p>not found</p>").expect("a file");
    fs::write(folder.join("notes.txt"), b"not looked at").expect("a file");
}

#[test]
fn the_demo_agrees_with_score_on_an_odd_folder() {
    let temporary = tempfile::tempdir().expect("a folder");
    let photos = temporary.path().join("my photos");
    fs::create_dir(&photos).expect("a folder");
    odd_folder(&photos);
    let (rows, report) = (temporary.path().join("rows.jsonl"), temporary.path().join("new/report.html"));
    let metrics = temporary.path().join("metrics.txt");

    let score = roc4mllm()
        .args(["score", "--format", "jsonl", "--checkpoint"])
        .arg(fixtures().join("ckpt_safetensors"))
        .arg(&photos)
        .output()
        .expect("score runs");
    assert_eq!(score.status.code(), Some(3), "{}", stderr(&score));
    let expected: HashMap<String, Value> = lines(&String::from_utf8(score.stdout).expect("UTF-8"))
        .into_iter()
        .map(|line| (line["image"].as_str().expect("a name").to_owned(), line))
        .collect();
    assert_eq!(expected.len(), 9);

    let demo = roc4mllm()
        .arg("demo")
        .arg("--checkpoint")
        .arg(fixtures().join("ckpt_safetensors"))
        .arg("--photos")
        .arg(&photos)
        .arg("--rows")
        .arg(&rows)
        .arg("--report")
        .arg(&report)
        .arg("--metrics")
        .arg(&metrics)
        .output()
        .expect("the demo runs");
    let said = String::from_utf8(demo.stdout.clone()).expect("UTF-8");
    assert_eq!(demo.status.code(), Some(0), "{said}\n{}", stderr(&demo));

    let rows = lines(&fs::read_to_string(&rows).expect("the rows"));
    assert_eq!(rows.len(), expected.len());
    for row in &rows {
        let image = row["image"].as_str().expect("a name");
        let expected = &expected[image];
        assert_eq!(row["status"], expected["status"], "{image}");
        assert_eq!(row["error"]["code"], expected["error"]["code"], "{image}");
        if let Some(score) = expected["score"].as_f64() {
            let difference = (score - row["score"].as_f64().expect("a score")).abs();
            assert!(difference <= 1e-4, "{image}: off by {difference}");
        }
        let key = row["key"].as_str().expect("a key");
        assert_eq!(photos.join(key), Path::new(image));
        assert!(said.contains(key), "the table shows {key}: {said}");
    }
    let scored = rows.iter().filter(|row| row["status"] == "scored").count();
    assert!((4..=6).contains(&scored), "pictures are scored, the rest is rejected: {scored}");
    let metrics = fs::read_to_string(&metrics).expect("the metrics");
    let total = format!("roc4mllm_items_total{{status=\"scored\"}} {scored}");
    assert!(metrics.lines().any(|line| line == total), "{total} not in\n{metrics}");
    assert!(metrics.starts_with("# ") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(!said.contains("gate") && !said.contains("degraded"), "only of the demo's own model: {said}");
    let page = fs::read_to_string(&report).expect("the report");
    assert_eq!(page.matches("<li class=\"card\"").count(), scored);
}

/// What the demo says of its own photographs with its own model, if they are there.
fn story(arguments: &[&str], rows: &Path) -> Option<String> {
    let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps/photos");
    if roc4mllm::dev::skip_without("the demo's photographs (`make setup`)", photos.is_dir()) {
        return None;
    }
    let folder = rows.parent().expect("a folder");
    let mut demo = roc4mllm();
    demo.arg("demo").args(arguments).arg("--rows").arg(rows).arg("--report").arg(folder.join("report.html"));
    let demo = demo.output().expect("the demo runs");
    let said = String::from_utf8(demo.stdout.clone()).expect("UTF-8");
    assert_eq!(demo.status.code(), Some(0), "{said}\n{}", stderr(&demo));
    assert!(said.contains("how little a photograph is degraded"), "{said}");
    assert!(said.contains("not the aesthetic scores") && said.contains("--checkpoint DIR"), "{said}");
    let line = |line: &str| serde_json::from_str::<Value>(line).expect("a JSON object a line");
    let rows: Vec<_> = fs::read_to_string(rows).expect("the rows").lines().map(line).collect();
    assert!(rows.iter().filter(|row| row["status"] == "scored").count() >= 9, "{rows:?}");
    Some(said)
}

#[test]
fn the_demo_goes_round_the_whole_loop_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(said) = story(&[], &folder.path().join("rows.jsonl")) else { return };
    let at = |what: &str| said.find(what).unwrap_or_else(|| panic!("{what} not in {said}"));
    let steps = ["labels  ", "retraining  ", "gate        accepted", "switch  ", "rescoring  ", "VERSION  "];
    let places = steps.map(at);
    assert!(places.is_sorted(), "{said}");
    let versions: Vec<&str> = said.lines().filter(|line| line.starts_with("sha256:")).collect();
    assert_eq!(versions.len(), 2, "{said}");
    assert!(versions[0].contains("champion") && versions[1].contains("retired"), "{said}");
}

#[test]
fn the_loop_can_be_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(said) = story(&["--no-retrain"], &folder.path().join("rows.jsonl")) else { return };
    assert!(!said.contains("gate  ") && said.contains("equal the outputs in the topic"), "{said}");
}

#[test]
fn a_folder_without_photos_is_told_before_anything_starts() {
    let empty = tempfile::tempdir().expect("a folder");
    for photos in [empty.path(), Path::new("/no/such/folder")] {
        let demo = roc4mllm().arg("demo").arg("--photos").arg(photos).output().expect("the demo runs");
        assert_eq!(demo.status.code(), Some(2), "{}", stderr(&demo));
        assert!(stderr(&demo).contains(&*photos.to_string_lossy()), "{}", stderr(&demo));
        assert_eq!(stderr(&demo).lines().count(), 1, "{}", stderr(&demo));
    }
}
