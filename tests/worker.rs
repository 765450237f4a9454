//! The real worker binary as a child process, against a real Apache Kafka, an S3 server and Postgres,
//! scoring with the real network.

mod engine;
#[path = "worker/hold.rs"]
mod hold;
#[path = "worker/observability.rs"]
mod observability;
#[path = "worker/page.rs"]
mod page;
#[path = "worker/retrain_loop.rs"]
mod retrain_loop;
#[path = "worker/reuse.rs"]
mod reuse;
#[path = "worker/scoring_api.rs"]
mod scoring_api;
mod support;
#[path = "worker/switch/mod.rs"]
mod switch;
#[path = "worker/untrusted.rs"]
mod untrusted;
#[path = "worker/versions.rs"]
mod versions;
#[path = "worker/votes.rs"]
mod votes;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use support::{Uploaded, envelopes::Envelope, outputs, stack::Stack};

const RECORDS: usize = 1_000;
const WITHIN: Duration = Duration::from_secs(240);

/// 1,000 records in every envelope, SIGKILL in the middle, and every score once.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_scores_every_item_exactly_once() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(6).await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let uploads = stack.upload(&expected, RECORDS + RECORDS / 4).await;

    let mut remaining = uploads.iter();
    let mut items = HashMap::new();
    for number in 0..RECORDS {
        let envelope = Envelope::ALL[number % Envelope::ALL.len()];
        let batch: Vec<&Uploaded> = remaining.by_ref().take(envelope.items()).collect();
        let uploads: Vec<_> = batch.iter().map(|uploaded| &uploaded.upload).collect();
        let position = stack.produce(&envelope.record(&uploads)).await;
        for (item, uploaded) in batch.into_iter().enumerate() {
            items.insert((position.0, position.1, item as u32), uploaded);
        }
    }
    assert!(items.len() > RECORDS, "some records hold several items");

    let mut worker = stack.worker(&[]);
    let committed = stack.wait_for_outputs(100, WITHIN).await;
    worker.kill();
    let committed = committed.max(stack.count_outputs().await);
    assert!((100..=900).contains(&committed), "killed after {committed} committed outputs");

    let worker = stack.worker(&[]);
    stack.wait_for_outputs(items.len(), WITHIN).await;
    assert_eq!(worker.terminate(), Some(0), "the drain ends with exit 0");

    let outputs = stack.outputs().await;
    let mut seen = HashSet::new();
    let rows = stack.rows().await;
    for output in &outputs {
        let source = outputs::source(output);
        assert!(seen.insert(source), "{source:?} has two committed outputs");
        let uploaded = items.get(&source).unwrap_or_else(|| panic!("{source:?} was never sent"));
        assert_eq!(output["bucket"], stack.bucket(), "{output}");
        assert_eq!(output["key"], uploaded.upload.key, "{output}");
        let row = &rows[output["id"].as_str().expect("an id")];
        assert_eq!(row.status, output["status"], "{output}");
        assert_eq!(row.score, output["score"].as_f64(), "the output carries the stored score");
        assert_eq!(uploaded.expected.status, output["status"], "{output}");
        match uploaded.expected.score {
            Some(score) => {
                let difference = (score - output["score"].as_f64().expect("a score")).abs();
                assert!(difference <= 1e-4, "{}: off by {difference}", uploaded.upload.key);
            }
            None => {
                assert_eq!(uploaded.expected.code.as_deref(), output["error"]["code"].as_str(), "{output}")
            }
        }
    }
    assert_eq!(seen.len(), items.len(), "every item has an output");
    let ids: HashSet<&str> = outputs.iter().filter_map(|output| output["id"].as_str()).collect();
    assert_eq!(ids.len(), rows.len(), "one row an id");
    assert_eq!(ids.len(), uploads_used(&items), "one id an upload");
}

fn uploads_used(items: &HashMap<(i32, i64, u32), &Uploaded>) -> usize {
    items.values().map(|uploaded| &uploaded.upload.key).collect::<HashSet<_>>().len()
}

/// What cannot be scored ends in a row, an output and a dead letter, and holds up nothing.
#[tokio::test(flavor = "multi_thread")]
async fn bad_records_end_in_dead_letters_and_the_rest_is_scored() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let uploads = stack.upload(&expected, 3).await;
    for (key, content) in [
        ("empty.jpg", Vec::new()),
        ("page.jpg", b"<!doctype html><p>not found</p>".to_vec()),
        ("a b+c%2Fd.jpg", b"also no image".to_vec()),
    ] {
        stack.put(key, content).await;
    }
    let plain = |key: &str| serde_json::json!({"bucket": stack.bucket(), "key": key}).to_string();
    let bad = [
        ("malformed_event", "{not json".to_owned()),
        ("malformed_event", r#"{"hello":"world"}"#.to_owned()),
        ("bucket_not_allowed", r#"{"bucket":"another","key":"a.jpg"}"#.to_owned()),
        ("key_not_storable", plain("nul\u{0}.jpg")),
        ("image_truncated", plain("empty.jpg")),
        ("unsupported", plain("page.jpg")),
        ("unsupported", plain("a b+c%2Fd.jpg")),
    ];
    for (_, record) in &bad {
        stack.produce(&support::envelopes::Record::plain(record.clone())).await;
    }
    stack.produce(&support::envelopes::Record::plain(plain("never-uploaded.jpg"))).await;
    stack.produce(&support::envelopes::Record::tombstone()).await;
    for upload in &uploads {
        stack.produce(&Envelope::Aws.record(&[&upload.upload])).await;
    }
    let worker = stack.worker(&[("s3.missing_grace_ms", "200")]);
    stack.wait_for_outputs(bad.len() + 1 + uploads.len(), WITHIN).await;
    assert_eq!(worker.terminate(), Some(0));

    let outputs = stack.outputs().await;
    let rows = stack.rows().await;
    for (offset, (code, record)) in bad.iter().enumerate() {
        let output = outputs::at(&outputs, offset as i64);
        assert_eq!(output["status"], "rejected", "{record}");
        assert_eq!(output["error"]["code"], *code, "{record}");
        assert_eq!(rows[output["id"].as_str().expect("an id")].status, "rejected");
    }
    let missing = outputs::at(&outputs, bad.len() as i64);
    assert_eq!(
        (missing["status"].as_str(), missing["error"]["code"].as_str()),
        (Some("gone"), Some("object_missing"))
    );
    let mut letters = stack.dead_letters().await;
    // Items end in any order, and there is none across keys.
    letters.sort_by_key(|letter| letter.header("dlq-origin-offset").parse::<i64>().expect("an offset"));
    let codes: Vec<&str> = letters.iter().map(|letter| letter.header("dlq-code")).collect();
    assert_eq!(codes, bad.iter().map(|(code, _)| *code).collect::<Vec<_>>(), "`gone` is no dead letter");
    for (letter, (_, record)) in letters.iter().zip(&bad) {
        assert_eq!(letter.payload, record.as_bytes(), "the original bytes");
    }
    assert_eq!(outputs.iter().filter(|output| output["status"] == "scored").count(), uploads.len());
}

/// A removal has a row and an output of its own, and marks the rows that it is about.
#[tokio::test(flavor = "multi_thread")]
async fn removals_are_deleted_whatever_was_scored_before_them() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let scored: Vec<_> = expected.into_iter().filter(|expected| expected.status == "scored").collect();
    let uploads = stack.upload(&scored, 5).await;
    let event = |name: &str, upload: usize, version: Option<&str>, sequencer: Option<&str>| {
        let support::envelopes::Upload { bucket, key, etag, size } = &uploads[upload].upload;
        let key: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
        let mut object = serde_json::json!({"key": key, "versionId": version, "sequencer": sequencer});
        if name.starts_with("ObjectCreated") {
            object["eTag"] = etag.as_str().into();
            object["size"] = (*size).into();
        }
        let s3 = serde_json::json!({"bucket": {"name": bucket}, "object": object});
        let records = serde_json::json!({"Records": [{"eventName": name, "s3": s3}]});
        support::envelopes::Record::plain(records.to_string())
    };
    let (created, deleted) = ("ObjectCreated:Put", "ObjectRemoved:Delete");
    let marked = "ObjectRemoved:DeleteMarkerCreated";
    let before = [
        event(created, 0, Some("v0"), Some("0055A")),
        event(created, 1, None, Some("0055A")),
        event(created, 2, Some("v2"), None),
        event(created, 3, Some("v3"), Some("0055A")),
    ];
    let after = [
        event(deleted, 0, Some("v0"), Some("0055B")),
        event(deleted, 1, None, Some("0055B")),
        event(deleted, 2, Some("v2"), None),
        // The version that a delete marker's event names is the marker's own.
        event(marked, 3, Some("marker"), Some("0055B")),
        event(deleted, 0, Some("v0"), Some("0055B")),
        // Replayed and reordered: nothing comes back.
        event(created, 0, Some("v0"), Some("0055A")),
        event(deleted, 4, Some("v4"), Some("0055B")),
        event(created, 4, Some("v4"), Some("0055A")),
    ];
    let worker = stack.worker(&[]);
    let mut sent = 0;
    for phase in [&before[..], &after[..]] {
        for record in phase {
            stack.produce(record).await;
        }
        sent += phase.len();
        stack.wait_for_outputs(sent, WITHIN).await;
    }
    assert_eq!(worker.terminate(), Some(0));

    let outputs = stack.outputs().await;
    let rows = stack.rows().await;
    let statuses: Vec<&str> = (0..sent)
        .map(|offset| outputs::at(&outputs, offset as i64)["status"].as_str().expect("a status"))
        .collect();
    let (s, d) = ("scored", "deleted");
    assert_eq!(statuses, [s, s, s, s, d, d, d, d, d, s, d, s]);
    for output in &outputs {
        let row = &rows[output["id"].as_str().expect("an id")];
        assert_eq!(
            (row.status.as_str(), row.score),
            (output["status"].as_str().expect("a status"), output["score"].as_f64())
        );
        assert!(row.removed, "{output}");
    }
    assert_eq!(rows.len(), 10, "five scores, and five removals");
}

/// Readiness, liveness and metrics as an operator's tools see them.
#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_follow_the_work() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let uploads = stack.upload(&expected, 2).await;
    let worker = stack.worker(&[]);
    worker.wait_until_ready(WITHIN).await;
    for upload in &uploads {
        stack.produce(&Envelope::Plain.record(&[&upload.upload])).await;
        stack.produce(&Envelope::Aws.record(&[&upload.upload])).await;
    }
    stack.wait_for_outputs(2 * uploads.len(), WITHIN).await;
    assert!(worker.get("/healthz").await.starts_with("HTTP/1.1 200"));
    let metrics = worker.get("/metrics").await;
    let value = |name: &str| support::metric(&metrics, name);
    assert_eq!(value("roc4mllm_records_total"), Some(4.0), "{metrics}");
    let finished: f64 = ["scored", "rejected"]
        .iter()
        .filter_map(|status| value(&format!("roc4mllm_items_total{{status=\"{status}\"}}")))
        .sum();
    assert_eq!(finished, 4.0, "{metrics}");
    assert_eq!(stack.rows().await.len(), 2, "two notifications for one upload give one row");
    assert_eq!(worker.terminate(), Some(0));
}

/// A dependency that is not there ends the start within its deadline, by name.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_dependency_is_named_within_the_deadline() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    for (key, value, named) in [
        ("kafka.brokers", "127.0.0.1:1", "127.0.0.1:1"),
        ("s3.endpoint", "http://127.0.0.1:1", "127.0.0.1:1"),
        ("postgres.url", "postgres://user:hush@127.0.0.1:1/db", "127.0.0.1:1"),
        ("kafka.output_topic", "no-such-topic", "no-such-topic"),
        ("s3.buckets", r#"["no-such-bucket"]"#, "no-such-bucket"),
        ("model.checkpoint", "/nowhere", "/nowhere"),
    ] {
        let worker = stack.worker(&[(key, value), ("pipeline.start_timeout_ms", "5000")]);
        let (code, log) = worker.wait_within(Duration::from_secs(30));
        assert!(!matches!(code, Some(0) | None), "{key}: {code:?} {log}");
        let line = log.lines().rev().find(|line| line.starts_with("roc4mllm: ")).unwrap_or_default();
        assert!(line.contains(named), "{key}: {log}");
        assert!(!log.contains("hush"), "the password is printed: {log}");
    }
}
