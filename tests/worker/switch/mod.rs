//! Models that take each other's place in the real worker, with real networks, a real Kafka, an S3 server
//! and Postgres.

mod library;

use crate::{
    support::{
        self, Uploaded,
        envelopes::{Envelope, Record},
        stack::{Stack, Worker},
    },
    versions,
};
use library::{Library, Version};
use roc4mllm::{
    object::{ObjectRef, ScoreId},
    score::{Answer, DecodeKind, ModelVersion, ScoreValue},
    serving::{Agreement, Purpose, Share},
    store::ScoreRow,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const WITHIN: Duration = Duration::from_secs(180);

/// [`versions::check`] with these versions.
async fn check(
    stack: &Stack,
    versions: &[&Version],
    items: &HashMap<(i32, i64, u32), &Uploaded>,
) -> BTreeMap<String, usize> {
    let scores = versions.iter().map(|version| (version.served.as_str(), &version.scores)).collect();
    versions::check(stack, &scores, items).await
}

/// Announces uploads, one every few milliseconds and round and round, until it is told to stop.
async fn announce<'a>(
    stack: &Stack,
    uploads: &'a [Uploaded],
    stop: &AtomicBool,
) -> HashMap<(i32, i64, u32), &'a Uploaded> {
    let mut items = HashMap::new();
    for uploaded in uploads.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (partition, offset) = stack.produce(&Envelope::Aws.record(&[&uploaded.upload])).await;
        items.insert((partition, offset, 0), uploaded);
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
    items
}

/// Waits until `/metrics` says that `version` has the role.
async fn wait_for_role(worker: &Worker, version: &Version, role: &str) {
    let sample = format!("version=\"{}\",role=\"{role}\"}} 1", version.served);
    let shown = async {
        while !worker.get("/metrics").await.contains(&sample) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(WITHIN, shown).await.is_err() {
        panic!("{role} is not {}: {}", version.served, worker.get("/metrics").await);
    }
}

/// Waits until `version` has scored something.
async fn wait_for_row(stack: &Stack, version: &Version) {
    let scored = async {
        while !stack.versions_in_rows().await.contains(&version.served) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(WITHIN, scored)
        .await
        .unwrap_or_else(|_| panic!("{} scored nothing", version.served));
}

async fn metric(worker: &Worker, name: &str) -> f64 {
    let metrics = worker.get("/metrics").await;
    support::metric(&metrics, name).unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

/// Records flow while the champion changes three times and is rolled back: nothing is lost, doubled or
/// scored by another version than it says, and the worker is ready throughout.
#[tokio::test(flavor = "multi_thread")]
async fn champions_change_while_records_flow() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(3).await;
    let library = Library::open(&stack).await;
    let first = library.publish(1.0).await;
    let second = library.publish(0.6).await;
    let third = library.publish(0.3).await;
    library.promote(&first).await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let uploads = stack.upload(&expected, 1_000).await;
    // The same contents come to each version, and no score of one may be taken for another's.
    let mut settings = library.settings();
    settings.push(("reuse.enabled", "true"));
    let worker = Arc::new(stack.worker(&settings));
    worker.wait_until_ready(WITHIN).await;

    let stop = Arc::<AtomicBool>::default();
    let always_ready = tokio::spawn({
        let (worker, stop) = (Arc::clone(&worker), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = worker.get("/readyz").await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    let changes = async {
        wait_for_row(&stack, &first).await;
        for version in [&second, &third, &second] {
            library.promote(version).await;
            wait_for_role(&worker, version, "champion").await;
            wait_for_row(&stack, version).await;
        }
        library.roll_back().await;
        wait_for_role(&worker, &third, "champion").await;
        stop.store(true, Ordering::Relaxed);
    };
    let (items, ()) = tokio::join!(announce(&stack, &uploads, &stop), changes);
    always_ready.await.expect("ready throughout");
    stack.wait_for_outputs(items.len(), WITHIN).await;
    assert_eq!(metric(&worker, "roc4mllm_model_switches_total").await, 4.0);
    assert_eq!(metric(&worker, "roc4mllm_model_switch_failures_total").await, 0.0);
    let worker = Arc::into_inner(worker).expect("the only handle");
    assert_eq!(worker.terminate(), Some(0));
    let made = check(&stack, &[&first, &second, &third], &items).await;
    assert_eq!(made.len(), 3, "each version scored some: {made:?}");
}

/// A version whose files were damaged, and one room for one model alone.
#[tokio::test(flavor = "multi_thread")]
async fn one_model_at_a_time_and_a_damaged_one_never() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(3).await;
    let library = Library::open(&stack).await;
    let first = library.publish(1.0).await;
    let second = library.publish(0.6).await;
    let damaged = library.publish(0.3).await;
    library.damage(&damaged).await;
    library.promote(&first).await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let uploads = stack.upload(&expected, 500).await;
    let mut settings = library.settings();
    settings.extend([("serving.switch", "drain"), ("serving.retry_initial_ms", "100")]);
    let worker = stack.worker(&settings);
    worker.wait_until_ready(WITHIN).await;

    let stop = AtomicBool::new(false);
    let changes = async {
        wait_for_row(&stack, &first).await;
        library.promote(&damaged).await;
        while metric(&worker, "roc4mllm_model_switch_failures_total").await < 2.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        wait_for_role(&worker, &first, "champion").await;
        library.promote(&second).await;
        wait_for_role(&worker, &second, "champion").await;
        wait_for_row(&stack, &second).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (items, ()) = tokio::join!(announce(&stack, &uploads, &stop), changes);
    stack.wait_for_outputs(items.len(), WITHIN).await;
    assert_eq!(metric(&worker, "roc4mllm_model_switches_total").await, 1.0);
    assert_eq!(worker.terminate(), Some(0));
    let made = check(&stack, &[&first, &second], &items).await;
    assert_eq!(made.len(), 2, "each version scored some: {made:?}");
}

/// An item that waited for its object while the champion changed: its id and its look-up are those of the
/// model that serves when it is scored.
#[tokio::test(flavor = "multi_thread")]
async fn an_item_under_way_is_looked_up_again_for_the_next_champion() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let library = Library::open(&stack).await;
    let first = library.publish(1.0).await;
    let second = library.publish(0.6).await;
    library.promote(&first).await;
    let worker = stack.worker(&library.settings());
    worker.wait_until_ready(WITHIN).await;

    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let scored: Vec<_> = expected.into_iter().filter(|image| image.score.is_some()).take(2).collect();
    let uploads = stack.upload(&scored, 2).await;
    // The same content under keys where nothing is yet.
    let late = |number: usize| {
        let mut upload = uploads[number].upload.clone();
        upload.key = format!("late/{number}.jpg");
        upload
    };
    let (stored, fresh) = (late(0), late(1));
    let object = ObjectRef {
        etag: Some(stored.etag.clone()),
        size: Some(stored.size as u64),
        ..ObjectRef::new(&stored.bucket, &stored.key)
    };
    let by_second = ModelVersion {
        model: "mplug_owl2".into(),
        version: second.served.clone(),
        preprocess_revision: roc4mllm::image::PREPROCESS_REVISION,
    };
    let answer = Answer {
        scores: vec![ScoreValue { score: 9.25, distribution: vec![1.0], std: 0.0 }],
        text: "stored before".into(),
        tokens: Vec::new(),
        decode: DecodeKind::Generated,
        forwards: 1,
    };
    let id = ScoreId::derive(&object, &by_second);
    library.store().upsert(&[ScoreRow::scored(id, object, &by_second, &answer, None)]).await.expect("a row");
    for upload in [&stored, &fresh] {
        stack.produce(&Envelope::Aws.record(&[upload])).await;
    }
    // Both are asked for, and are not there.
    let waiting = async {
        loop {
            let metrics = worker.get("/metrics").await;
            let of_fetching = |name: &str| support::metric(&metrics, &format!("{name}{{stage=\"fetch\"}}"));
            let (fetching, retries) =
                (of_fetching("roc4mllm_stage_in_flight"), of_fetching("roc4mllm_retries_total"));
            if fetching == Some(2.0) && retries.is_some_and(|retries| retries >= 2.0) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WITHIN, waiting).await.expect("both wait for their objects");
    library.promote(&second).await;
    wait_for_role(&worker, &second, "champion").await;
    for (upload, image) in [&stored, &fresh].into_iter().zip(&scored) {
        stack.put(&upload.key, std::fs::read(&image.path).expect("a picture")).await;
    }
    stack.wait_for_outputs(2, WITHIN).await;
    assert_eq!(worker.terminate(), Some(0));
    let outputs = stack.outputs().await;
    let of = |key: &str| outputs.iter().find(|output| output["key"] == key).expect("an output");
    let reused = of(&stored.key);
    assert_eq!((reused["score"].as_f64(), reused["reused"].as_bool()), (Some(9.25), Some(true)), "{reused}");
    assert_eq!(
        (reused["id"].as_str(), reused["model_version"].as_str()),
        (Some(id.to_string().as_str()), Some(second.served.as_str()))
    );
    let fresh = of(&fresh.key);
    let by_second = second.scores[&scored[1].path].expect("a score");
    assert!((fresh["score"].as_f64().expect("a score") - by_second).abs() <= 1e-4, "{fresh}");
    assert_eq!(fresh["model_version"], second.served, "{fresh}");
    assert_eq!(stack.rows().await.len(), 2, "no row of the version that scored neither");
}

/// A canary has the same keys before and after a restart; a shadow leaves no trace but its agreement.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_scores_its_keys_and_a_shadow_publishes_nothing() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    const SHARE: f64 = 0.3;
    let stack = Stack::start(3).await;
    let library = Library::open(&stack).await;
    let champion = library.publish(1.0).await;
    let canary = library.publish(0.6).await;
    let shadow = library.publish(0.3).await;
    library.promote(&champion).await;
    library.store().set_canary(&canary.registered, SHARE).await.expect("a canary");
    library.store().set_shadow(&shadow.registered, 1.0).await.expect("a shadow");
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let scored: Vec<_> = expected.into_iter().filter(|image| image.score.is_some()).collect();
    let uploads = stack.upload(&scored, 120).await;

    let mut items = HashMap::new();
    for (round, half) in uploads.chunks(60).chain([&uploads[..60]]).enumerate() {
        let worker = stack.worker(&library.settings());
        worker.wait_until_ready(WITHIN).await;
        wait_for_role(&worker, &canary, "canary").await;
        wait_for_role(&worker, &shadow, "shadow").await;
        for uploaded in half {
            let (partition, offset) = stack.produce(&Envelope::Aws.record(&[&uploaded.upload])).await;
            items.insert((partition, offset, 0), uploaded);
            // A worker that is busy would drop what the shadow is to see.
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        stack.wait_for_outputs(items.len(), WITHIN).await;
        if round < 2 {
            let counted = async {
                loop {
                    let done = metric(&worker, "roc4mllm_shadow_images_total").await
                        + metric(&worker, "roc4mllm_shadow_dropped_total").await;
                    if done >= 60.0 {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // Recorded every five seconds.
                tokio::time::sleep(Duration::from_secs(6)).await;
            };
            tokio::time::timeout(WITHIN, counted).await.expect("the shadow sees every image");
        }
        assert_eq!(worker.terminate(), Some(0));
    }

    let share = Share::new(SHARE).expect("a share");
    for output in stack.outputs().await {
        let key = output["key"].as_str().expect("a key");
        let by = if share.holds(Purpose::Canary, stack.bucket(), key) { &canary } else { &champion };
        assert_eq!(output["model_version"], by.served, "{output}");
    }
    let made = check(&stack, &[&champion, &canary], &items).await;
    assert_eq!(made.len(), 2, "{made:?}");
    let versions: HashSet<String> = stack.versions_in_rows().await;
    assert_eq!(versions, HashSet::from([champion.served.clone(), canary.served.clone()]));
    assert_eq!(stack.rows().await.len(), 120, "announced again, an upload has the row that it had");

    let records = library.store().shadow_records(&shadow.served).await.expect("records");
    let mut compared = 0;
    for record in &records {
        let by = if record.champion == champion.served { &champion } else { &canary };
        assert_eq!(record.champion, by.served);
        let agreement = Agreement::of(record).expect("an image");
        compared += agreement.images;
        let (mut images, mut difference, mut size) = (0.0, 0.0, 0.0);
        for uploaded in &uploads {
            let of_canary = share.holds(Purpose::Canary, stack.bucket(), &uploaded.upload.key);
            if of_canary == (by.served == canary.served) {
                let path = &uploaded.expected.path;
                let apart = shadow.scores[path].expect("a score") - by.scores[path].expect("a score");
                (images, difference, size) = (images + 1.0, difference + apart, size + apart.abs());
            }
        }
        if agreement.images as f64 == images {
            assert!((agreement.mean_difference - difference / images).abs() < 1e-4, "{agreement:?}");
            assert!((agreement.mean_absolute_difference - size / images).abs() < 1e-4, "{agreement:?}");
            assert!(agreement.spearman.is_some() && agreement.pearson.is_some(), "{agreement:?}");
        }
    }
    assert!((60..=120).contains(&compared), "{compared} of 120 images compared");
}

/// Images that were in flight when a worker died are scored in a child process, which loads what the
/// registry says.
#[tokio::test(flavor = "multi_thread")]
async fn suspected_images_are_scored_by_the_registered_version_too() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let library = Library::open(&stack).await;
    let (first, second) = (library.publish(1.0).await, library.publish(0.6).await);
    library.promote(&first).await;
    let expected = support::score_images(&stack.checkpoint(), &stack.images());
    let scored: Vec<_> = expected.into_iter().filter(|image| image.score.is_some()).take(4).collect();
    let uploads = stack.upload(&scored, 4).await;
    let mut items = HashMap::new();
    for uploaded in &uploads {
        let (partition, offset) = stack.produce(&Envelope::Aws.record(&[&uploaded.upload])).await;
        items.insert((partition, offset, 0), uploaded);
    }
    for _ in 0..3 {
        let deadly = std::path::Path::new("fetched=return");
        let worker = stack.worker_in(&[("FAILPOINTS", deadly)], &library.settings());
        assert_eq!(worker.wait_within(WITHIN).0, None, "killed");
    }
    library.promote(&second).await;
    let worker = stack.worker(&library.settings());
    stack.wait_for_outputs(items.len(), WITHIN).await;
    assert_eq!(metric(&worker, "roc4mllm_quarantine_images_total").await, 4.0);
    assert_eq!(worker.terminate(), Some(0));
    let made = check(&stack, &[&second], &items).await;
    assert_eq!(made, BTreeMap::from([(second.served.clone(), 4)]));
}

/// Without a champion there is nothing to serve, and the message says what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_a_champion_ends_the_worker() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let stack = Stack::start(1).await;
    let library = Library::open(&stack).await;
    stack.produce(&Record::plain(Value::Null.to_string())).await;
    let (code, log) = stack.worker(&library.settings()).wait_within(Duration::from_secs(60));
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("roc4mllm models publish"), "{log}");
}
