//! What the worker does when the model thread fails: the real binary, with a stand-in that fails as
//! its script says.

use crate::support::stack::{Stack, Worker};
use roc4mllm::{
    image::Preprocessor,
    inference::{
        golden::GoldenImage,
        stand_in::{self, Script, Sighting},
    },
};
use std::{collections::HashMap, fs, time::Duration};

const WITHIN: Duration = Duration::from_secs(120);

/// A stack, and a script for its workers.
struct Stage {
    stack: Stack,
    script: tempfile::NamedTempFile,
    /// What the stand-in sees in each picture that can be decoded, no two of them alike.
    pictures: Vec<(Vec<u8>, Sighting)>,
}

impl Stage {
    async fn set() -> Self {
        let stack = Stack::start(1).await;
        let script = tempfile::NamedTempFile::new().expect("a file");
        let mut pictures: Vec<(Vec<u8>, Sighting)> = Vec::new();
        for path in stack.images() {
            let file = fs::read(path).expect("a picture");
            let Ok(sighting) = stand_in::sighting(&file, Script::default().image_size) else { continue };
            if pictures.iter().all(|(_, other)| other.digest != sighting.digest) {
                pictures.push((file, sighting));
            }
        }
        assert!(pictures.len() >= 6, "only {} pictures", pictures.len());
        let stage = Self { stack, script, pictures };
        stage.play(&Script::default());
        stage
    }

    /// Has every worker do what `script` says from its next batch on.
    fn play(&self, script: &Script) {
        fs::write(self.script.path(), serde_json::to_vec(script).expect("JSON")).expect("written");
    }

    fn worker(&self, overrides: &[(&str, &str)]) -> Worker {
        self.stack.scripted_worker(self.script.path(), overrides)
    }

    /// Uploads a picture and announces it.
    async fn announce(&self, picture: usize, key: &str) {
        self.stack.put(key, self.pictures[picture].0.clone()).await;
        let record = serde_json::json!({"bucket": self.stack.bucket(), "key": key}).to_string();
        self.stack.produce(&crate::support::envelopes::Record::plain(record)).await;
    }

    fn digest(&self, picture: usize) -> String {
        self.pictures[picture].1.digest.clone()
    }

    /// Waits for `count` outputs, and checks each of them but those of `unscored` keys; returns these.
    async fn check(&self, count: usize, unscored: &[&str]) -> Vec<serde_json::Value> {
        self.stack.wait_for_outputs(count, WITHIN).await;
        let outputs = self.stack.outputs().await;
        assert_eq!(outputs.len(), count, "an output an item");
        let mut rest = Vec::new();
        for output in outputs {
            let key = output["key"].as_str().expect("a key");
            assert_eq!(output["model_version"], "stand-in", "{output}");
            if unscored.contains(&key) {
                rest.push(output);
                continue;
            }
            let picture: usize =
                key.split('-').next().and_then(|number| number.parse().ok()).expect("a number");
            assert_eq!(output["status"], "scored", "{output}");
            let expected = self.pictures[picture].1.answer.score();
            assert!((output["score"].as_f64().expect("a score") - expected).abs() < 1e-9, "{output}");
        }
        assert_eq!(rest.len(), unscored.len());
        rest
    }
}

/// 71 while the model still hangs, and what was held is scored by the next worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_model_ends_the_worker_with_71() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stage = Stage::set().await;
    let settings = [("inference.hang_timeout_ms", "1000"), ("pipeline.drain_ms", "4000")];
    let worker = stage.worker(&settings);
    worker.wait_until_ready(WITHIN).await;
    stage.announce(0, "0-before").await;
    stage.check(1, &[]).await;
    stage.play(&Script { hang: true, ..Script::default() });
    for picture in 0..3 {
        stage.announce(picture, &format!("{picture}-held")).await;
    }
    let (code, log) = worker.wait_within(Duration::from_secs(30));
    assert_eq!(code, Some(71), "{log}");
    assert!(log.contains("hang_timeout_ms"), "{log}");

    stage.play(&Script::default());
    let worker = stage.worker(&settings);
    stage.check(4, &[]).await;
    assert_eq!(worker.terminate(), Some(0));
}

/// Less memory is lived with; none, or a device that computes nonsense, is not.
#[tokio::test(flavor = "multi_thread")]
async fn memory_and_device_end_the_worker_by_their_own_codes() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stage = Stage::set().await;
    let golden = {
        let edge = Script::default().image_size;
        let mut values = vec![0.0; 3 * edge * edge];
        GoldenImage::new(Preprocessor::clip(edge)).write(&mut values);
        stand_in::digest(&values)
    };
    let worker = stage.worker(&[("inference.golden_interval_ms", "50"), ("pipeline.drain_ms", "4000")]);
    worker.wait_until_ready(WITHIN).await;
    assert_eq!(crate::support::metric(&worker.get("/metrics").await, "roc4mllm_golden_image_ok"), Some(1.0));
    stage.play(&Script { not_finite: [golden].into(), ..Script::default() });
    let (code, log) = worker.wait_within(Duration::from_secs(30));
    assert_eq!(code, Some(70), "{log}");
    assert!(log.contains("built-in picture"), "{log}");

    stage.play(&Script { out_of_memory_above: Some(2), image_ms: 20, ..Script::default() });
    let worker = stage.worker(&[("pipeline.drain_ms", "4000")]);
    worker.wait_until_ready(WITHIN).await;
    for number in 0..12 {
        let picture = number % stage.pictures.len();
        stage.announce(picture, &format!("{picture}-{number}")).await;
    }
    stage.check(12, &[]).await;
    stage.play(&Script { out_of_memory_above: Some(0), ..Script::default() });
    stage.announce(1, "1-last").await;
    let (code, log) = worker.wait_within(Duration::from_secs(30));
    assert_eq!(code, Some(75), "{log}");

    stage.play(&Script { device_error: true, ..Script::default() });
    let (code, log) = stage.worker(&[]).wait_within(Duration::from_secs(30));
    assert_eq!(code, Some(70), "{log}");

    stage.play(&Script::default());
    let worker = stage.worker(&[]);
    stage.check(13, &[]).await;
    assert_eq!(worker.terminate(), Some(0));
    assert!(stage.stack.dead_letters().await.is_empty(), "no image is to blame");
}

/// An image that kills every process and one that hangs it: after three crashes the fourth worker
/// finds both, and everything else is scored.
#[tokio::test(flavor = "multi_thread")]
async fn images_that_kill_workers_are_found_by_the_fourth_start() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    const DEADLY: [(usize, &str); 2] = [(1, "1-aborts"), (3, "3-hangs")];
    let stage = Stage::set().await;
    stage.play(&Script {
        abort: [stage.digest(DEADLY[0].0)].into(),
        hang_at: [stage.digest(DEADLY[1].0)].into(),
        ..Script::default()
    });
    let mut harmless: Vec<usize> = (0..stage.pictures.len()).collect();
    harmless.retain(|picture| DEADLY.iter().all(|(deadly, _)| deadly != picture));
    for number in 0..30 {
        match number {
            9 => stage.announce(DEADLY[0].0, DEADLY[0].1).await,
            20 => stage.announce(DEADLY[1].0, DEADLY[1].1).await,
            _ => {
                let picture = harmless[number % harmless.len()];
                stage.announce(picture, &format!("{picture}-{number}")).await;
            }
        }
    }
    let settings = [("inference.hang_timeout_ms", "4000"), ("pipeline.drain_ms", "2000")];
    for start in 1..=3 {
        let (code, log) = stage.worker(&settings).wait_within(Duration::from_secs(60));
        // Killed by a signal, or given up because it hangs.
        assert!(matches!(code, None | Some(71)), "start {start}: {code:?} {log}");
        assert!(!log.contains("suspected"), "start {start} is too early: {log}");
    }
    let worker = stage.worker(&settings);
    let rejected = stage.check(30, &DEADLY.map(|(_, key)| key)).await;
    let metrics = worker.get("/metrics").await;
    assert_eq!(crate::support::metric(&metrics, "roc4mllm_quarantine_deaths_total"), Some(4.0), "{metrics}");
    assert_eq!(worker.terminate(), Some(0));

    for output in rejected {
        assert_eq!(
            (output["status"].as_str(), output["error"]["code"].as_str()),
            (Some("rejected"), Some("poison"))
        );
    }
    let letters = stage.stack.dead_letters().await;
    let classes: HashMap<&str, usize> = letters.iter().fold(HashMap::new(), |mut classes, letter| {
        *classes.entry(letter.header("dlq-class")).or_default() += 1;
        classes
    });
    assert_eq!(classes, HashMap::from([("poison", 2)]));
    assert_eq!(stage.stack.rows().await.values().filter(|row| row.status == "scored").count(), 28);
}
