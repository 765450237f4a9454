//! The scoring API of the real worker: the output record's JSON, and whatever schemathesis thinks of.

use crate::support::{
    envelopes::Envelope,
    stack::{Answer, Stack, Worker, exchange},
};
use roc4mllm::dev::skip_without;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const TOKEN: &str = "a-token-of-some-length";
const WITHIN: Duration = Duration::from_secs(240);

fn settings() -> Vec<(&'static str, &'static str)> {
    vec![
        ("kafka.delivery", "at_least_once"),
        ("http.score.enabled", "true"),
        ("http.score.token", TOKEN),
        ("s3.missing_grace_ms", "0"),
        // Nobody wants to wait for what is not there.
        ("retry.deadline_ms", "2000"),
    ]
}

async fn score(worker: &Worker, media_type: &str, body: &[u8]) -> Answer {
    let headers = format!("Content-Type: {media_type}\r\nAuthorization: Bearer {TOKEN}\r\n");
    exchange(worker.http(), "POST", "/v1/score", &headers, body).await
}

/// What differs between an answer and the output of the same item.
fn comparable(record: &Value) -> Value {
    let mut record = record.clone();
    for field in ["source", "reused", "width", "height", "scored_at", "sequencer"] {
        record[field] = Value::Null;
    }
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_gets_the_record_that_the_topic_has() {
    let stack = Stack::light(1).await;
    let images = stack.images();
    let expected = crate::support::score_images(&stack.checkpoint(), &images);
    let good: Vec<_> = expected.iter().filter(|one| one.status == "scored").take(2).cloned().collect();
    let uploads = stack.upload(&good, 2).await;
    let worker = stack.worker(&settings());
    worker.wait_until_ready(WITHIN).await;

    // Of a photo that was never announced: scored now, and stored nowhere.
    let named =
        |index: usize| json!({"bucket": stack.bucket(), "key": uploads[index].upload.key}).to_string();
    let answered = score(&worker, "application/json", named(0).as_bytes()).await;
    let record = answered.json();
    assert_eq!((answered.status, &record["reused"]), (200, &false.into()), "{record}");
    let difference = (record["score"].as_f64().expect("a score") - good[0].score.expect("a score")).abs();
    assert!(difference <= 1e-4, "off by {difference}");
    assert!(stack.rows().await.is_empty(), "the API writes no row");
    let content = std::fs::read(&good[0].path).expect("a picture");
    let sent = score(&worker, "application/octet-stream", &content).await.json();
    assert_eq!(sent["scores"], record["scores"], "sent or named, it is one photo");
    assert_ne!(sent["id"], record["id"]);

    // Of a photo that the topic has: the record that the topic has.
    stack.produce(&Envelope::Plain.record(&[&uploads[1].upload])).await;
    stack.wait_for_outputs(1, WITHIN).await;
    let output = stack.outputs().await.remove(0);
    let record = score(&worker, "application/json", named(1).as_bytes()).await.json();
    assert_eq!(record["reused"], true);
    assert_eq!(comparable(&record), comparable(&output));
    assert_eq!(record["scored_at"], output["scored_at"], "it is the stored score");

    let gone = json!({"bucket": stack.bucket(), "key": "no such.jpg"}).to_string();
    let gone = score(&worker, "application/json", gone.as_bytes()).await;
    assert_eq!((gone.status, &gone.json()["status"]), (404, &"gone".into()));
    let elsewhere = json!({"bucket": "elsewhere", "key": "a.jpg"}).to_string();
    assert_eq!(score(&worker, "application/json", elsewhere.as_bytes()).await.status, 403);
    assert_eq!(
        exchange(worker.http(), "POST", "/v1/score", "Content-Type: image/jpeg\r\n", &content).await.status,
        401
    );
    let metrics = worker.get("/metrics").await;
    for line in ["score_requests_total{status=\"200\"} 3", "score_requests_total{status=\"401\"} 1"] {
        assert!(metrics.contains(line), "{line} not in {metrics}");
    }
    assert_eq!(worker.terminate(), Some(0));
}

/// Python packages that `make setup` has put beside the sources.
fn packages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps/web")
}

fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(script)).env("PYTHONPATH", packages());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_nothing() {
    if skip_without("schemathesis (.deps/web)", packages().join("bin/schemathesis").is_file()) {
        return;
    }
    let stack = Stack::light(1).await;
    let image = std::fs::read(&stack.images()[0]).expect("a picture");
    stack.put("photo.jpg", image).await;
    let worker = stack.worker(&settings());
    worker.wait_until_ready(WITHIN).await;
    let checked = python("tests/schemathesis/check.py")
        .env("ROC4MLLM_API", format!("http://{}", worker.http()))
        .env("ROC4MLLM_API_TOKEN", TOKEN)
        .env("ROC4MLLM_API_BUCKET", stack.bucket())
        .output()
        .expect("python3 runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    println!("{said}");
    assert!(checked.status.success(), "{said}");
    worker.wait_until_ready(WITHIN).await;
    assert_eq!(worker.terminate(), Some(0));
}
