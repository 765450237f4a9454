//! `labels import`, `export` and `suggest`, as a user runs them.

use super::{Fixture, SCALE, object, vote};
use crate::suggest::scored;
use roc4mllm::labels::{Opinion, SampleReader, Vote};
use roc4mllm::store::StoredVote;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

fn labels(fixture: &Fixture, command: &str, args: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
        .args(["--log-level", "warn", "labels", command])
        .args(args)
        .args(["--set", &format!("postgres.url={}", fixture.database.url())])
        .args(["--set", "s3.buckets=[\"photos\"]"])
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name).display().to_string()
    }
}

async fn votes(fixture: &Fixture, keys: &[&str]) -> Vec<Vote> {
    let objects: Vec<_> = keys.iter().map(|key| object(key)).collect();
    let stored = fixture.store.votes_on(&objects.iter().collect::<Vec<_>>()).await.unwrap();
    stored.into_iter().map(|StoredVote { vote, .. }| vote).collect()
}

#[tokio::test]
async fn the_references_samples_are_imported_and_exported_as_they_are() {
    let fixture = Fixture::new().await;
    let files = Files::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/train_data.json");
    let golden = golden.display().to_string();
    let run = labels(&fixture, "import", &[&golden, "--bucket", "photos", "--prefix", "2024/"]);
    assert_eq!((run.code, run.out.lines().next()), (Some(0), Some("4 votes imported")), "{}", run.err);
    let exported = files.path("exported.json");
    let path = exported.display().to_string();
    let run = labels(&fixture, "export", &["--output", &path]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    let read = |path: &Path| -> Vec<_> {
        SampleReader::open(path).unwrap().checked(SCALE).map(|sample| sample.unwrap()).collect()
    };
    let (before, after) = (read(Path::new(&golden)), read(&exported));
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after.image, format!("photos/2024/{}", before.image));
        assert_eq!(after.conversations, before.conversations);
        assert!((after.gt_scores[0] - before.gt_scores[0]).abs() < 1e-12);
        for (one, other) in after.targets[0].iter().zip(&before.targets[0]) {
            assert!((one - other).abs() < 1e-12);
        }
    }
    // The reference's own reader: a list of objects with these fields.
    let written: Value = serde_json::from_slice(&fs::read(&exported).unwrap()).unwrap();
    assert!(written.as_array().unwrap().iter().all(|sample| sample["gt_score"].is_f64()
        && sample["target"].as_array().unwrap().len() == 10
        && sample["conversations"][1]["from"] == "gpt"));
}

#[tokio::test]
async fn what_was_exported_is_imported_as_it_was_and_only_once() {
    let (from, to) = (Fixture::new().await, Fixture::new().await);
    let counts: Vec<u64> = vec![0, 1, 5, 17, 38, 36, 15, 6, 5, 1];
    let given = [
        vote("a", "ann", 5.0 + 1.0 / 3.0, 0),
        vote("a", "bob \"b\"", 7.0, 1),
        Vote { opinion: Opinion::of_counts(&[counts], &SCALE).unwrap(), ..vote("ü b", "crowd", 1.0, 2) },
    ];
    from.store.write_votes(&given, &SCALE).await.unwrap();
    let files = Files::new();
    let path = files.path("labels.json").display().to_string();
    assert_eq!(labels(&from, "export", &["--output", &path]).code, Some(0));
    for (number, fixture) in [&to, &to, &from].into_iter().enumerate() {
        let run = labels(fixture, "import", &[&path]);
        assert_eq!(run.code, Some(0), "{}", run.err);
        let imported = if number == 0 { "3 votes imported" } else { "0 votes imported" };
        assert_eq!(run.out.lines().next(), Some(imported), "{}", run.out);
        assert_eq!(votes(fixture, &["a", "ü b"]).await, votes(&from, &["a", "ü b"]).await);
    }
    let (from_labels, to_labels) = (from.labels().await, to.labels().await);
    let shown = |labels: Vec<roc4mllm::store::StoredLabel>| -> Vec<_> {
        labels.into_iter().map(|stored| stored.label).collect()
    };
    assert_eq!(shown(from_labels), shown(to_labels));

    let run = labels(&from, "export", &["--output", &path, "--anonymous"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("ann") && !text.contains("crowd"), "{text}");
    let run = labels(&from, "export", &["--output", &path, "--since", "2026-11-24T12:02:00Z"]);
    assert!(run.out.starts_with("1 labels exported"), "{}", run.out);
}

#[tokio::test]
async fn nothing_is_imported_of_a_file_with_errors_unless_they_are_to_be_passed_over() {
    let fixture = Fixture::new().await;
    let files = Files::new();
    let csv = files.write(
        "votes.csv",
        "bucket,key,etag,rater,score,votes,labelled_at\n\
         photos,a,e1,ann,5,,2026-11-24\n\
         photos,a,e1,bob,11,,2026-11-24\n\
         photos,b,e1,crowd,,0 0 0 0 1 3 0 0 0 0,2026-11-24\n\
         photos,c,e1,,,,\n\
         private,d,e1,ann,5,,2026-11-24\n\
         photos,a,e1,ann,6,,2026-11-24\n\
         photos,e,e1,ann,5,,2100-01-01\n",
    );
    let refused = [
        (3, "score 11 is outside 1 to 10"),
        (6, "bucket \"private\" is not in s3.buckets"),
        (7, "as on line 2"),
        (8, "more than a day ahead"),
    ];
    for dry_run in [&[][..], &["--dry-run"]] {
        let run = labels(&fixture, "import", &[&[csv.as_str()], dry_run].concat());
        assert_eq!(run.code, Some(3), "{}", run.err);
        for (line, reason) in refused {
            let named = run.err.lines().find(|shown| shown.contains(&format!("line {line}: ")));
            assert!(named.is_some_and(|named| named.contains(reason)), "{line}: {}", run.err);
        }
        assert!(run.err.contains("4 of 6 labels are refused, so none was imported"), "{}", run.err);
        assert!(votes(&fixture, &["a", "b"]).await.is_empty());
    }
    let run = labels(&fixture, "import", &[&csv, "--skip-invalid", "--dry-run"]);
    assert_eq!((run.code, votes(&fixture, &["a", "b"]).await.len()), (Some(3), 0));
    assert!(run.out.contains("nothing was written"), "{}", run.out);
    let run = labels(&fixture, "import", &[&csv, "--skip-invalid"]);
    assert_eq!(run.code, Some(3), "{}", run.err);
    assert!(
        run.out.starts_with("2 votes imported\n") && run.out.contains("1  not labelled yet"),
        "{}",
        run.out
    );
    let stored = votes(&fixture, &["a", "b"]).await;
    assert_eq!((stored.len(), stored[0].opinion.scores[0], stored[1].opinion.raters), (2, 5.0, 4));
}

#[tokio::test]
async fn what_cannot_be_read_as_a_whole_says_so() {
    let fixture = Fixture::new().await;
    let files = Files::new();
    for (name, content, code, expected) in [
        (
            "cut.json",
            "[\n{\"image\": \"a\"",
            3,
            "cut.json, line 2: the sample that begins here is never closed",
        ),
        ("empty.json", "", 3, "empty.json, line 1: the file is empty"),
        ("header.csv", "bucket,key,scores\n", 2, "did you mean `score`?"),
        ("labels.txt", "", 2, "give --format"),
    ] {
        let file = files.write(name, content);
        let run = labels(&fixture, "import", &[&file]);
        assert_eq!(run.code, Some(code), "{name}: {}", run.err);
        assert!(run.err.contains(expected), "{name}: {}", run.err);
    }
    let run = labels(&fixture, "import", &["/nowhere/labels.json"]);
    assert_eq!(run.code, Some(2));
    assert!(run.err.contains("/nowhere/labels.json: cannot be read"), "{}", run.err);
    let run = labels(&fixture, "export", &["--output", "/nowhere/labels.json"]);
    assert!(
        run.code == Some(1) && run.err.contains("/nowhere/labels.json: cannot be written"),
        "{}",
        run.err
    );
}

/// A whole round: what to label, filled in by hand, imported, and no longer suggested.
#[tokio::test]
async fn a_sheet_of_suggestions_is_filled_in_and_imported() {
    let fixture = Fixture::new().await;
    for number in 0..30 {
        let row = scored(&format!("{number:02}"), "e1", "1", "v1", [number % 5, 4 + number % 6]);
        fixture.store.upsert(&[row]).await.unwrap();
    }
    let run = labels(&fixture, "suggest", &["--limit", "10", "--format", "csv"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    let mut sheet: Vec<String> = run.out.lines().map(str::to_owned).collect();
    assert_eq!(sheet.len(), 11);
    assert!(sheet[1..].iter().filter(|line| line.contains(",random,")).count() >= 1, "{}", run.out);
    for line in &mut sheet[1..5] {
        *line = line.replacen(",e1,,,,", ",e1,ann,7.5,,", 1);
    }
    let file = Files::new();
    let path = file.write("sheet.csv", &sheet.join("\n"));
    let run = labels(&fixture, "import", &[&path]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(
        run.out.starts_with("4 votes imported") && run.out.contains("6  not labelled yet"),
        "{}",
        run.out
    );
    let run = labels(&fixture, "suggest", &["--limit", "100"]);
    let left: Vec<Value> = run.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(left.len(), 26);
    assert_eq!((left[0]["rank"].as_u64(), left[0]["reason"].as_str()), (Some(1), Some("spread")));
}
