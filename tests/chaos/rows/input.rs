//! Row 28: one upload announced many times, and records that are wrong.

use crate::envelopes::{Envelope, Record};
use crate::load::{Announced, announced, picture};
use crate::row::{Broker, Row};
use crate::run::{Run, START};
use anyhow::Result;
use serde_json::{Value, json};

const ITEMS: usize = 500;
const TIMES: i32 = 5;

pub fn rows() -> Vec<Row> {
    vec![Row::new(28, "duplicates and malformed records", Broker::Apache, duplicates).short(&[1])]
}

fn bad(bucket: &str, key: &str) -> Announced {
    Announced { bucket: bucket.to_owned(), key: key.to_owned(), status: "rejected" }
}

/// An S3 event's item with its key as it stands on the wire.
fn item(bucket: &str, wire_key: &str) -> Value {
    json!({"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": bucket}, "object": {"key": wire_key}}})
}

fn duplicates(run: &mut Run) -> Result<()> {
    for name in ["a", "b"] {
        let setup = run.worker(name);
        let worker = run.spawn(setup)?;
        worker.wait_ready(START)?;
    }
    let loader = run.loader.clone();
    let flow = loader.flow(ITEMS, run.seed, 250.0);
    run.tail.wait_items(run.at_item, START)?;

    // One event five times, in partitions of both workers.
    let twin = loader.put("twin.png", &picture(&mut run.random)?)?;
    for partition in 0..TIMES {
        loader.announce(&twin, Envelope::Aws, Some(partition * 2))?;
    }
    run.fired(TIMES as usize - 1);

    // A version and its removal, in no order.
    loader.put("removed.png", &picture(&mut run.random)?)?;
    for (event, partition, status) in
        [("ObjectRemoved:Delete", 0, "deleted"), ("ObjectCreated:Put", 1, "scored")]
    {
        let object = json!({"key": "removed.png", "versionId": "v1"});
        let s3 = json!({"bucket": {"name": loader.bucket}, "object": object});
        let event = json!({"Records": [{"eventName": event, "s3": s3}]});
        let item = Announced { bucket: loader.bucket.clone(), key: "removed.png".into(), status };
        loader.send(&Record::plain(event.to_string()), Some(partition), &[item])?;
    }

    // Keys that envelopes and stores disagree about.
    for key in ["a+b c.png", "%2F%2B.png", "a//b.png", "ü/ø?#&.png", "./../up.png"] {
        let upload = loader.put(key, &picture(&mut run.random)?)?;
        for envelope in [Envelope::Aws, Envelope::Minio, Envelope::Plain] {
            loader.announce(&upload, envelope, None)?;
        }
    }

    // One bad item among three, and records that hold nothing readable.
    let good = [
        loader.put("left.png", &picture(&mut run.random)?)?,
        loader.put("right.png", &picture(&mut run.random)?)?,
    ];
    let three = json!({"Records": [
        item(&loader.bucket, "left.png"), item(&loader.bucket, "nul%00.png"), item(&loader.bucket, "right.png"),
    ]});
    let items =
        [announced(&good[0], "scored"), bad(&loader.bucket, "nul\0.png"), announced(&good[1], "scored")];
    loader.send(&Record::plain(three.to_string()), None, &items)?;
    let plain = |bucket: &str, key: &str| json!({"bucket": bucket, "key": key}).to_string();
    let wrong = [
        ("{not json".to_owned(), bad("", "")),
        (r#"{"hello":"world"}"#.to_owned(), bad("", "")),
        (plain("another", "a.png"), bad("another", "a.png")),
        (plain(&loader.bucket, "nul\0.png"), bad(&loader.bucket, "nul\0.png")),
    ];
    for (text, item) in &wrong {
        loader.send(&Record::plain(text.clone()), None, std::slice::from_ref(item))?;
    }
    loader.send(&Record::tombstone(), None, &[])?;
    loader.send(&Record::plain(r#"{"Service":"Amazon S3","Event":"s3:TestEvent"}"#.to_owned()), None, &[])?;
    run.fired(wrong.len() + 1);
    flow.join()?;
    run.heal();

    let evidence = run.settle()?;
    let outputs: Vec<_> =
        run.tail.seen().into_iter().filter(|seen| seen.key.as_deref() == Some("twin.png")).collect();
    run.equal("outputs of the upload announced five times", outputs.len(), TIMES);
    let rows = std::fs::read_to_string(run.folder.join("scores.jsonl"))?;
    let twins = rows.lines().filter(|row| row.contains(r#""object_key":"twin.png""#)).count();
    run.equal("rows of the upload announced five times", twins, 1);
    let removed =
        |row: &&str| row.contains(r#""object_key":"removed.png""#) && !row.contains(r#""deleted_at":null"#);
    run.equal("rows of a removed version that say so", rows.lines().filter(removed).count(), 2);
    let rejected =
        evidence.inputs.iter().flat_map(|input| &input.items).filter(|item| item.status == "rejected");
    let rejected = rejected.count();
    run.equal("dead letters, one for each bad item", evidence.dead_letters.len(), rejected);
    Ok(())
}
