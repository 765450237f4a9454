//! `models publish --gate`.

use super::site::{Site, text, tiny};
use roc4mllm::store::VersionStatus;
use std::fs;

/// A model that learned elsewhere is judged like one of our own; the very champion is rejected.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_from_elsewhere_is_judged_before_it_may_serve() {
    let site = Site::with_champion().await;
    let champion = site.champion().await;
    let photos = site.upload(0..160).await;
    site.label_truly(&photos).await;

    // Learned elsewhere, from the same photos' exported labels.
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.json");
    let exported = site.run(&["labels", "export", "--output", data.to_str().unwrap()], &[]).await;
    assert!(exported.status.success(), "{}", text(&exported));
    let bucket = folder.path().join(site.s3.bucket());
    for photo in &photos {
        let path = bucket.join(&photo.object.key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let address = format!("s3://{}/{}", site.s3.bucket(), photo.object.key);
        fs::write(path, site.object(&address).await).unwrap();
    }
    let trained = folder.path().join("trained");
    let mut train = std::process::Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
    train.arg("train").arg("--checkpoint").arg(tiny()).arg("--data").arg(&data);
    train.arg("--images").arg(folder.path()).arg("--output").arg(&trained);
    train.args(["--max-steps", "80", "--batch-size", "16", "--learning-rate", "3e-3", "--threads", "1"]);
    let output = tokio::task::spawn_blocking(move || train.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", text(&output));

    let publish = |folder: &std::path::Path, more: &[&str]| {
        let arguments = [&["models", "publish", folder.to_str().unwrap(), "--gate"][..], more].concat();
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let site = &site;
        async move {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            site.run(&arguments, &[]).await
        }
    };
    let output = publish(&tiny(), &["--promote"]).await;
    assert_eq!(output.status.code(), Some(10), "{}", text(&output));
    assert!(text(&output).contains("the challenger is the champion"), "{}", text(&output));
    assert_eq!(site.champion().await, champion, "nothing has changed for the champion");

    let output = publish(&trained, &["--trained-on-labels"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let shown = text(&output);
    let version = shown.split(' ').next().unwrap();
    let candidate = site.store.find_version(version).await.unwrap();
    assert_eq!(candidate.status, VersionStatus::Candidate, "accepted, and not promoted unasked");
    assert!(candidate.metrics.unwrap()["newest_srcc_gain"].as_f64() > Some(0.0));
    let watermark = site.store.label_watermark_of(&candidate.version).await.unwrap();
    assert_eq!(watermark, Some(site.store.label_watermark().await.unwrap()));
    let run = site.last_run().await;
    assert_eq!((run.kind.as_str(), run.outcome.as_deref()), ("trial", Some("accepted")));

    let output = publish(&trained, &["--promote"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(site.champion().await.version, candidate.version);
}
