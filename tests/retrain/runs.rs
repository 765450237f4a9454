//! What comes of a run: a new champion, a rejection, or nothing.

use super::site::{
    Site,
    labelled_photos::{Kind, Random, picture, png},
    text, true_score,
};
use roc4mllm::{registry::MANIFEST_NAME, store::VersionStatus};
use std::{
    collections::{HashMap, HashSet},
    fs,
};

/// Labels that can be learned: the challenger is published, promoted, and everything is on record.
#[tokio::test(flavor = "multi_thread")]
async fn a_better_challenger_follows_the_champion() {
    let site = Site::with_champion().await;
    let before = site.champion().await;
    let photos = site.upload(0..160).await;
    site.label_truly(&photos).await;
    // Gone, overwritten since, and no photo at all.
    site.delete(&photos[0]).await;
    site.put(1, 0.5, png(&picture(9_001, 0.5, Kind::Gray))).await;
    let page = site.put(9_002, 0.5, b"<!doctype html>".to_vec()).await;
    site.label([(&page, 5.0)]).await;

    let shown = site.retrain(&[], 0).await;
    assert!(shown.contains("accepted: SRCC on the newest labels is higher"), "{shown}");
    let run = site.last_run().await;
    let champion = site.champion().await;
    assert_eq!(run.outcome.as_deref(), Some("accepted"));
    assert_eq!(run.challenger.as_deref(), Some(champion.version.as_str()));
    assert_ne!(champion.version, before.version);
    assert_eq!(champion.parent.as_deref(), Some(before.version.as_str()));
    assert_eq!(champion.dataset, run.dataset);
    let watermark = site.store.label_watermark_of(&champion.version).await.unwrap();
    assert_eq!(watermark, Some(site.store.label_watermark().await.unwrap()));
    let counts = run.counts.unwrap();
    assert_eq!((counts["gone"].as_u64(), counts["unreadable"].as_u64()), (Some(2), Some(1)), "{counts}");
    let count = |name: &str| counts[name].as_u64().unwrap();
    assert_eq!(count("training") + count("newest") + count("gold") + count("old"), 158, "{counts}");

    // Numbers in the table, everything in the run's row, and a page beside the model.
    let metrics = champion.metrics.unwrap();
    assert!(metrics["newest_srcc"].as_f64().unwrap() > 0.6, "{metrics}");
    assert!(
        run.metrics.unwrap()["newest"]["comparison"]["metrics"]["srcc"]["difference"]["interval"][0].as_f64()
            > Some(0.0)
    );
    let report = run.report.unwrap();
    assert_eq!(report, format!("{}/report.html", champion.uri));
    let page = String::from_utf8(site.object(&report).await).unwrap();
    assert!(page.contains("newest labels") && page.contains("gold set") && page.contains("accepted"));
    let manifest = site.object(&format!("{}/{MANIFEST_NAME}", champion.uri)).await;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["dataset"], run.dataset.unwrap());

    // Nothing is new to the new champion.
    let shown = site.retrain(&[], 11).await;
    assert!(shown.contains("nothing to do: 0 labels"), "{shown}");
    let run = site.last_run().await;
    assert_eq!(run.outcome.as_deref(), Some("nothing_to_do"));
    assert_eq!(run.champion.as_deref(), Some(champion.version.as_str()));
    // The folder of the run is gone, its page is kept.
    assert!(!site.work.path().join("run-1").exists() && site.work.path().join("reports/run-1.html").exists());
}

/// Labels that say nothing: trained on and judged, and the champion stays. The same labels are no reason to
/// try again.
#[tokio::test(flavor = "multi_thread")]
async fn shuffled_labels_are_rejected() {
    let site = Site::with_champion().await;
    let before = site.champion().await;
    let photos = site.upload(0..160).await;
    let mut scores: Vec<f64> = photos.iter().map(|photo| true_score(photo.brightness)).collect();
    Random::new(5).shuffle(&mut scores);
    site.label(photos.iter().zip(scores)).await;

    let shown = site.retrain(&[("train.max_steps", "40")], 10).await;
    assert!(shown.contains("rejected: "), "{shown}");
    assert_eq!(site.champion().await.version, before.version);
    let run = site.last_run().await;
    assert_eq!(run.outcome.as_deref(), Some("rejected"));
    assert!(!run.verdict.unwrap()["reasons"].as_array().unwrap().is_empty());
    let rejected = site.store.find_version(&run.challenger.unwrap()).await.unwrap();
    assert_eq!(rejected.status, VersionStatus::Rejected);

    let shown = site.retrain(&[], 11).await;
    assert!(shown.contains("retrain.min_labels"), "{shown}");
    // Without --exit-code neither is a failure: a Kubernetes Job must not try again.
    let output = site.run(&["retrain"], &[]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

/// Too few labels, too few raters, no champion, no photo.
#[tokio::test(flavor = "multi_thread")]
async fn too_little_is_nothing_to_do() {
    let site = Site::start().await;
    let shown = site.retrain(&[], 2).await;
    assert!(shown.contains("models publish"), "{shown}");
    assert!(site.store.retrain_runs(9).await.unwrap().is_empty());

    let site = Site::with_champion().await;
    let photos = site.upload(0..24).await;
    site.label_truly(&photos[..19]).await;
    let shown = site.retrain(&[], 11).await;
    assert!(shown.contains("19 labels"), "{shown}");
    site.label_truly(&photos[19..]).await;
    let shown = site.retrain(&[("retrain.min_raters", "4")], 11).await;
    assert!(shown.contains("3 raters"), "{shown}");
    for photo in &photos {
        site.delete(photo).await;
    }
    let shown = site.retrain(&[], 11).await;
    assert!(shown.contains("none of the 24 new labels"), "{shown}");
    let outcomes = site.store.retrain_runs(9).await.unwrap().into_iter().map(|run| run.outcome.unwrap());
    assert_eq!(outcomes.collect::<Vec<_>>(), ["nothing_to_do"; 3]);
}

/// Sides are for ever: near-copies follow their original, and photos of the gold file are learned from in no
/// form, whatever the settings say later.
#[tokio::test(flavor = "multi_thread")]
async fn near_copies_keep_to_one_side_and_gold_photos_are_never_learned_from() {
    let site = Site::with_champion().await;
    let photos = site.upload(0..60).await;
    site.label_truly(&photos).await;
    // A file names some of them, and a picture of this machine.
    let folder = tempfile::tempdir().unwrap();
    let gold_file = folder.path().join("gold.csv");
    fs::write(folder.path().join("own.png"), png(&picture(500, 0.7, Kind::Blue))).unwrap();
    let mut lines = String::from("image,score\nown.png,7\n");
    for photo in &photos[..20] {
        let (object, score) = (&photo.object, true_score(photo.brightness));
        lines.push_str(&format!("s3://{}/{},{score}\n", object.bucket, object.key));
    }
    fs::write(&gold_file, lines).unwrap();
    let gold = gold_file.display().to_string();
    let quick = [("train.max_steps", "3"), ("gate.min_photos", "5")];
    let with_gold = [&quick[..], &[("retrain.gold_labels", gold.as_str())]].concat();
    let output = site.run(&["retrain"], &with_gold).await;
    assert!(output.status.success(), "{}", text(&output));
    let counts = site.last_run().await.counts.unwrap();
    assert_eq!((counts["gold"].as_u64(), counts["spoilt_gold"].as_u64()), (Some(21), Some(0)), "{counts}");
    let first: HashMap<_, _> = site
        .sides()
        .await
        .into_iter()
        .map(|(object, side, gold, group)| (object, (side, gold, group)))
        .collect();
    for photo in &photos {
        let (side, gold, _) = &first[&photo.object];
        assert!(!gold || side == "holdout");
        assert!(photo.number >= 20 || (*gold && side == "holdout"), "{photo:?}");
    }

    // Copies of every photo: smaller, and as JPEG. No file any more, and another share.
    let mut copies = Vec::new();
    for photo in &photos {
        let original = picture(photo.number, photo.brightness, Kind::Gray);
        let smaller = image::imageops::resize(&original, 40, 40, image::imageops::FilterType::Triangle);
        copies.push(site.put(1_000 + photo.number, photo.brightness, png(&smaller)).await);
    }
    let copy_of_own = site.put(1_500, 0.7, png(&picture(500, 0.7, Kind::Blue))).await;
    site.label_truly(&copies).await;
    site.label_truly(std::slice::from_ref(&copy_of_own)).await;
    let other = [("split.holdout", "0.05"), ("split.salt", "other"), ("retrain.gold_share", "0")];
    let output = site.run(&["retrain"], &[&quick[..], &other[..]].concat()).await;
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(site.store.retrain_runs(9).await.unwrap().len(), 2);
    let second: HashMap<_, _> = site
        .sides()
        .await
        .into_iter()
        .map(|(object, side, gold, group)| (object, (side, gold, group)))
        .collect();
    for (photo, copy) in photos.iter().zip(&copies) {
        assert_eq!(first[&photo.object], second[&photo.object], "no photo changes sides");
        assert_eq!(first[&photo.object], second[&copy.object], "a copy of {} is elsewhere", photo.number);
    }
    assert_eq!(second[&copy_of_own.object].0, "holdout");
    let groups: HashSet<_> = second.values().map(|(_, _, group)| group).collect();
    assert_eq!(groups.len(), 61, "a group for each picture");
}
