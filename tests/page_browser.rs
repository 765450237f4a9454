//! The page in a real headless Chromium, against a running demo.
#![cfg(feature = "dev")]

use roc4mllm::dev::skip_without;
use serde::Deserialize;
use serde_json::json;
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

const WITHIN: Duration = Duration::from_secs(300);
/// What a page that takes a key for markup would run.
const MARKUP: &str = "zz/<img src=x onerror=window.pwned=1>.jpg";
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
    files.len() + 3
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
            assert!(matches!(self.0.try_wait(), Ok(None)), "the driver ended before the demo began");
            assert!(Instant::now() < deadline, "the browser does not start");
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
    let status = driver.0.wait().expect("its end");
    assert!(status.success(), "see the driver's own lines above");
    let seen = fs::read(meeting.join("seen.json")).expect("what was seen");
    let seen: Seen = serde_json::from_slice(&seen).expect("JSON");

    let pool = PgPool::connect(&demo.database).await.expect("a connection");
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
