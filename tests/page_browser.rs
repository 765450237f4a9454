//! The page in a real headless Chromium, against a running demo.
#![cfg(feature = "dev")]

use roc4mllm::{
    dev::skip_without,
    secret::Secret,
    store::{Claim, PostgresSettings, RunKind, RunLease, RunOutcome, RunPlan, RunVerdict, Store},
};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::PgPool;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

const WITHIN: Duration = Duration::from_secs(600);
/// What a page that takes a key for markup would run.
const MARKUP: &str = "zz/<img src=x onerror=window.pwned=1>.jpg";
/// No photo, so it ends as a dead letter; but an object in S3, as reports of retraining are.
const REPORT: &str = "zz/report.jpg";
const REPORT_TITLE: &str = "What the gate saw";
const BROKEN_MARKUP: &str = "zz/<script>window.pwned=2<\u{2044}script>.jpg";

fn sources(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium-headless-shell", "chromium", "google-chrome", "google-chrome-stable"];
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|file| file.is_file())
}

/// Photographs where there are some, else the pictures of the tests; and two files whose names are markup.
fn photos(folder: &Path) -> usize {
    let photographs = sources(".deps/photos");
    let from = if photographs.is_dir() { photographs } else { sources("tests/fixtures/golden/images") };
    let mut files: Vec<PathBuf> = fs::read_dir(from)
        .expect("photographs")
        .map(|entry| entry.expect("a folder entry").path())
        .filter(|path| {
            matches!(path.extension().and_then(|extension| extension.to_str()), Some("jpg" | "png"))
        })
        .collect();
    files.sort();
    for file in &files {
        fs::copy(file, folder.join(file.file_name().expect("a name"))).expect("a copy");
    }
    fs::create_dir(folder.join("zz")).expect("a folder");
    // With a byte behind its end it is no content that has a score already, and comes among the last.
    let last = [fs::read(&files[0]).expect("a file"), vec![0]].concat();
    fs::write(folder.join(MARKUP), last).expect("a file");
    let whole = fs::read(&files[0]).expect("a picture");
    fs::write(folder.join(BROKEN_MARKUP), &whole[..whole.len() / 3]).expect("a file");
    fs::write(folder.join("zz/not found.jpg"), b"<!doctype html><p>not found</p>").expect("a file");
    // It may not run what is in it.
    let script = "<script>document.querySelector('h1').textContent = 'pwned'</script>";
    let report = format!("<!doctype html><title>{REPORT_TITLE}</title><h1>{REPORT_TITLE}</h1>{script}");
    fs::write(folder.join(REPORT), report).expect("a file");
    files.len() + 4
}

/// A demo that goes on; killed with its handle.
struct Demo {
    child: Child,
    address: String,
    token: String,
    database: String,
    rest: mpsc::Receiver<String>,
}

impl Demo {
    fn start(photos: &Path, report: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_roc4mllm"))
            .args(["demo", "--serve", "--pace", "2", "--photos"])
            .arg(photos)
            .arg("--report")
            .arg(report)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the demo starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (said, rest) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(said.send(line))));
        let mut demo =
            Self { child, address: String::new(), token: String::new(), database: String::new(), rest };
        let line = demo.wait_for("Vote at ");
        let (address, token) = line.split_once("/label with the token ").expect("an address and a token");
        (demo.address, demo.token) = (address.to_owned(), token.to_owned());
        demo.database = demo.wait_for("Look into Postgres: psql ").trim_matches('\'').to_owned();
        demo
    }

    /// The rest of the first line that begins so.
    fn wait_for(&self, beginning: &str) -> String {
        loop {
            let line = self.rest.recv_timeout(WITHIN).expect("the demo says something");
            println!("demo: {line}");
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.to_owned();
            }
        }
    }

    fn interrupt(mut self) -> Option<i32> {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: kill takes no pointers; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
        self.child.wait().expect("its end").code()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Its servers end with it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The script that drives the browser; killed with its handle.
struct Driver(Child);

impl Driver {
    fn wait_for(&mut self, file: &Path) {
        let deadline = Instant::now() + WITHIN;
        while !file.exists() {
            assert!(matches!(self.0.try_wait(), Ok(None)), "the driver ended early; see its own lines above");
            assert!(Instant::now() < deadline, "the driver does not get so far");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// What a run records of one set, as far as the page reads it.
fn compared(challenger: f64, gain: f64) -> Value {
    let estimate = |value: f64| json!({"value": value, "interval": [value - 0.004, value + 0.004]});
    let srcc = json!({
        "champion": estimate(challenger - gain), "challenger": estimate(challenger), "difference": estimate(gain)
    });
    json!({"votes": 12.0, "comparison": {"photos": 3120, "groups": 3017, "metrics": {"srcc": srcc}}})
}

async fn claim(store: &Store, plan: Option<(&str, Value)>) -> RunLease {
    let claimed =
        store.claim_run(RunKind::Retrain, "a pod", Duration::from_secs(3600)).await.expect("a claim");
    let Claim::Ours(claimed) = claimed else { panic!("{claimed:?}") };
    if let Some((champion, counts)) = plan {
        let dataset = "sha256:da7a".to_owned();
        let plan = RunPlan { champion: champion.to_owned(), after: 0, upto: 5_000, dataset };
        store.plan_run(&claimed.lease, &plan, &counts).await.expect("planned");
    }
    claimed.lease
}

/// A run of every kind that there is, written as the job writes it.
async fn retrain(store: &Store, bucket: &str) {
    let versions = ["sha256-0c4a11d6f2b3", "sha256-7be0551ac9d2", "sha256-f19e8840aa17"];
    let counts = |new: u64| {
        json!({"new_labels": new, "older_labels": 2 * new, "training": 2 * new + 311, "newest": 3120, "gold": 3120,
            "old": 3120, "gone": 2, "unreadable": 1, "unusable": 0})
    };
    let judged = |challenger: &str, gain: f64, verdict: Value, report: String| RunVerdict {
        challenger: challenger.to_owned(),
        metrics: json!({"newest": compared(0.81, gain), "gold": compared(0.79, -0.002), "old": compared(0.8, 0.001)}),
        verdict,
        report,
    };

    let lease = claim(store, Some((versions[0], counts(4_210)))).await;
    let verdict = json!({"verdict": "accepted", "difference": {"value": 0.031, "interval": [0.027, 0.035]}});
    let verdict = judged(versions[1], 0.031, verdict, format!("s3://{bucket}/{REPORT}"));
    store.judge_run(&lease, &verdict).await.expect("judged");
    let reason = "accepted: SRCC on the newest labels is higher, +0.0310 (+0.0270 to +0.0350)";
    store.end_run(&lease, RunOutcome::Accepted, reason, None).await.expect("ended");

    let lease = claim(store, Some((versions[1], counts(1_064)))).await;
    let verdict = json!({"verdict": "rejected", "reasons": [{"code": "not_better", "set": "newest"}]});
    let report = "/var/lib/roc4mllm/retrain/reports/run-2.html".to_owned();
    store.judge_run(&lease, &judged(versions[2], -0.003, verdict, report)).await.expect("judged");
    let reason = "rejected: SRCC on the newest labels is not higher beyond chance: -0.0030 (-0.0070 to +0.0010); \
                  wait for more labels";
    store.end_run(&lease, RunOutcome::Rejected, reason, None).await.expect("ended");

    let lease = claim(store, None).await;
    let reason = "218 labels are new to the champion, and retrain.min_new_labels is 500; wait for more";
    store.end_run(&lease, RunOutcome::NothingToDo, reason, Some(versions[1])).await.expect("ended");

    let lease = claim(store, Some((versions[1], counts(1_310)))).await;
    let reason = "training: the loss is not finite at step 1208; lower train.learning_rate <b>now</b>";
    store.end_run(&lease, RunOutcome::Failed, reason, Some(versions[1])).await.expect("ended");

    let lease = claim(store, Some((versions[1], counts(1_377)))).await;
    store.beat_run(&lease, "training", 870, 2_000).await.expect("a heartbeat");
}

/// What was seen and done in the browser.
#[derive(Debug, Deserialize)]
struct Seen {
    scored: String,
    dead_letters: String,
    /// Scores by key.
    votes: BTreeMap<String, f64>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_watches_scores_arrive_and_votes() {
    let packages = sources(".deps/web");
    let browser = chromium();
    if skip_without("Chromium", browser.is_some())
        || skip_without("playwright (.deps/web)", packages.join("playwright").is_dir())
    {
        return;
    }
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path().join("photos");
    fs::create_dir(&folder).expect("a folder");
    let count = photos(&folder);
    let meeting = temporary.path().join("meeting");
    fs::create_dir(&meeting).expect("a folder");
    let mut driver = Driver(
        Command::new("python3")
            .arg(sources("tests/page_browser/drive.py"))
            .arg(&meeting)
            .env("PYTHONPATH", packages)
            .env("CHROMIUM", browser.expect("it is there"))
            .spawn()
            .expect("python3 runs"),
    );
    // Else all scores might be there before the browser is.
    driver.wait_for(&meeting.join("ready"));
    let demo = Demo::start(&folder, &temporary.path().join("report.html"));
    let told = json!({"address": demo.address, "token": demo.token, "items": count});
    fs::write(meeting.join("demo.json.part"), told.to_string()).expect("a file");
    fs::rename(meeting.join("demo.json.part"), meeting.join("demo.json")).expect("a file");
    // The README's pictures are of a demo, which retrains nothing: these come after them.
    driver.wait_for(&meeting.join("looked"));
    let pool = PgPool::connect(&demo.database).await.expect("a connection");
    let bucket: String =
        sqlx::query_scalar("SELECT min(bucket) FROM scores").fetch_one(&pool).await.expect("a bucket");
    let settings = PostgresSettings { url: Secret::from(&*demo.database), ..PostgresSettings::default() };
    retrain(&Store::connect(&settings).await.expect("a store"), &bucket).await;
    fs::write(meeting.join("retrained"), "").expect("a file");
    let status = driver.0.wait().expect("its end");
    assert!(status.success(), "see the driver's own lines above");
    let seen = fs::read(meeting.join("seen.json")).expect("what was seen");
    let seen: Seen = serde_json::from_slice(&seen).expect("JSON");

    let total =
        async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a count") };
    assert_eq!(seen.scored, total("SELECT count(*) FROM scores WHERE status = 'scored'").await.to_string());
    let dead = total("SELECT count(*) FROM scores WHERE status IN ('rejected', 'dead')").await;
    assert_eq!(seen.dead_letters, dead.to_string());
    let labels: Vec<(String, f64)> =
        sqlx::query_as("SELECT object_key, score FROM labels").fetch_all(&pool).await.expect("labels");
    assert_eq!(seen.votes.len(), 4, "three by keyboard and one by touch");
    assert_eq!(labels.into_iter().collect::<BTreeMap<_, _>>(), seen.votes);
    let raters: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT rater FROM votes").fetch_all(&pool).await.expect("raters");
    assert_eq!(raters, ["ann"]);
    pool.close().await;
    demo.wait_for("Everything runs on");
    assert_eq!(demo.interrupt(), Some(0), "the demo ends when it is told to");
}
