//! The whole loop for real: a worker that serves the champion under load, raters who come to see something
//! else in photos, a retraining that is killed and gone on with, a switch, labels that say nothing, and a
//! rollback. Apache Kafka, an S3 server, Postgres, and networks that learn.

#[path = "../support/labelled_photos.rs"]
mod labelled_photos;

use crate::{
    support::{
        self, Uploaded,
        envelopes::{Envelope, Record},
        stack::{Stack, Worker},
    },
    versions,
};
use labelled_photos::{Kind, Random, brightness, picture, png};
use roc4mllm::{
    secret::Secret,
    store::{PostgresSettings, RegisteredVersion, Store},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

const WITHIN: Duration = Duration::from_secs(400);

/// A labelled photo in the bucket.
struct Photo {
    key: String,
    etag: String,
    brightness: f64,
}

/// A registered version, and what `score` makes of the pictures with it.
struct Version {
    registered: String,
    /// What its scores carry.
    served: String,
    scores: HashMap<PathBuf, Option<f64>>,
}

/// The stack with everything that the loop needs beside it.
struct Site {
    stack: Stack,
    store: Store,
    folder: TempDir,
    labels_topic: String,
    /// What is uploaded and scored.
    images: Vec<PathBuf>,
}

impl Site {
    async fn start() -> Self {
        let stack = Stack::start(3).await;
        let labels_topic = stack.create_topic("labels", 2).await;
        let url = Secret::from(stack.database_url());
        let store = Store::connect(&PostgresSettings { url, ..PostgresSettings::default() }).await;
        let store = store.expect("a connection");
        store.migrate().await.expect("a schema");
        let folder = tempfile::tempdir().expect("a folder");
        let mut images = stack.images();
        for number in 0..12 {
            let kind = if number % 2 == 0 { Kind::Gray } else { Kind::Blue };
            let path = folder.path().join(format!("{number:02} + picture.png"));
            fs::write(&path, png(&picture(90_000 + number, brightness(number), kind))).expect("written");
            images.push(path);
        }
        Self { stack, store, folder, labels_topic, images }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("s3.endpoint", self.stack.s3().endpoint().to_owned()),
            ("s3.buckets", format!("[{:?}]", self.stack.bucket())),
            ("postgres.url", self.stack.database_url().to_owned()),
            ("registry.publish_to", format!("s3://{}/models", self.stack.bucket())),
            ("registry.cache_dir", self.folder.path().join("versions").display().to_string()),
            ("registry.poll_interval_ms", "100".into()),
            ("model.checkpoint", "champion".into()),
            ("model.threads", "1".into()),
        ]
    }

    fn worker(&self) -> Worker {
        let mut settings = self.settings();
        settings.push(("kafka.labels_topic", self.labels_topic.clone()));
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        self.stack.worker(&settings)
    }

    /// A command of the binary with this configuration; its output, once it has ended.
    async fn run(&self, arguments: &[&str], failpoints: Option<&str>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(arguments);
        let work_dir = self.folder.path().join("retrain").display().to_string();
        let own = [
            ("retrain.work_dir", work_dir.as_str()),
            ("retrain.min_labels", "100"),
            ("retrain.gold_share", "0.3"),
            ("split.holdout", "0.4"),
            ("gate.min_photos", "20"),
            ("gate.margin", "0.1"),
            ("gate.resamples", "500"),
            ("train.max_steps", "200"),
            ("train.batch_size", "16"),
            ("train.learning_rate", "3e-3"),
            ("train.save_every", "25"),
            ("train.threads", "1"),
        ];
        for (key, value) in self.settings() {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        for (key, value) in own {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        self.environment(&mut command);
        if let Some(failpoints) = failpoints {
            command.env("FAILPOINTS", failpoints);
        }
        tokio::task::spawn_blocking(move || command.output().expect("the binary starts"))
            .await
            .expect("it ends")
    }

    fn environment(&self, command: &mut Command) {
        command
            .env_remove("FAILPOINTS")
            .env("AWS_ACCESS_KEY_ID", self.stack.s3().access_key())
            .env("AWS_SECRET_ACCESS_KEY", self.stack.s3().secret_key())
            .env("AWS_ENDPOINT_URL", self.stack.s3().endpoint())
            .env("XDG_CACHE_HOME", self.folder.path().join("cache"));
    }

    #[track_caller]
    fn expect(&self, arguments: &[&str], code: i32) -> impl Future<Output = String> {
        let place = std::panic::Location::caller();
        async move {
            let output = self.run(arguments, None).await;
            let shown = text(&output);
            assert_eq!(output.status.code(), Some(code), "{place}: {shown}");
            shown
        }
    }

    async fn upload(&self, numbers: std::ops::Range<u64>, kind: Kind) -> Vec<Photo> {
        let mut photos = Vec::new();
        for number in numbers {
            let brightness = brightness(number);
            let key = format!("rated/{number:05}.png");
            let etag = self.stack.put(&key, png(&picture(number, brightness, kind))).await;
            photos.push(Photo { key, etag, brightness });
        }
        photos
    }

    /// Three raters' votes on the labels topic; returns once the worker has stored them all.
    async fn rate(&self, photos: &[Photo], scores: &[f64]) {
        for (photo, score) in photos.iter().zip(scores) {
            for (rater, apart) in [("ann", -0.3), ("bob", 0.0), ("eve", 0.3)] {
                let vote = json!({
                    "bucket": self.stack.bucket(), "key": photo.key, "etag": photo.etag, "rater": rater,
                    "score": score + apart, "labelled_at": "2024-01-01T12:00:00Z",
                });
                self.stack.produce_to(&self.labels_topic, &Record::plain(vote.to_string())).await;
            }
        }
        let stored = async {
            while self.stack.committed_lag(&self.labels_topic).await > 0 {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(WITHIN, stored).await.expect("every vote is stored");
    }

    /// A model that knows what gray photos are worth, trained as anyone can.
    async fn train_first(&self) -> PathBuf {
        let images = self.folder.path().join("first");
        fs::create_dir_all(&images).expect("a folder");
        let mut samples = Vec::new();
        for number in 50_000..50_200 {
            let name = format!("{number}.png");
            let worth = brightness(number);
            fs::write(images.join(&name), png(&picture(number, worth, Kind::Gray))).expect("written");
            samples.push(json!({
                "image": name, "gt_score": bright_is_good(worth),
                "conversations": [
                    {"from": "human", "value": "<|image|>Please rate the aesthetics of the image."},
                    {"from": "gpt", "value": "The aesthetic rate of the image is [SCORE]. "},
                ],
            }));
        }
        let data = images.join("data.json");
        fs::write(&data, Value::from(samples).to_string()).expect("written");
        let trained = self.folder.path().join("first-trained");
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.arg("train").arg("--checkpoint").arg(self.stack.checkpoint()).arg("--data").arg(&data);
        command.arg("--images").arg(&images).arg("--output").arg(&trained);
        command.args(["--max-steps", "120", "--batch-size", "16", "--learning-rate", "3e-3"]);
        command.args(["--ce-weight", "0", "--emd-weight", "0", "--threads", "1"]);
        let output = tokio::task::spawn_blocking(move || command.output().expect("the binary starts"));
        let output = output.await.expect("it ends");
        assert!(output.status.success(), "{}", text(&output));
        trained
    }

    /// What `score` makes of every picture with a registered version, straight from S3.
    async fn judge(&self, version: &RegisteredVersion) -> Version {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(["score", "--format", "jsonl", "--checkpoint", &version.uri]).args(&self.images);
        self.environment(&mut command);
        let output = tokio::task::spawn_blocking(move || command.output().expect("the binary starts"));
        let output = output.await.expect("it ends");
        let lines: Vec<Value> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
            .collect();
        assert_eq!(lines.len(), self.images.len(), "{}", text(&output));
        let served =
            lines.iter().find_map(|line| line["model_version"].as_str()).expect("a version").to_owned();
        assert!(version.made(&served), "{served} is not {}", version.version);
        let scores = lines.iter().map(|line| line["score"].as_f64());
        let scores = self.images.iter().cloned().zip(scores).collect();
        Version { registered: version.version.clone(), served, scores }
    }

    async fn champion(&self) -> RegisteredVersion {
        self.store.champion().await.expect("an answer").expect("a champion")
    }

    /// Waits until the worker serves `version` and has scored something with it since.
    async fn wait_until_served(&self, worker: &Worker, version: &Version) {
        let sample = format!("version=\"{}\",role=\"champion\"}} 1", version.served);
        let served = async {
            while !worker.get("/metrics").await.contains(&sample) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let made = async || {
                let outputs = self.stack.outputs().await;
                outputs.iter().filter(|output| output["model_version"] == version.served.as_str()).count()
            };
            let before = made().await;
            while made().await <= before {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(WITHIN, served).await.is_err() {
            panic!("{} is not served: {}", version.served, worker.get("/metrics").await);
        }
    }

    /// [`versions::check`] with these versions; how many outputs each of them made, as the registry names it.
    async fn check(
        &self,
        versions: &[&Version],
        items: &HashMap<(i32, i64, u32), &Uploaded>,
    ) -> BTreeMap<String, usize> {
        let scores = versions.iter().map(|version| (version.served.as_str(), &version.scores)).collect();
        let made = versions::check(&self.stack, &scores, items).await;
        let registered = versions.iter().filter_map(|version| {
            made.get(&version.served).map(|count| (version.registered.clone(), *count))
        });
        registered.collect()
    }
}

fn bright_is_good(brightness: f64) -> f64 {
    1.5 + 8.0 * brightness
}

fn dark_is_good(brightness: f64) -> f64 {
    bright_is_good(1.0 - brightness)
}

fn scores(photos: &[Photo], worth: fn(f64) -> f64) -> Vec<f64> {
    photos.iter().map(|photo| worth(photo.brightness)).collect()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Announces uploads round and round until it is told to stop.
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
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    items
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_become_a_better_champion_under_load() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let site = Site::start().await;
    let first_folder = site.train_first().await;
    let first_folder = first_folder.to_str().expect("UTF-8");
    site.expect(&["models", "publish", first_folder, "--promote"], 0).await;
    let first = site.judge(&site.champion().await).await;
    let expected = support::score_images(Path::new(first_folder), &site.images);
    let uploads = site.stack.upload(&expected, 400).await;
    let worker = Arc::new(site.worker());
    worker.wait_until_ready(WITHIN).await;

    let stop = Arc::<AtomicBool>::default();
    let always_ready = tokio::spawn({
        let (worker, stop) = (Arc::clone(&worker), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = worker.get("/readyz").await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    let story = async {
        // What raters said of gray photos is what the first champion knows.
        let gray = site.upload(0..200, Kind::Gray).await;
        site.rate(&gray, &scores(&gray, bright_is_good)).await;
        site.expect(&["models", "publish", first_folder, "--trained-on-labels"], 0).await;
        site.wait_until_served(&worker, &first).await;

        // Blue ones they like dark.
        let blue = site.upload(1_000..1_240, Kind::Blue).await;
        site.rate(&blue, &scores(&blue, dark_is_good)).await;
        let killed = site.run(&["retrain", "--exit-code"], Some("step-taken=130*off->1*return")).await;
        assert_eq!(killed.status.code(), None, "killed: {}", text(&killed));
        let pool = sqlx::PgPool::connect(site.stack.database_url()).await.expect("a connection");
        let expire = "UPDATE retrain_runs SET heartbeat_at = heartbeat_at - interval '1 hour'";
        sqlx::query(expire).execute(&pool).await.expect("executed");
        let shown = site.expect(&["retrain", "--exit-code"], 0).await;
        assert!(shown.contains("going on after step 125") && shown.contains("accepted"), "{shown}");
        let run = site.store.retrain_runs(1).await.expect("runs").remove(0);
        assert_eq!((run.attempts, run.outcome.as_deref()), (2, Some("accepted")), "{run:?}");
        let second = site.judge(&site.champion().await).await;
        assert_ne!(second.registered, first.registered);
        site.wait_until_served(&worker, &second).await;

        // Votes by nobody who has looked.
        let more = site.upload(2_000..2_240, Kind::Blue).await;
        let mut random = scores(&more, dark_is_good);
        Random::new(11).shuffle(&mut random);
        site.rate(&more, &random).await;
        let shown = site.expect(&["retrain", "--exit-code"], 10).await;
        assert!(shown.contains("rejected"), "{shown}");
        assert_eq!(site.champion().await.version, second.registered);

        site.expect(&["models", "rollback"], 0).await;
        site.wait_until_served(&worker, &first).await;
        stop.store(true, Ordering::Relaxed);
        second
    };
    let (items, second) = tokio::join!(announce(&site.stack, &uploads, &stop), story);
    always_ready.await.expect("ready throughout");
    site.stack.wait_for_outputs(items.len(), WITHIN).await;
    let worker = Arc::into_inner(worker).expect("the only handle");
    assert_eq!(worker.terminate(), Some(0));
    let made = site.check(&[&first, &second], &items).await;
    assert_eq!(made.len(), 2, "each version scored some: {made:?}");
}
