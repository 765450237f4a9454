//! Dead letters go back once each, and not for ever.

use super::stack::{Stack, picture, value_of};
use roc4mllm::record::header_text;
use serde_json::{Value, json};

/// An AWS notification of several objects.
fn notification(stack: &Stack, keys: &[&str]) -> Value {
    let record = |key: &&str| {
        json!({"eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": stack.s3.bucket()}, "object": {"key": key}}})
    };
    json!({"Records": keys.iter().map(record).collect::<Vec<_>>()})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_goes_back_for_its_item_alone_and_only_three_times() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start().await;
    let (letters, outputs) = (stack.kafka.dead_letter_topic.clone(), stack.kafka.output_topic.clone());
    stack.upload(2, picture(), |number| format!("good-{number}.png")).await;
    for key in ["mended.png", "hopeless.png"] {
        stack.s3.put(key, &b"<!doctype html>"[..]).await.expect("an upload");
    }
    stack.s3.put("empty.png", &b""[..]).await.expect("an upload");
    let worker = stack.spawn(&["worker"]);
    let several = notification(&stack, &["good-0.png", "mended.png", "good-1.png"]);
    stack.send(stack.input(), &several, "traceparent").await;
    stack.announce(stack.input(), ["hopeless.png", "empty.png"].map(str::to_owned).into_iter()).await;
    stack.wait_for(&letters, 3).await;
    assert_eq!(stack.wait_for(&outputs, 5).await.len(), 5);

    // Nothing moves in a dry run, or for a filter that fits no letter.
    let (shown, _) = stack.expect(&["redrive", "--dry-run"], 0).await;
    assert!(shown.starts_with("3 dead letters put back (dry run"), "{shown}");
    let (shown, _) = stack.expect(&["redrive", "--class", "poison"], 0).await;
    assert!(shown.starts_with("0 dead") && shown.contains("3  of another class"), "{shown}");
    assert_eq!(stack.dump(stack.input()).await.len(), 3);

    // A filter takes one from the middle; the others stay for the next run.
    let (shown, _) = stack.expect(&["redrive", "--code", "image_truncated"], 0).await;
    assert!(shown.contains("1  rejected image_truncated") && shown.contains("2  of another code"), "{shown}");
    stack.wait_for(&letters, 4).await;
    stack.upload(1, picture(), |_| "mended.png".into()).await;
    stack.upload(1, picture(), |_| "empty.png".into()).await;
    let (shown, _) = stack.expect(&["redrive", "--class", "rejected"], 0).await;
    assert!(
        shown.contains("2  rejected unsupported") && shown.contains("1  rejected image_truncated"),
        "{shown}"
    );
    stack.wait_for(&letters, 5).await;
    let emitted = stack.wait_for(&outputs, 9).await;
    assert_eq!(emitted.len(), 9, "of the notification only the mended item was processed again");
    let values: Vec<Value> = emitted.iter().map(|read| value_of(&read.record)).collect();
    let of = |key: &str| values.iter().filter(|value| value["key"] == key).collect::<Vec<_>>();
    assert_eq!((of("good-0.png").len(), of("good-1.png").len()), (1, 1));
    assert_eq!(of("mended.png").len(), 2);
    assert_eq!(of("mended.png")[1]["status"], "scored");
    assert_eq!(of("mended.png")[1]["source"]["item"], 1);
    assert_eq!(of("empty.png").last().map(|output| &output["status"]), Some(&json!("scored")));
    let back = stack.dump(stack.input()).await;
    let mended = back.iter().rfind(|read| header_text(&read.record.headers, "dlq-item") == Some("1"));
    let mended = mended.expect("the letter that was put back");
    assert_eq!(value_of(&mended.record), several, "with its original bytes");
    assert_eq!(header_text(&mended.record.headers, "traceparent"), Some("kept"));
    assert_eq!(header_text(&mended.record.headers, "dlq-class"), None);

    // The hopeless one comes back a second and a third time, and no fourth.
    for round in [2, 3] {
        let (shown, _) = stack.expect(&["redrive"], 0).await;
        assert!(shown.starts_with("1 dead"), "round {round}: {shown}");
        let all = stack.wait_for(&letters, 4 + round).await;
        let count = header_text(&all[3 + round].record.headers, "dlq-redrive-count").map(str::to_owned);
        assert_eq!(count, Some(round.to_string()));
    }
    let sent = stack.dump(stack.input()).await.len();
    for args in [vec!["redrive"], vec!["redrive", "--dry-run"]] {
        let (shown, log) = stack.expect(&args, 3).await;
        assert!(shown.starts_with("0 dead") && shown.contains("1 refused"), "{shown}");
        assert!(log.contains(&format!("refused {letters}[0]@")) && log.contains("3 times"), "{log}");
    }
    assert_eq!(stack.dump(stack.input()).await.len(), sent, "the refused letter was never sent");
    assert_eq!(worker.terminate(), Some(0));
}

/// Many letters, a limit, and a run that is killed: each letter goes back once.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_redrive_puts_nothing_back_twice() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    const LETTERS: usize = 3_000;
    let stack = Stack::start().await;
    let letters = stack.kafka.dead_letter_topic.clone();
    stack.dead_letters(LETTERS).await;
    let (shown, _) = stack.expect(&["redrive", "--limit", "7"], 0).await;
    assert!(shown.starts_with("7 dead"), "{shown}");
    let running = stack.spawn(&["redrive"]);
    while stack.dump(stack.input()).await.len() < 8 {}
    // It may have ended by itself, which is as good.
    drop(running);
    let (shown, _) = stack.expect(&["redrive"], 0).await;
    assert!(shown.contains("dead letters put back"), "{shown}");
    let mut items: Vec<String> = stack
        .dump(stack.input())
        .await
        .iter()
        .map(|read| header_text(&read.record.headers, "dlq-item").expect("an item").to_owned())
        .collect();
    items.sort();
    items.dedup();
    assert_eq!(items.len(), LETTERS, "none is missing");
    assert_eq!(stack.dump(stack.input()).await.len(), LETTERS, "and none went twice");
    let (shown, _) = stack.expect(&["redrive"], 0).await;
    assert!(shown.starts_with("0 dead"), "{shown}");
    assert_eq!(stack.dump(&letters).await.len(), LETTERS);
}
