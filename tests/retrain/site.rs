//! Servers, photos, labels and processes of one test.

#[path = "../support/labelled_photos.rs"]
pub mod labelled_photos;

use labelled_photos::{Kind, brightness, picture, png};
use roc4mllm::{
    dev::{TestDatabase, TestS3},
    labels::{LabelledObject, Opinion, Scale, Vote},
    secret::Secret,
    store::{PostgresSettings, RegisteredVersion, RetrainRun, Store},
};
use std::{
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use time::OffsetDateTime;

/// For whatever a process is waited for.
pub const WITHIN: Duration = Duration::from_secs(300);

/// Enough to learn what brightness is worth.
const STEPS: &str = "80";

/// S3 and Postgres with a bucket and a schema of their own, and a work folder.
pub struct Site {
    pub s3: TestS3,
    database: TestDatabase,
    pub store: Store,
    pub work: TempDir,
    cache: TempDir,
}

/// A photo in the bucket.
#[derive(Clone, Debug)]
pub struct Photo {
    pub object: LabelledObject,
    pub number: u64,
    pub brightness: f64,
}

impl Site {
    pub async fn start() -> Self {
        let database = TestDatabase::create().await.expect("a Postgres");
        let url = Secret::from(database.url());
        let settings = PostgresSettings { url, statement_timeout_ms: 60_000, ..PostgresSettings::default() };
        let store = Store::connect(&settings).await.expect("a connection");
        store.migrate().await.expect("a schema");
        Self {
            s3: TestS3::create().await.expect("an S3 server"),
            database,
            store,
            work: tempfile::tempdir().expect("a folder"),
            cache: tempfile::tempdir().expect("a folder"),
        }
    }

    /// The tiny checkpoint is the champion, and knows no label.
    pub async fn with_champion() -> Self {
        let site = Self::start().await;
        let published =
            site.run(&["models", "publish", tiny().to_str().expect("UTF-8"), "--promote"], &[]).await;
        assert!(published.status.success(), "{}", text(&published));
        site
    }

    /// Uploads photos of these numbers.
    pub async fn upload(&self, numbers: Range<u64>) -> Vec<Photo> {
        let mut photos = Vec::new();
        for number in numbers {
            let brightness = brightness(number);
            let file = png(&picture(number, brightness, Kind::Gray));
            photos.push(self.put(number, brightness, file).await);
        }
        photos
    }

    pub async fn put(&self, number: u64, brightness: f64, file: Vec<u8>) -> Photo {
        let key = format!("photos/{number:05}.png");
        let etag = self.s3.put(&key, file).await.expect("an upload");
        let object = LabelledObject { bucket: self.s3.bucket().into(), key, etag };
        Photo { object, number, brightness }
    }

    pub async fn delete(&self, photo: &Photo) {
        let request = self.s3.client().delete_object().bucket(self.s3.bucket()).key(&photo.object.key);
        request.send().await.expect("deleted");
    }

    /// Three raters say so of each photo.
    pub async fn label(&self, labels: impl IntoIterator<Item = (&Photo, f64)>) {
        let mut votes = Vec::new();
        for (photo, score) in labels {
            for (rater, apart) in [("ann", -0.4), ("bob", 0.0), ("eve", 0.4)] {
                let score = (score + apart).clamp(Scale::PAPER.min_score, Scale::PAPER.max_score);
                votes.push(Vote {
                    object: photo.object.clone(),
                    rater: rater.into(),
                    opinion: Opinion::of_scores(vec![score]),
                    conversation: Vec::new(),
                    labelled_at: OffsetDateTime::now_utc().truncate_to_microsecond(),
                });
            }
        }
        self.store.write_votes(&votes, &Scale::PAPER).await.expect("stored");
    }

    /// Labels that can be learned: the darker, the better.
    pub async fn label_truly(&self, photos: &[Photo]) {
        self.label(photos.iter().map(|photo| (photo, true_score(photo.brightness)))).await;
    }

    /// A command with this site's configuration; later settings win.
    pub fn command(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(arguments);
        let own = [
            ("s3.endpoint", self.s3.endpoint().to_owned()),
            ("s3.buckets", format!("[{:?}]", self.s3.bucket())),
            ("postgres.url", self.database.url().to_owned()),
            ("registry.publish_to", format!("s3://{}/models", self.s3.bucket())),
            ("registry.cache_dir", self.cache.path().display().to_string()),
            ("retrain.work_dir", self.work.path().display().to_string()),
            ("retrain.min_labels", "20".into()),
            ("retrain.gold_share", "0.4".into()),
            ("split.holdout", "0.4".into()),
            ("gate.min_photos", "15".into()),
            ("gate.margin", "0.05".into()),
            ("gate.required", "[\"newest\", \"gold\"]".into()),
            ("gate.resamples", "500".into()),
            ("train.max_steps", STEPS.into()),
            ("train.batch_size", "16".into()),
            ("train.learning_rate", "3e-3".into()),
            ("train.threads", "1".into()),
            ("model.threads", "1".into()),
            ("inference.decode_threads", "1".into()),
        ];
        for (key, value) in own {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command
            .env("AWS_ACCESS_KEY_ID", self.s3.access_key())
            .env("AWS_SECRET_ACCESS_KEY", self.s3.secret_key())
            .env_remove("FAILPOINTS")
            .stdin(Stdio::null());
        command
    }

    pub async fn run(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
        let mut command = self.command(arguments, settings);
        tokio::task::spawn_blocking(move || command.output().expect("the binary starts"))
            .await
            .expect("it ends")
    }

    /// `retrain --exit-code`; what it prints.
    #[track_caller]
    pub fn retrain(&self, settings: &[(&str, &str)], code: i32) -> impl Future<Output = String> {
        let place = std::panic::Location::caller();
        let running = self.run(&["retrain", "--exit-code"], settings);
        async move {
            let output = running.await;
            assert_eq!(output.status.code(), Some(code), "{place}: {}", text(&output));
            text(&output)
        }
    }

    /// A run that kills itself at the failpoint.
    pub async fn killed_at(&self, failpoint: &str, settings: &[(&str, &str)]) {
        let mut command = self.command(&["retrain", "--exit-code"], settings);
        command.env("FAILPOINTS", failpoint);
        let output = tokio::task::spawn_blocking(move || command.output().expect("the binary starts"));
        let output = output.await.expect("it ends");
        assert_eq!(output.status.code(), None, "{failpoint} does not kill: {}", text(&output));
    }

    /// As if the lease of the killed process had run out.
    pub async fn let_lease_run_out(&self) {
        self.execute("UPDATE retrain_runs SET heartbeat_at = heartbeat_at - interval '1 hour'").await;
    }

    pub async fn execute(&self, statement: &'static str) {
        let pool = sqlx::PgPool::connect(self.database.url()).await.expect("a connection");
        sqlx::query(statement).execute(&pool).await.expect("executed");
        pool.close().await;
    }

    /// Side, whether it is gold, and the group of each photo.
    pub async fn sides(&self) -> Vec<(LabelledObject, String, bool, Vec<u8>)> {
        let pool = sqlx::PgPool::connect(self.database.url()).await.expect("a connection");
        let rows: Vec<(String, String, String, String, bool, Vec<u8>)> = sqlx::query_as(
            "SELECT bucket, object_key, etag, side, gold, founder \
             FROM photo_contents JOIN photo_sides USING (content) ORDER BY 1, 2, 3",
        )
        .fetch_all(&pool)
        .await
        .expect("rows");
        pool.close().await;
        let read = |(bucket, key, etag, side, gold, group)| {
            (LabelledObject { bucket, key, etag }, side, gold, group)
        };
        rows.into_iter().map(read).collect()
    }

    /// The last run.
    pub async fn last_run(&self) -> RetrainRun {
        self.store.retrain_runs(1).await.expect("runs").remove(0)
    }

    pub async fn champion(&self) -> RegisteredVersion {
        self.store.champion().await.expect("an answer").expect("a champion")
    }

    /// The object at an `s3://` address.
    pub async fn object(&self, address: &str) -> Vec<u8> {
        let (bucket, key) = address.strip_prefix("s3://").expect("s3").split_once('/').expect("a key");
        let request = self.s3.client().get_object().bucket(bucket).key(key);
        request.send().await.expect("the object").body.collect().await.expect("whole").to_vec()
    }
}

/// What brightness is worth: the opposite of what the tiny checkpoint happens to make of it.
pub fn true_score(brightness: f64) -> f64 {
    1.5 + 8.0 * (1.0 - brightness)
}

pub fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/ckpt_safetensors")
}

/// Everything that a process wrote.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A process that is killed with its handle.
pub struct Process(pub Child);

impl Process {
    pub fn start(mut command: Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the binary starts"))
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = i32::try_from(self.0.id()).expect("a process id");
        // SAFETY: kill takes no pointers; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    }

    pub async fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + WITHIN;
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it runs on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
