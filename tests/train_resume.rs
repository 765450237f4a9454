//! `roc4mllm train` stopped and started again: it ends as if nothing had happened.

use serde_json::Value;
use std::{
    collections::{BTreeMap, hash_map::RandomState},
    fs,
    hash::{BuildHasher, Hasher},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const STEPS: u64 = 40;
const DEADLINE: Duration = Duration::from_secs(300);

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name)
}

/// One run of [`STEPS`] steps over the golden samples, however often it is started.
struct Run {
    folder: TempDir,
    arguments: Vec<&'static str>,
}

impl Run {
    fn new(arguments: &[&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(fixture("train_data.json"), folder.path().join("data.json")).unwrap();
        Self { folder, arguments: arguments.to_vec() }
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("trained")
    }

    fn partial(&self) -> PathBuf {
        self.folder.path().join(".trained.partial")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.arg("train").arg("--checkpoint").arg(fixture("ckpt_safetensors"));
        command.arg("--data").arg(self.folder.path().join("data.json"));
        command.arg("--images").arg(fixture("images")).arg("--output").arg(self.output());
        command.args(["--batch-size", "2", "--gradient-accumulation", "2", "--learning-rate", "1e-3"]);
        command.args(["--max-steps", &STEPS.to_string(), "--threads", "1"]);
        command.args(&self.arguments).args(arguments);
        command
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stderr(Stdio::piped()).spawn().unwrap()
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    #[track_caller]
    fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        text(&output).lines().last().unwrap_or_default().to_owned()
    }

    /// Every file of the finished folder, by name.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.output()).unwrap();
        entries
            .map(|entry| {
                let path = entry.unwrap().path();
                (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())
            })
            .collect()
    }

    /// Waits until the running `child` has written the line of `step`.
    #[track_caller]
    fn wait_for_step(&self, child: &mut Child, step: u64) {
        let start = Instant::now();
        while steps(&self.partial()).last().is_none_or(|&last| last < step) {
            assert!(child.try_wait().unwrap().is_none(), "the run ended before step {step}");
            assert!(start.elapsed() < DEADLINE, "no step {step} within {DEADLINE:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Steps of the whole lines of `metrics.jsonl`.
fn steps(folder: &Path) -> Vec<u64> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap()).collect()
}

/// One of `range`, another each time.
fn random(range: std::ops::Range<u64>) -> u64 {
    range.start + RandomState::new().build_hasher().finish() % (range.end - range.start)
}

#[track_caller]
fn assert_equal(found: &Run, alone: &Run) {
    let (found, alone) = (found.files(), alone.files());
    assert!(found.keys().eq(alone.keys()), "{:?}, not {:?}", found.keys(), alone.keys());
    for (name, content) in &found {
        assert!(*content == alone[name], "{name} differs");
    }
}

#[test]
fn three_kills_leave_no_trace() {
    let alone = Run::new(&[]);
    alone.succeed(&[]);
    assert!(steps(&alone.output()).into_iter().eq(1..=STEPS));

    let killed = Run::new(&["--save-every", "3", "--resume"]);
    let kills = [random(2..12), random(14..24), random(26..STEPS - 2)];
    for step in kills {
        let mut child = killed.start(&[]);
        killed.wait_for_step(&mut child, step);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!killed.output().exists(), "killed after step {step} of {kills:?}");
    }
    let log = killed.succeed(&[]);
    assert!(log.contains("going on after step"), "{kills:?}: {log}");
    assert!(steps(&killed.output()).into_iter().eq(1..=STEPS), "{kills:?}");
    assert_equal(&killed, &alone);
    assert!(!killed.partial().exists());
}

#[test]
fn low_rank_changes_in_bf16_go_on_as_well() {
    let arguments = ["--train", "lora", "--lora-rank", "4", "--dtype", "bf16", "--group-by-length"];
    let alone = Run::new(&arguments);
    alone.succeed(&[]);
    let killed = Run::new(&[&arguments[..], &["--save-every", "1", "--resume"]].concat());
    let step = random(3..STEPS - 2);
    let mut child = killed.start(&[]);
    killed.wait_for_step(&mut child, step);
    child.kill().unwrap();
    child.wait().unwrap();
    killed.succeed(&[]);
    assert!(steps(&killed.output()).into_iter().eq(1..=STEPS), "killed after step {step}");
    assert_equal(&killed, &alone);
}

#[test]
fn a_run_that_is_told_to_stop_saves_where_it_is() {
    let run = Run::new(&["--save-every", "1000"]);
    let mut child = run.start(&[]);
    run.wait_for_step(&mut child, 5);
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: sends a signal to a child that has not been waited for, so the number is its own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("go on with --resume"), "{}", text(&output));

    let done = *steps(&run.partial()).last().unwrap();
    let message = run.refused(2, &[]);
    assert!(message.contains(".trained.partial/state") && message.contains("--resume"), "{message}");
    for (arguments, difference) in [
        (["--resume", "--seed", "5"], "seed 42 instead of 5"),
        (["--resume", "--warmup-ratio", "0.5"], "warmup_ratio 0.03 instead of 0.5"),
    ] {
        let message = run.refused(2, &arguments);
        assert!(message.contains(difference), "{message}");
    }
    let data = run.folder.path().join("data.json");
    let samples = fs::read_to_string(&data).unwrap();
    fs::write(&data, samples.replace("7.88", "7.87")).unwrap();
    assert!(run.refused(2, &["--resume"]).contains("data \"sha256:"));
    fs::write(&data, samples).unwrap();

    // What changes nothing may change: how often to save, and what is kept in memory.
    let log = run.succeed(&["--resume", "--gradient-checkpointing"]);
    assert!(log.contains(&format!("going on after step {done}")), "{log}");
    let alone = Run::new(&[]);
    alone.succeed(&[]);
    assert_equal(&run, &alone);

    assert!(run.succeed(&["--resume"]).contains("nothing is left to do"));
    assert!(run.refused(2, &[]).contains("exists already"));
    assert_equal(&run, &alone);
}
