//! A backfill misses nothing, however often it is killed, and stays behind the uploads.

use super::stack::{Stack, picture, value_of};
use std::collections::{BTreeMap, BTreeSet};

const KEYS: usize = 5_000;
/// At 1,000 a second a batch is half a second's worth.
const RATE: &str = "1000/s";
const BATCH: usize = 500;

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_is_killed_twice_misses_none_and_repeats_a_batch_at_most() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start().await;
    let key = |number: usize| format!("p/{:02}/{number:04} +%.png", number % 37);
    stack.upload(KEYS, b"x", key).await;
    stack.upload(3, b"x", |number| format!("elsewhere/{number}")).await;
    let prefix = format!("s3://{}/p/", stack.s3.bucket());
    let command = ["backfill", "--prefix", &prefix, "--rate", RATE];
    for noted in [600, 2_600] {
        let running = stack.spawn(&command);
        let enqueued = stack.wait_until_enqueued(noted).await;
        running.kill();
        assert!((enqueued as usize) < KEYS, "it was killed underway");
    }
    let (shown, _) = stack.expect(&command, 0).await;
    assert!(shown.contains("objects enqueued to"), "{shown}");

    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for read in stack.dump(stack.backfill_topic()).await {
        let value = value_of(&read.record);
        assert_eq!(value["size"], 1, "{value}");
        *times.entry(value["key"].as_str().expect("a key").to_owned()).or_default() += 1;
    }
    let expected: BTreeSet<String> = (0..KEYS).map(key).collect();
    assert_eq!(times.keys().cloned().collect::<BTreeSet<_>>(), expected, "none is missing, none is foreign");
    let repeated: usize = times.values().map(|times| times - 1).sum();
    assert!(repeated <= 2 * BATCH, "{repeated} were repeated by two kills");

    let (shown, _) = stack.expect(&command, 0).await;
    assert!(shown.contains("has ended before") && shown.contains("5000 objects"), "{shown}");
}

/// Only keys without a row of the version are enqueued, the newest object of each.
#[tokio::test(flavor = "multi_thread")]
async fn stored_keys_without_the_version_are_enqueued() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start().await;
    let insert = "INSERT INTO scores (id, bucket, object_key, etag, sequencer, model, model_version, status, \
                  score, scored_at, deleted_at) VALUES (gen_random_uuid(), $1, $2, $3, $4, 'm', $5, $6, $7, \
                  now(), CASE WHEN $8 THEN now() END)";
    for (key, etag, sequencer, version, status, deleted) in [
        ("old.png", "1", "01", "one", "scored", false),
        ("rejected.png", "1", "01", "one", "rejected", false),
        ("both.png", "1", "01", "one", "scored", false),
        ("both.png", "1", "01", "two", "scored", false),
        // Overwritten after version two had scored it.
        ("newer.png", "1", "01", "two", "scored", false),
        ("newer.png", "2", "02", "one", "scored", false),
        ("deleted.png", "1", "01", "one", "scored", true),
        ("gone.png", "1", "01", "one", "gone", false),
    ] {
        sqlx::query(insert)
            .bind(stack.s3.bucket())
            .bind(key)
            .bind(etag)
            .bind(sequencer)
            .bind(version)
            .bind(status)
            .bind((status == "scored").then_some(5.0))
            .bind(deleted)
            .execute(&stack.pool)
            .await
            .expect("a row");
    }
    let command = ["backfill", "--stored", "--not-version", "two", "--rate", "100/s"];
    stack.expect(&command, 0).await;
    let mut enqueued: Vec<(String, String)> = stack
        .dump(stack.backfill_topic())
        .await
        .iter()
        .map(|read| value_of(&read.record))
        .map(|value| {
            let text = |name: &str| value[name].as_str().expect("text").to_owned();
            (text("key"), text("etag"))
        })
        .collect();
    enqueued.sort();
    let expected = [("newer.png", "2"), ("old.png", "1"), ("rejected.png", "1")];
    assert_eq!(enqueued, expected.map(|(key, etag)| (key.to_owned(), etag.to_owned())));

    let topic = ["backfill", "--stored", "--not-version", "two", "--rate", "100/s", "--topic"];
    let (_, log) = stack.expect(&[topic.as_slice(), &[stack.input()]].concat(), 2).await;
    assert!(log.contains("was begun to topic"), "{log}");
    let (_, log) = stack.expect(&[topic.as_slice(), &[&stack.kafka.output_topic]].concat(), 2).await;
    assert!(log.contains("loop"), "{log}");
    let (_, log) = stack.expect(&["backfill", "--prefix", "s3://other/a", "--rate", "1/s"], 2).await;
    assert!(log.contains("s3.buckets"), "{log}");
    let (_, log) = stack.expect(&["backfill", "--stored", "--rate", "fast"], 2).await;
    assert!(log.contains("600/min"), "{log}");
}

/// The worker reads the backfill topic only while no upload waits.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_scored_before_the_backfill() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    const BACKFILL: usize = 300;
    const LIVE: usize = 100;
    let stack = Stack::start().await;
    stack.upload(BACKFILL, picture(), |number| format!("stored/{number:03}.png")).await;
    stack.upload(LIVE, picture(), |number| format!("live/{number:03}.png")).await;
    let prefix = format!("s3://{}/stored/", stack.s3.bucket());
    stack.expect(&["backfill", "--prefix", &prefix, "--rate", "10000/s"], 0).await;
    stack.announce(stack.input(), (0..LIVE).map(|number| format!("live/{number:03}.png"))).await;
    let worker = stack.spawn(&["worker"]);
    let outputs = stack.wait_for(&stack.kafka.output_topic, BACKFILL + LIVE).await;
    assert_eq!(worker.terminate(), Some(0));
    // A commit writes partition by partition, so the topic's order is not the order of work.
    let mut scored: Vec<(String, bool)> = outputs
        .iter()
        .map(|read| value_of(&read.record))
        .map(|output| {
            let at = output["scored_at"].as_str().expect("a time").to_owned();
            (at, output["source"]["topic"] == stack.input())
        })
        .collect();
    scored.sort();
    let live = scored.iter().filter(|(_, live)| *live).count();
    assert_eq!((scored.len(), live), (BACKFILL + LIVE, LIVE));
    let last = scored.iter().rposition(|(_, live)| *live).expect("live outputs");
    let before = last + 1 - LIVE;
    assert!(
        before <= stack.kafka.backfill_records,
        "{before} of the backfill were scored before the last upload"
    );
}
