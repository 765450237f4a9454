//! The labels topic through the real worker: a row a vote, whatever kills it on the way.

use super::{WITHIN, support, support::envelopes::Record, support::stack::Stack};
use roc4mllm::labels::{Label, Opinion, Scale, Vote};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

const VOTES: usize = 1_500;
const PHOTOS: usize = 60;
const RATERS: usize = 9;
/// Every so many records one is nonsense.
const NONSENSE_EVERY: usize = 50;

/// Object, rater; scores, raters and time of the vote that counts.
type Expected = BTreeMap<(String, String), Vote>;

/// Record `number`, and whether it is a vote.
fn record(stack: &Stack, number: usize) -> (String, bool) {
    // Raters change their minds, never twice at one time, and records come in any order.
    let seconds = number * 7_919 % VOTES;
    let mut record = json!({
        "bucket": stack.bucket(),
        "key": format!("Фото {:02} + %25.jpg", number * 7 % PHOTOS),
        "etag": format!("\"e{}\"", number % 2),
        "rater": format!("rater {}", number * 5 % RATERS),
        "labelled_at": format!("2026-11-23T10:{:02}:{:02}Z", seconds / 60, seconds % 60),
    });
    if number.is_multiple_of(4) {
        let counts: Vec<usize> = (0..10).map(|bin| (number + bin) % 5).collect();
        record["votes"] = json!(counts);
    } else {
        record["score"] = json!(1.0 + (number * 17 % 91) as f64 / 10.0);
    }
    if !number.is_multiple_of(NONSENSE_EVERY) {
        return (record.to_string(), true);
    }
    let nonsense = match number / NONSENSE_EVERY % 6 {
        0 => "{not a vote".into(),
        1 => replaced(record, "score", json!(11)),
        2 => replaced(record, "votes", json!([1, 2, 3])),
        3 => replaced(record, "rater", Value::Null),
        4 => replaced(record, "bucket", json!("another")),
        _ => replaced(record, "labelled_at", json!("2100-01-01")),
    };
    (nonsense, false)
}

fn replaced(mut record: Value, field: &str, value: Value) -> String {
    let fields = record.as_object_mut().expect("an object");
    if matches!(field, "score" | "votes") {
        fields.remove("score");
        fields.remove("votes");
    }
    fields.insert(field.into(), value);
    record.to_string()
}

/// What the table must hold once every record has been read: of each rater the latest vote.
fn expected(records: &[String]) -> Expected {
    let now = OffsetDateTime::now_utc();
    let mut expected = Expected::new();
    for record in records {
        let vote = Vote::from_record(record.as_bytes(), None, &Scale::PAPER, now).expect("a vote");
        let place = (format!("{} {}", vote.object.key, vote.object.etag), vote.rater.clone());
        match expected.get(&place) {
            Some(counts) if counts.labelled_at >= vote.labelled_at => {}
            _ => {
                expected.insert(place, vote);
            }
        }
    }
    expected
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_no_vote_and_doubles_none() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let topic = stack.create_topic("labels", 4).await;
    let mut votes = Vec::new();
    let mut nonsense = HashMap::new();
    for number in 0..VOTES {
        let (record, is_vote) = record(&stack, number);
        let position = stack.produce_to(&topic, &Record::plain(record.clone())).await;
        match is_vote {
            true => votes.push(record),
            false => {
                nonsense.insert(position, record);
            }
        }
    }
    stack.produce_to(&topic, &Record::tombstone()).await;
    let expected = expected(&votes);
    assert!(expected.len() < votes.len() && expected.len() > PHOTOS);

    // Each dies elsewhere, after some votes: in the open transaction, with the row but not the offset, and in
    // every step of Kafka's transaction.
    let overrides = [("kafka.labels_topic", topic.as_str()), ("postgres.batch_rows", "50")];
    for failpoint in [
        "row-inserted=2*off->1*return",
        "row-durable=2*off->1*return",
        "output-staged=120*off->1*return",
        "outputs-produced=1*off->1*return",
        "offsets-sent=1*off->1*return",
        "transaction-committed=1*off->1*return",
    ] {
        let worker = stack.worker_in(&[("FAILPOINTS", Path::new(failpoint))], &overrides);
        let (code, log) = worker.wait_within(WITHIN);
        assert_eq!(code, None, "{failpoint} does not kill: {log}");
    }
    let mut worker = stack.worker_in(&[], &overrides);
    worker.wait_until_ready(WITHIN).await;
    worker.kill();

    let worker = stack.worker_in(&[], &overrides);
    let deadline = Instant::now() + WITHIN;
    while stack.committed_lag(&topic).await > 0 {
        assert!(Instant::now() < deadline, "the group does not come to the end of {topic}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let metrics = worker.get("/metrics").await;
    assert!(support::metric(&metrics, "roc4mllm_records_total").is_some(), "{metrics}");
    assert_eq!(worker.terminate(), Some(0));
    check(&stack, &expected).await;
    let numbers = stack.vote_numbers().await;

    let letters = stack.dead_letters().await;
    assert_eq!(letters.len(), nonsense.len(), "each bad record has one dead letter");
    for letter in &letters {
        let number = |name: &str| letter.header(name).parse::<i64>().expect("a number");
        let position = (number("dlq-origin-partition") as i32, number("dlq-origin-offset"));
        let record = nonsense.remove(&position).unwrap_or_else(|| panic!("{position:?} twice, or a vote"));
        assert_eq!(letter.payload, record.as_bytes());
        let code = letter.header("dlq-code");
        assert_eq!(code == "bucket_not_allowed", record.contains("another"), "{record}");
        assert!(code == "bucket_not_allowed" || code == "invalid_label", "{code}: {record}");
    }
    assert!(stack.outputs().await.is_empty(), "a vote has no output");

    // Everything once more, from the beginning: nothing is new.
    let again = [&overrides[..], &[("kafka.group", "again")]].concat();
    let worker = stack.worker_in(&[], &again);
    let deadline = Instant::now() + WITHIN;
    while support::metric(&worker.get("/metrics").await, "roc4mllm_votes_total{outcome=\"superseded\"}")
        < Some(votes.len() as f64)
    {
        assert!(Instant::now() < deadline, "{}", worker.get("/metrics").await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(worker.terminate(), Some(0));
    check(&stack, &expected).await;
    assert_eq!(stack.vote_numbers().await, numbers, "a vote that is read again is no new one");
}

/// Rows and labels against what was sent.
async fn check(stack: &Stack, expected: &Expected) {
    let (votes, labels) = stack.votes_and_labels().await;
    let stored: Expected = votes
        .into_iter()
        .map(|vote| ((format!("{} {}", vote.object.key, vote.object.etag), vote.rater.clone()), vote))
        .collect();
    for (place, vote) in expected {
        assert_eq!(stored.get(place), Some(vote));
    }
    assert_eq!(stored.len(), expected.len());
    let mut objects: BTreeMap<&str, Vec<&Vote>> = BTreeMap::new();
    for ((object, _), vote) in expected {
        objects.entry(object).or_default().push(vote);
    }
    assert_eq!(labels.len(), objects.len());
    for label in &labels {
        let object = format!("{} {}", label.object.key, label.object.etag);
        assert_eq!(Label::of_votes(&objects[object.as_str()], &Scale::PAPER).as_ref(), Some(label));
    }
}

/// Photos are scored beside votes, and each outcome goes its own way.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_and_votes_are_read_side_by_side() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let topic = stack.create_topic("labels", 1).await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let uploads = stack.upload(&expected, 4).await;
    for (number, uploaded) in uploads.iter().enumerate() {
        let upload = &uploaded.upload;
        stack.produce(&support::envelopes::Envelope::Plain.record(&[upload])).await;
        let vote = json!({"bucket": upload.bucket, "key": upload.key, "etag": upload.etag, "rater": "ann",
                          "score": 2 + number});
        stack.produce_to(&topic, &Record::plain(vote.to_string())).await;
    }
    let worker = stack.worker(&[("kafka.labels_topic", &topic)]);
    stack.wait_for_outputs(uploads.len(), WITHIN).await;
    let deadline = Instant::now() + WITHIN;
    while stack.committed_lag(&topic).await > 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(worker.terminate(), Some(0));
    let (votes, labels) = stack.votes_and_labels().await;
    assert_eq!((votes.len(), labels.len()), (4, 4));
    assert!(votes.iter().all(|vote| vote.opinion == Opinion::of_scores(vec![vote.opinion.scores[0]])));
    let age = OffsetDateTime::now_utc() - votes[0].labelled_at;
    assert!(age > time::Duration::ZERO && age < time::Duration::minutes(30), "as old as its record: {age}");
    assert_eq!(stack.outputs().await.len(), uploads.len());
    assert_eq!(stack.rows().await.len(), uploads.len());
}

/// A topic that is missing ends the start by name, as any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_labels_topic_that_is_missing_is_named() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let worker = stack.worker(&[("kafka.labels_topic", "no-such-labels")]);
    let (code, log) = worker.wait_within(Duration::from_secs(60));
    assert!(!matches!(code, Some(0) | None), "{code:?}: {log}");
    assert!(log.contains("no-such-labels"), "{log}");
}
