//! The worker in broken surroundings: it holds what needs them, says so, and goes on by itself.

use crate::support::{
    envelopes::{Envelope, Record, Upload},
    metric, outputs,
    stack::{Stack, Worker},
};
use roc4mllm::{
    dev::{Fault, Postgres, S3Server, s3_client, s3_put},
    inference::stand_in::{self, Script},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const WITHIN: Duration = Duration::from_secs(120);
const BUCKET: &str = "photos";
const FORBIDDEN: Fault = Fault::Refuse { status: 403, code: "AccessDenied" };
const SLOW_DOWN: Fault = Fault::Refuse { status: 503, code: "SlowDown" };

/// A stack whose S3 server this test breaks, and a stand-in for the model.
struct Surroundings {
    stack: Stack,
    s3: S3Server,
    script: PathBuf,
    folder: TempDir,
}

impl Surroundings {
    async fn start() -> Self {
        let stack = Stack::start(1).await;
        let folder = tempfile::tempdir().expect("a folder");
        let s3 = S3Server::start(folder.path()).expect("an S3 server");
        s3.create_bucket(BUCKET).expect("a bucket");
        let script = folder.path().join("script.json");
        let surroundings = Self { stack, s3, script, folder };
        surroundings.perform(&Script::default());
        surroundings
    }

    fn perform(&self, script: &Script) {
        // Moved into place, so that no half of it is ever read.
        let draft = self.folder.path().join("draft.json");
        std::fs::write(&draft, serde_json::to_vec(script).expect("JSON")).expect("written");
        std::fs::rename(&draft, &self.script).expect("moved");
    }

    /// A worker that gives an item up within 2 s, were it not held.
    fn worker(&self, overrides: &[(&str, &str)]) -> Worker {
        let buckets = format!("[{BUCKET:?}]");
        let endpoint = self.s3.endpoint();
        let mut settings = vec![
            ("s3.endpoint", endpoint.as_str()),
            ("s3.buckets", buckets.as_str()),
            ("s3.access_key_id", S3Server::ACCESS_KEY),
            ("s3.secret_access_key", S3Server::SECRET_KEY),
            ("retry.initial_ms", "20"),
            ("retry.max_ms", "200"),
            ("retry.deadline_ms", "2000"),
        ];
        settings.extend(overrides);
        self.stack.scripted_worker(&self.script, &settings)
    }

    async fn put(&self, key: &str, content: Vec<u8>) -> Upload {
        let client = s3_client(&self.s3.endpoint(), S3Server::ACCESS_KEY, S3Server::SECRET_KEY);
        let size = content.len();
        let etag = s3_put(&client, BUCKET, key, content.into()).await.expect("an upload");
        Upload { bucket: BUCKET.into(), key: key.into(), etag, size }
    }

    /// Uploads pictures and announces them.
    async fn load(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            let upload = self.put(&format!("{number:05}.png"), picture(number)).await;
            self.stack.produce(&Envelope::Aws.record(&[&upload])).await;
        }
    }

    async fn statuses(&self) -> Vec<String> {
        let outputs = self.stack.outputs().await;
        outputs.iter().map(|output| output["status"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Every output is a score, one an item, and nothing became a dead letter.
    async fn assert_all_scored(&self, items: usize) {
        let statuses = self.statuses().await;
        assert_eq!(statuses.len(), items);
        assert!(statuses.iter().all(|status| status == "scored"), "{statuses:?}");
        assert_eq!(self.stack.dead_letters().await.len(), 0);
    }
}

/// A picture like no other number's.
fn picture(number: u32) -> Vec<u8> {
    let colour = [number as u8, (number >> 8) as u8, 99];
    let image = image::RgbImage::from_pixel(24, 24, image::Rgb(colour));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).expect("a PNG");
    bytes.into_inner()
}

/// What a script calls a picture.
fn digest(number: u32) -> String {
    stand_in::sighting(&picture(number), Script::default().image_size).expect("a picture").digest
}

/// Waits until `/readyz` answers as wanted; its text.
async fn readiness(worker: &Worker, wanted: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + WITHIN;
    loop {
        let answer = worker.get("/readyz").await;
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn value(worker: &Worker, name: &str) -> f64 {
    let metrics = worker.get("/metrics").await;
    let unlabelled = format!("{name}{{}}");
    let found = metric(&metrics, name).or_else(|| metric(&metrics, &unlabelled));
    found.unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

/// Waits until a metric is as wanted.
async fn reaches(worker: &Worker, name: &str, wanted: impl Fn(f64) -> bool) {
    let deadline = Instant::now() + WITHIN;
    loop {
        let value = value(worker, name).await;
        if wanted(value) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} stays {value}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn held(worker: &Worker, dependency: &str) -> String {
    let answer = readiness(worker, |answer| {
        answer.starts_with("HTTP/1.1 503") && answer.contains(&format!("{dependency} is broken"))
    })
    .await;
    assert!(worker.get("/healthz").await.starts_with("HTTP/1.1 200"), "held is no reason for a restart");
    assert_eq!(value(worker, &format!("roc4mllm_breaker_open{{dependency={dependency:?}}}")).await, 1.0);
    answer
}

async fn recovered(worker: &Worker) {
    readiness(worker, |answer| answer.starts_with("HTTP/1.1 200")).await;
    for dependency in ["s3", "postgres", "model"] {
        assert_eq!(value(worker, &format!("roc4mllm_breaker_open{{dependency={dependency:?}}}")).await, 0.0);
    }
    reaches(worker, "roc4mllm_items_held", |held| held == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_403_for_everything_holds_everything_until_it_is_mended() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    const ITEMS: usize = 60;
    let around = Surroundings::start().await;
    around.load(0..ITEMS as u32).await;
    around.s3.set_faults(|_| Some(FORBIDDEN));
    let worker = around.worker(&[]);
    let answer = held(&worker, "s3").await;
    assert!(answer.contains("403") && answer.contains(BUCKET), "{answer}");
    // Twice the time after which an item would be given up.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(value(&worker, "roc4mllm_items_held").await >= 20.0);
    reaches(&worker, "roc4mllm_paused", |paused| paused == 1.0).await;
    assert_eq!(value(&worker, "roc4mllm_encoded_in_flight_bytes").await, 0.0);
    assert_eq!((around.stack.count_outputs().await, around.stack.dead_letters().await.len()), (0, 0));
    around.s3.clear_faults();
    around.stack.wait_for_outputs(ITEMS, WITHIN).await;
    recovered(&worker).await;
    around.assert_all_scored(ITEMS).await;
    assert_eq!(worker.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passing_fault_at_the_start_is_waited_out() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let around = Surroundings::start().await;
    around.load(0..3).await;
    let asked = AtomicU64::new(0);
    around.s3.set_faults(move |_| {
        let refuse = asked.fetch_add(1, Ordering::Relaxed) < 3;
        refuse.then_some(Fault::Refuse { status: 500, code: "InternalError" })
    });
    let worker = around.worker(&[]);
    around.stack.wait_for_outputs(3, WITHIN).await;
    around.assert_all_scored(3).await;
    assert_eq!(worker.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_403_is_retried_and_holds_nobody_up() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let around = Surroundings::start().await;
    around.load(0..1).await;
    around.s3.set_faults(|request| request.uri.path().contains("00000").then_some(FORBIDDEN));
    let worker = around.worker(&[]);
    around.load(1..11).await;
    around.stack.wait_for_outputs(11, WITHIN).await;
    let outputs = around.stack.outputs().await;
    assert_eq!(outputs::at(&outputs, 0)["status"], "dead", "its time was up, and the breaker never open");
    assert_eq!(outputs.iter().filter(|output| output["status"] == "scored").count(), 10);
    assert_eq!(worker.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_s3_is_asked_for_less_at_once_and_then_for_more_again() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let around = Surroundings::start().await;
    let worker = around.worker(&[("s3.parallelism", "8"), ("retry.deadline_ms", "600000")]);
    let limit = "roc4mllm_s3_concurrency_limit";
    // Not before: a bucket that does not answer at the start is a reason to end.
    readiness(&worker, |answer| answer.starts_with("HTTP/1.1 200")).await;
    let requests = AtomicU64::new(0);
    around.s3.set_faults(move |request| {
        let read = request.method.as_str() == "GET";
        (read && requests.fetch_add(1, Ordering::Relaxed).is_multiple_of(2)).then_some(SLOW_DOWN)
    });
    around.load(0..200).await;
    reaches(&worker, limit, |limit| limit <= 2.0).await;
    around.s3.clear_faults();
    around.load(200..300).await;
    around.stack.wait_for_outputs(300, WITHIN).await;
    reaches(&worker, limit, |limit| limit == 8.0).await;
    around.assert_all_scored(300).await;
    assert_eq!(worker.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_copy_of_a_slow_object_counts_towards_the_budget_of_bytes() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    const SIZE: usize = 3 << 20;
    let around = Surroundings::start().await;
    around.s3.set_faults(|request| {
        request.uri.path().contains("slow").then_some(Fault::Delay(Duration::from_secs(1)))
    });
    // Room for one copy, and then for two.
    for (number, budget, hedged) in [(0_usize, SIZE + SIZE / 2, false), (1, 3 * SIZE, true)] {
        let mut content = picture(number as u32);
        content.resize(SIZE, 0);
        let upload = around.put(&format!("slow-{number}.png"), content).await;
        around.stack.produce(&Envelope::Aws.record(&[&upload])).await;
        let worker = around.worker(&[
            ("image.max_bytes", &SIZE.to_string()),
            ("pipeline.max_bytes", &budget.to_string()),
            ("s3.hedge_after_ms", "100"),
            ("s3.hedge_percent", "100"),
            ("retry.deadline_ms", "60000"),
        ]);
        around.stack.wait_for_outputs(number + 1, WITHIN).await;
        assert_eq!(value(&worker, "roc4mllm_s3_hedged_requests_total").await > 0.0, hedged, "{budget}");
        assert_eq!(worker.terminate(), Some(0));
    }
    around.assert_all_scored(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_missing_and_overwritten_objects_are_no_dead_letters() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let around = Surroundings::start().await;
    let worker = around.worker(&[("s3.missing_grace_ms", "3000"), ("retry.deadline_ms", "60000")]);
    let announce = |key: &str| Record::plain(serde_json::json!({"bucket": BUCKET, "key": key}).to_string());
    around.stack.produce(&announce("late.png")).await;
    around.stack.produce(&announce("never.png")).await;
    let first = around.put("overwritten.png", picture(1)).await;
    around.put("overwritten.png", picture(2)).await;
    around.stack.produce(&Envelope::Aws.record(&[&first])).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    around.put("late.png", picture(3)).await;
    around.stack.wait_for_outputs(3, WITHIN).await;
    let outputs = around.stack.outputs().await;
    let end = |offset| {
        let output: &Value = outputs::at(&outputs, offset);
        (output["status"].as_str(), output["error"]["code"].as_str())
    };
    assert_eq!(end(0), (Some("scored"), None));
    assert_eq!(end(1), (Some("gone"), Some("object_missing")));
    assert_eq!(end(2), (Some("gone"), Some("superseded")));
    assert_eq!(around.stack.dead_letters().await.len(), 0);
    assert_eq!(worker.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_down_is_waited_for() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let around = Surroundings::start().await;
    let mut postgres = Postgres::start().expect("a Postgres");
    let url = postgres.url();
    let worker = around.worker(&[("postgres.url", &url), ("postgres.connect_timeout_ms", "500")]);
    worker.wait_until_ready(WITHIN).await;
    around.load(0..10).await;
    around.stack.wait_for_outputs(10, WITHIN).await;
    postgres.stop().expect("stopped");
    around.load(10..30).await;
    let answer = held(&worker, "postgres").await;
    assert!(answer.contains("127.0.0.1"), "{answer}");
    reaches(&worker, "roc4mllm_paused", |paused| paused == 1.0).await;
    assert_eq!(around.stack.count_outputs().await, 10);
    postgres.restart().expect("started again");
    around.stack.wait_for_outputs(30, WITHIN).await;
    recovered(&worker).await;
    around.assert_all_scored(30).await;
    assert_eq!(worker.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_scores_are_no_numbers_is_held_and_a_single_one_is_rejected() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    const ITEMS: u32 = 60;
    let around = Surroundings::start().await;
    around.perform(&Script { not_finite: BTreeSet::from([digest(30)]), ..Script::default() });
    // The built-in picture, which this stand-in always gets right, must not come in between.
    let worker = around.worker(&[("inference.golden_interval_ms", "3600000")]);
    around.load(0..40).await;
    around.stack.wait_for_outputs(40, WITHIN).await;
    let rejected = around.statuses().await.iter().filter(|status| *status == "rejected").count();
    assert_eq!(rejected, 1);
    recovered(&worker).await;

    around.perform(&Script { not_finite: (40..40 + ITEMS).map(digest).collect(), ..Script::default() });
    around.load(40..40 + ITEMS).await;
    held(&worker, "model").await;
    let before = around.stack.dead_letters().await.len();
    assert!(before <= 6, "{before} dead letters before the breaker opened");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(around.stack.dead_letters().await.len(), before, "a dead letter while the model is held");
    around.perform(&Script::default());
    around.stack.wait_for_outputs((40 + ITEMS) as usize, WITHIN).await;
    recovered(&worker).await;
    let scored = around.statuses().await.iter().filter(|status| *status == "scored").count();
    assert_eq!(scored, (40 + ITEMS) as usize - before);
    assert_eq!(around.stack.dead_letters().await.len(), before);
    assert_eq!(worker.terminate(), Some(0));
}

/// Nothing else comes that could show that the model is well; the built-in picture does.
#[tokio::test(flavor = "multi_thread")]
async fn images_that_a_sound_model_has_no_number_for_do_not_wait_for_ever() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    const ITEMS: u32 = 12;
    let around = Surroundings::start().await;
    around.perform(&Script { not_finite: (0..ITEMS).map(digest).collect(), ..Script::default() });
    let worker = around.worker(&[("inference.golden_interval_ms", "500")]);
    around.load(0..ITEMS).await;
    around.stack.wait_for_outputs(ITEMS as usize, WITHIN).await;
    assert_eq!(around.statuses().await, vec!["rejected"; ITEMS as usize]);
    recovered(&worker).await;
    assert_eq!(worker.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_dead_letters_in_a_row_are_held_for_a_while() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let around = Surroundings::start().await;
    for _ in 0..130 {
        around.stack.produce(&Record::plain("{not json".to_owned())).await;
    }
    let worker = around.worker(&[("pipeline.dead_letter_hold_ms", "8000")]);
    let answer = readiness(&worker, |answer| answer.contains("dead letters are held")).await;
    assert!(answer.contains("dead_letter_hold_ms") && answer.contains("100 of the last 100"), "{answer}");
    assert_eq!(value(&worker, "roc4mllm_dead_letters_held").await, 1.0);
    around.stack.wait_for_outputs(99, WITHIN).await;
    assert_eq!(around.stack.dead_letters().await.len(), 99);
    reaches(&worker, "roc4mllm_paused", |paused| paused == 1.0).await;
    assert!(worker.get("/healthz").await.starts_with("HTTP/1.1 200"));
    around.stack.wait_for_outputs(130, WITHIN).await;
    assert_eq!(around.stack.dead_letters().await.len(), 130);
    recovered(&worker).await;
    assert_eq!(worker.terminate(), Some(0));
}
