//! Identical content under many names: scored once, and told of each.

use crate::support::{
    envelopes::{Envelope, Record, Upload},
    metric,
    stack::{Stack, Worker},
};
use roc4mllm::inference::stand_in::{Script, sighting};
use serde_json::Value;
use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::Duration,
};
use tempfile::TempDir;

const WITHIN: Duration = Duration::from_secs(120);

/// A stack, and a scorer whose score is a hash of an image's pixels.
struct Around {
    stack: Stack,
    script: PathBuf,
    _folder: TempDir,
}

impl Around {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let script = folder.path().join("script.json");
        std::fs::write(&script, serde_json::to_vec(&Script::default()).expect("JSON")).expect("written");
        Self { stack: Stack::start(3).await, script, _folder: folder }
    }

    fn worker(&self, overrides: &[(&str, &str)]) -> Worker {
        let settings = [&[("reuse.enabled", "true")], overrides].concat();
        self.stack.scripted_worker(&self.script, &settings)
    }

    /// Uploads `content` as `count` objects below `prefix`.
    async fn upload(&self, prefix: &str, count: usize, content: &[u8]) -> Vec<Record> {
        let mut records = Vec::new();
        for number in 0..count {
            let key = format!("{prefix}/{number}");
            let etag = self.stack.put(&key, content.to_vec()).await;
            let upload = Upload { bucket: self.stack.bucket().into(), key, etag, size: content.len() };
            records.push(Envelope::Aws.record(&[&upload]));
        }
        records
    }

    async fn announce(&self, records: &[Record]) {
        for record in records {
            self.stack.produce(record).await;
        }
    }

    /// Committed outputs of the objects below `prefix`; each score is that of its row.
    async fn outputs(&self, prefix: &str) -> Vec<Value> {
        let rows = self.stack.rows().await;
        let below = format!("{prefix}/");
        let outputs = self.stack.outputs().await.into_iter();
        let outputs: Vec<Value> = outputs
            .filter(|output| output["key"].as_str().is_some_and(|key| key.starts_with(&below)))
            .collect();
        for output in &outputs {
            let row = &rows[output["id"].as_str().expect("an id")];
            assert_eq!(
                (row.status.as_str().into(), row.score),
                (output["status"].clone(), output["score"].as_f64())
            );
        }
        outputs
    }
}

fn picture(colour: u8) -> Vec<u8> {
    let image = image::RgbImage::from_pixel(24, 24, image::Rgb([colour, 80, 99]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).expect("a PNG");
    bytes.into_inner()
}

fn score_of(content: &[u8]) -> f64 {
    sighting(content, Script::default().image_size).expect("a picture").answer.score()
}

/// Images that the model was asked for, and items answered from memory and from Postgres.
async fn counts(worker: &Worker) -> (f64, f64, f64) {
    let metrics = worker.get("/metrics").await;
    let reused = |source: &str| metric(&metrics, &format!("roc4mllm_reused_total{{source=\"{source}\"}}"));
    (
        metric(&metrics, "roc4mllm_model_images_total").expect("a count"),
        reused("memory").unwrap_or_default(),
        reused("postgres").unwrap_or_default(),
    )
}

/// Nothing but the number of times that the model is asked depends on what else has the same content.
#[tokio::test(flavor = "multi_thread")]
async fn identical_content_is_scored_once_and_every_object_has_its_row_and_output() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    const COPIES: usize = 12;
    let around = Around::start().await;
    let contents: HashMap<&str, Vec<u8>> =
        [("red", 200), ("green", 100), ("blue", 10)].map(|(name, colour)| (name, picture(colour))).into();
    let mut records = Vec::new();
    for (name, content) in &contents {
        records.extend(around.upload(name, COPIES, content).await);
    }
    records.extend(around.upload("broken", COPIES, b"no picture").await);
    // All at once, so that some are scored while others with the same content come.
    around.announce(&records).await;
    let worker = around.worker(&[]);
    around.stack.wait_for_outputs(records.len(), WITHIN).await;
    assert_eq!(counts(&worker).await, (3.0, 3.0 * (COPIES - 1) as f64, 0.0));
    assert_eq!(worker.terminate(), Some(0));

    let mut ids = HashSet::new();
    for (name, content) in &contents {
        let outputs = around.outputs(name).await;
        assert_eq!(outputs.len(), COPIES);
        let fresh = outputs.iter().filter(|output| output["reused"] == false).count();
        assert_eq!(fresh, 1, "one was scored, and the others say that they were not");
        for output in &outputs {
            assert_eq!(output["score"].as_f64(), Some(score_of(content)), "{output}");
            assert_eq!((output["width"].as_u64(), output["height"].as_u64()), (Some(24), Some(24)));
            ids.insert(output["id"].as_str().expect("an id").to_owned());
        }
    }
    assert_eq!(ids.len(), 3 * COPIES, "a row for each object");
    let broken = around.outputs("broken").await;
    assert_eq!(broken.len(), COPIES);
    assert!(broken.iter().all(|output| output["status"] == "rejected" && output["reused"] == false));
    assert_eq!(around.stack.dead_letters().await.len(), COPIES, "a dead letter for each");

    // A process that remembers nothing finds the content in Postgres, once for all who wait for it.
    let records = around.upload("again", COPIES, &contents["red"]).await;
    around.announce(&records).await;
    let worker = around.worker(&[]);
    around.stack.wait_for_outputs(5 * COPIES, WITHIN).await;
    let (asked, memory, postgres) = counts(&worker).await;
    assert_eq!((asked, memory + postgres), (0.0, COPIES as f64));
    assert!(postgres >= 1.0, "{postgres} from Postgres");
    assert_eq!(worker.terminate(), Some(0));
    let again = around.outputs("again").await;
    assert_eq!(again.len(), COPIES);
    for output in &again {
        assert_eq!(
            (output["score"].as_f64(), &output["reused"]),
            (Some(score_of(&contents["red"])), &true.into())
        );
    }

    // Pixels read in another way may be scored otherwise.
    let records = around.upload("fast", COPIES, &contents["red"]).await;
    around.announce(&records).await;
    let worker = around.worker(&[("image.preprocess", "fast")]);
    around.stack.wait_for_outputs(6 * COPIES, WITHIN).await;
    assert_eq!(counts(&worker).await, (1.0, (COPIES - 1) as f64, 0.0));
    assert_eq!(worker.terminate(), Some(0));
    let versions: HashSet<String> = around.stack.versions_in_rows().await;
    assert_eq!(versions, HashSet::from(["stand-in".to_owned(), "stand-in+fast".to_owned()]));

    // Switched off, every image is the model's.
    let records = around.upload("off", COPIES, &contents["red"]).await;
    around.announce(&records).await;
    let worker = around.worker(&[("reuse.enabled", "false")]);
    around.stack.wait_for_outputs(7 * COPIES, WITHIN).await;
    assert_eq!(counts(&worker).await, (COPIES as f64, 0.0, 0.0));
    assert_eq!(worker.terminate(), Some(0));
    assert!(around.outputs("off").await.iter().all(|output| output["reused"] == false));
}
