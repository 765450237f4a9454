//! Rows and outputs that were deleted behind the worker's back come back, once each.

use super::stack::{Stack, picture, value_of};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

const ITEMS: usize = 220;
const LOST: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn deleted_rows_and_outputs_are_restored_once_each() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start().await;
    let topic = stack.kafka.output_topic.clone();
    stack.upload(ITEMS - 1, picture(), |number| format!("{number:03}.png")).await;
    stack.s3.put("page.png", &b"<!doctype html>"[..]).await.expect("an upload");
    let worker = stack.spawn(&["worker"]);
    let keys = (0..ITEMS - 1).map(|number| format!("{number:03}.png")).chain(["page.png".into()]);
    stack.announce(stack.input(), keys).await;
    let emitted = stack.wait_for(&topic, ITEMS).await;
    assert_eq!(worker.terminate(), Some(0));
    let before = by_id(stack.rows().await);
    assert_eq!((before.len(), emitted.len()), (ITEMS, ITEMS));
    for args in [["republish"], ["backfill-pg"]] {
        let (shown, _) = stack.expect(&args, 0).await;
        assert!(shown.starts_with("0 "), "nothing is lost yet: {shown}");
    }

    // The first outputs go, and the rows of the last ones.
    stack.delete_records(&topic, emitted[LOST].offset).await;
    let lost: Vec<String> = emitted[ITEMS - LOST..]
        .iter()
        .map(|read| value_of(&read.record)["id"].as_str().expect("an id").to_owned())
        .collect();
    let deleted = sqlx::query("DELETE FROM scores WHERE id::text = ANY($1)").bind(&lost);
    let deleted = deleted.execute(&stack.pool).await.expect("deleted").rows_affected();
    assert_eq!(deleted, LOST as u64);
    assert_eq!(stack.outputs().await.len(), ITEMS - LOST);

    let (shown, _) = stack.expect(&["backfill-pg", "--dry-run"], 0).await;
    assert!(shown.starts_with("100 rows written (dry run"), "{shown}");
    assert_eq!(stack.rows().await.len(), ITEMS - LOST);
    let (shown, _) = stack.expect(&["backfill-pg"], 0).await;
    assert!(shown.starts_with("100 rows written"), "{shown}");
    assert_eq!(by_id(stack.rows().await), before, "the very rows are back");

    let (shown, _) = stack.expect(&["republish", "--dry-run"], 0).await;
    assert!(shown.starts_with("100 outputs written (dry run"), "{shown}");
    assert_eq!(stack.outputs().await.len(), ITEMS - LOST);
    let (shown, _) = stack.expect(&["republish"], 0).await;
    assert!(shown.starts_with("100 outputs written"), "{shown}");
    for args in [["republish"], ["backfill-pg"]] {
        let (shown, _) = stack.expect(&args, 0).await;
        assert!(shown.starts_with("0 "), "a second run changes nothing: {shown}");
    }

    let outputs = stack.outputs().await;
    assert_eq!(outputs.len(), ITEMS, "one output each");
    let originals: HashMap<String, Value> = emitted
        .iter()
        .map(|read| value_of(&read.record))
        .map(|output| (output["id"].to_string(), output))
        .collect();
    for output in &outputs {
        let original = &originals[&output["id"].to_string()];
        for field in original.as_object().expect("an object").keys() {
            // What a row does not hold is absent, and it says that it was emitted before.
            if !["size", "width", "height", "reused", "attempts"].contains(&field.as_str()) {
                assert_eq!(output[field], original[field], "{field}");
            }
        }
    }
    // The pictures are one content, so that most outputs said so from the start.
    let kept = emitted[LOST..].iter().filter(|read| value_of(&read.record)["reused"] == true).count();
    assert_eq!(outputs.iter().filter(|output| output["reused"] == true).count(), kept + LOST);
}

/// What the worker has not committed is its own to emit, and what no release wrote is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_ahead_of_the_worker_is_left_to_it() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start().await;
    stack.upload(3, picture(), |number| format!("{number}.png")).await;
    let worker = stack.spawn(&["worker"]);
    stack.announce(stack.input(), ["0.png".to_owned()].into_iter()).await;
    let emitted = stack.wait_for(&stack.kafka.output_topic, 1).await;
    assert_eq!(worker.terminate(), Some(0));
    // A row as a worker leaves it that dies between Postgres and Kafka.
    let source = &value_of(&emitted[0].record)["source"];
    let ahead = "INSERT INTO scores (id, bucket, object_key, model, model_version, status, score, scored_at, \
                 source_topic, source_partition, source_offset, source_item) \
                 SELECT gen_random_uuid(), bucket, object_key, model, model_version, status, score, now(), \
                 source_topic, source_partition, source_offset + $1, 0 FROM scores WHERE source_offset = $2";
    sqlx::query(ahead)
        .bind(1_000_i64)
        .bind(source["offset"].as_i64())
        .execute(&stack.pool)
        .await
        .expect("a row");
    let (shown, _) = stack.expect(&["republish"], 0).await;
    assert!(shown.starts_with("0 outputs") && shown.contains("the worker will emit them"), "{shown}");

    stack.announce(&stack.kafka.output_topic, ["not-an-output".to_owned()].into_iter()).await;
    let (shown, log) = stack.expect(&["backfill-pg"], 3).await;
    assert!(shown.contains("1 refused"), "{shown}");
    assert!(log.contains(&format!("refused {}[0]@", stack.kafka.output_topic)), "{log}");
}

fn by_id(rows: Vec<(String, String, Option<f64>)>) -> BTreeMap<String, (String, Option<f64>)> {
    rows.into_iter().map(|(id, status, score)| (id, (status, score))).collect()
}
