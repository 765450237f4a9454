//! Servers, topics and worker processes of one test.

use super::{
    Expected, Uploaded,
    envelopes::{Record, Upload},
};
use futures_util::{StreamExt, stream};
use rdkafka::{
    ClientConfig, Message, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::{Header, Headers, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use roc4mllm::dev::{TestDatabase, TestKafka, TestS3};
use roc4mllm::inference::stand_in;
use roc4mllm::labels::{Label, Vote};
use roc4mllm::secret::Secret;
use roc4mllm::store::{PostgresSettings, Store};
use serde_json::Value;
use sqlx::Row as _;
use std::{
    collections::{HashMap, HashSet},
    io::Read,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Kafka, S3 and Postgres with topics, bucket and schema of their own.
pub struct Stack {
    kafka: TestKafka,
    s3: TestS3,
    database: TestDatabase,
    input: String,
    output: String,
    dead_letter: String,
    group: String,
    producer: FutureProducer,
}

/// What a worker answered.
pub struct Answer {
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }
}

/// One request on a connection of its own; `headers` end in line breaks each.
pub async fn exchange(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("the worker listens");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("a request");
    stream.write_all(body).await.expect("a body");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("the end of the headers");
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    assert!(!head.contains("transfer-encoding"), "{head}");
    Answer { status, headers: head, body: answer[end + 4..].to_vec() }
}

/// A row of `scores`, as far as the tests look.
pub struct Row {
    pub status: String,
    pub score: Option<f64>,
    /// Whether `deleted_at` is set.
    pub removed: bool,
}

/// A dead letter as it lies in its topic.
pub struct DeadLetter {
    pub payload: Vec<u8>,
    headers: HashMap<String, String>,
}

impl DeadLetter {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name} in {:?}", self.headers))
    }
}

impl Stack {
    pub async fn start(partitions: i32) -> Self {
        Self::on(TestKafka::real().await.expect("a real Kafka"), partitions).await
    }

    /// On a Kafka that honours no transactions, for what is not about Kafka: workers need
    /// `kafka.delivery = "at_least_once"`.
    pub async fn light(partitions: i32) -> Self {
        Self::on(TestKafka::light().expect("a Kafka"), partitions).await
    }

    async fn on(kafka: TestKafka, partitions: i32) -> Self {
        let s3 = TestS3::create().await.expect("an S3 server");
        let database = TestDatabase::create().await.expect("a Postgres");
        let input = kafka.create_topic("uploads", partitions).await.expect("a topic");
        let output = kafka.create_topic("scores", partitions).await.expect("a topic");
        let dead_letter = kafka.create_topic("dead-letters", 1).await.expect("a topic");
        let producer = ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap())
            .set("linger.ms", "0")
            .create()
            .expect("a producer");
        let group = format!("{input}-group");
        Self { kafka, s3, database, input, output, dead_letter, group, producer }
    }

    pub fn bucket(&self) -> &str {
        self.s3.bucket()
    }

    pub fn s3(&self) -> &TestS3 {
        &self.s3
    }

    pub fn database_url(&self) -> &str {
        self.database.url()
    }

    /// The tiny checkpoint that comes with the tests.
    pub fn checkpoint(&self) -> PathBuf {
        fixtures().join("ckpt_safetensors")
    }

    /// Every picture that comes with the tests, rejected ones included.
    pub fn images(&self) -> Vec<PathBuf> {
        let mut images: Vec<PathBuf> = std::fs::read_dir(fixtures().join("images"))
            .expect("the pictures")
            .map(|entry| entry.expect("a folder entry").path())
            .collect();
        images.sort();
        images
    }

    pub async fn put(&self, key: &str, content: Vec<u8>) -> String {
        self.s3.put(key, content).await.expect("an upload")
    }

    /// Uploads `count` objects, going round the pictures, under keys that need escaping.
    pub async fn upload(&self, expected: &[Expected], count: usize) -> Vec<Uploaded> {
        stream::iter((0..count).map(|number| {
            let expected = &expected[number % expected.len()];
            async move {
                let content = std::fs::read(&expected.path).expect("a picture");
                let name = expected.path.file_name().and_then(|name| name.to_str()).expect("a name");
                let key = format!("Фото {:02}/{number:05} + 50%25={name}", number % 7);
                let size = content.len();
                let etag = self.put(&key, content).await;
                let upload = Upload { bucket: self.bucket().into(), key, etag, size };
                Uploaded { upload, expected: expected.clone() }
            }
        }))
        .buffered(16)
        .collect()
        .await
    }

    /// Another topic of this test's own.
    pub async fn create_topic(&self, stem: &str, partitions: i32) -> String {
        self.kafka.create_topic(stem, partitions).await.expect("a topic")
    }

    /// Appends a record to the input topic; its partition and offset.
    pub async fn produce(&self, record: &Record) -> (i32, i64) {
        self.produce_to(&self.input, record).await
    }

    /// Appends a record; its partition and offset.
    pub async fn produce_to(&self, topic: &str, record: &Record) -> (i32, i64) {
        let mut headers = OwnedHeaders::new();
        for (name, value) in &record.headers {
            headers = headers.insert(Header { key: name, value: Some(value) });
        }
        let mut message = FutureRecord::<(), [u8]>::to(topic).headers(headers);
        if let Some(payload) = &record.payload {
            message = message.payload(payload);
        }
        let delivery = self.producer.send(message, Duration::from_secs(30)).await.expect("delivered");
        (delivery.partition, delivery.offset)
    }

    /// Starts a worker; `overrides` are `section.key` and value.
    pub fn worker(&self, overrides: &[(&str, &str)]) -> Worker {
        self.worker_in(&[], overrides)
    }

    /// Starts a worker with a stand-in for the model that does what the file `script` says.
    pub fn scripted_worker(&self, script: &Path, overrides: &[(&str, &str)]) -> Worker {
        self.worker_in(&[(stand_in::VARIABLE, script)], overrides)
    }

    /// Starts a worker with variables of its own.
    pub fn worker_in(&self, environment: &[(&str, &Path)], overrides: &[(&str, &str)]) -> Worker {
        // A port that was free a moment ago; the worker says so if it no longer is.
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let checkpoint = self.checkpoint();
        let mut settings: Vec<(String, String)> = [
            ("kafka.brokers", self.kafka.bootstrap().into()),
            ("kafka.group", self.group.clone()),
            ("kafka.input_topics", format!("[{:?}]", self.input)),
            ("kafka.output_topic", self.output.clone()),
            ("kafka.dead_letter_topic", self.dead_letter.clone()),
            ("kafka.session_timeout_ms", "6000".into()),
            ("kafka.commit_interval_ms", "100".into()),
            ("kafka.commit_outputs", "25".into()),
            ("s3.endpoint", self.s3.endpoint().into()),
            ("s3.buckets", format!("[{:?}]", self.s3.bucket())),
            ("postgres.url", self.database.url().into()),
            ("postgres.migrate_at_start", "true".into()),
            ("model.checkpoint", checkpoint.display().to_string()),
            // The tests' pictures are few and come again and again, and each time the model is to be asked.
            ("reuse.enabled", "false".into()),
            ("http.listen", port.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        settings.extend(overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(["--log-format", "json", "worker"]);
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command
            .env("AWS_ACCESS_KEY_ID", self.s3.access_key())
            .env("AWS_SECRET_ACCESS_KEY", self.s3.secret_key())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the worker starts");
        let mut pipe = child.stderr.take().expect("a pipe");
        // Read all along, so that a full pipe never blocks the worker.
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            if let Err(error) = pipe.read_to_string(&mut log) {
                log.push_str(&error.to_string());
            }
            log
        });
        Worker { child, http: port, log: Some(log) }
    }

    /// Waits until at least `count` outputs are committed; how many there are then.
    pub async fn wait_for_outputs(&self, count: usize, within: Duration) -> usize {
        let deadline = Instant::now() + within;
        loop {
            let committed = self.count_outputs().await;
            if committed >= count {
                return committed;
            }
            assert!(Instant::now() < deadline, "{committed} of {count} outputs after {within:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Outputs that `read_committed` readers see.
    pub async fn count_outputs(&self) -> usize {
        self.outputs().await.len()
    }

    /// Every committed output.
    pub async fn outputs(&self) -> Vec<Value> {
        let dump = dump(self.kafka.bootstrap().into(), self.output.clone()).await;
        dump.iter().map(|message| serde_json::from_slice(&message.payload).expect("JSON")).collect()
    }

    /// Every committed output with its headers.
    pub async fn output_records(&self) -> Vec<DeadLetter> {
        dump(self.kafka.bootstrap().into(), self.output.clone()).await
    }

    /// Every committed dead letter, in order.
    pub async fn dead_letters(&self) -> Vec<DeadLetter> {
        dump(self.kafka.bootstrap().into(), self.dead_letter.clone()).await
    }

    /// Every version that has made a row.
    pub async fn versions_in_rows(&self) -> HashSet<String> {
        let pool = sqlx::PgPool::connect(self.database.url()).await.expect("a connection");
        let rows = sqlx::query("SELECT DISTINCT model_version FROM scores").fetch_all(&pool).await;
        rows.expect("rows").into_iter().map(|row| row.get(0)).collect()
    }

    /// Records of a topic that the group has not committed.
    pub async fn committed_lag(&self, topic: &str) -> i64 {
        let (bootstrap, group) = (self.kafka.bootstrap().to_owned(), self.group.clone());
        let topic = topic.to_owned();
        tokio::task::spawn_blocking(move || committed_lag(&bootstrap, &group, &topic))
            .await
            .expect("the lag is measured")
    }

    /// `votes` and `labels`, in key order.
    pub async fn votes_and_labels(&self) -> (Vec<Vote>, Vec<Label>) {
        let url = Secret::from(self.database.url());
        let settings = PostgresSettings { url, ..PostgresSettings::default() };
        let store = Store::connect(&settings).await.expect("a connection");
        let labels: Vec<Label> = store
            .labels_by_key(None, 100_000)
            .await
            .expect("labels")
            .into_iter()
            .map(|stored| stored.label)
            .collect();
        let objects: Vec<_> = labels.iter().map(|label| &label.object).collect();
        let votes = store.votes_on(&objects).await.expect("votes");
        (votes.into_iter().map(|stored| stored.vote).collect(), labels)
    }

    /// The number of every vote in the order of arrival, by key and rater.
    pub async fn vote_numbers(&self) -> Vec<(String, String, String, i64)> {
        let pool = sqlx::PgPool::connect(self.database.url()).await.expect("a connection");
        sqlx::query_as("SELECT object_key, etag, rater, ingested FROM votes ORDER BY 1, 2, 3")
            .fetch_all(&pool)
            .await
            .expect("votes")
    }

    /// `scores`, by id.
    pub async fn rows(&self) -> HashMap<String, Row> {
        let pool = sqlx::PgPool::connect(self.database.url()).await.expect("a connection");
        sqlx::query("SELECT id::text, status, score, deleted_at IS NOT NULL FROM scores")
            .fetch_all(&pool)
            .await
            .expect("rows")
            .into_iter()
            .map(|row| (row.get(0), Row { status: row.get(1), score: row.get(2), removed: row.get(3) }))
            .collect()
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

fn committed_lag(bootstrap: &str, group: &str, topic: &str) -> i64 {
    let timeout = Duration::from_secs(30);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .create()
        .expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), timeout).expect("metadata");
    let mut partitions = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        partitions.add_partition(topic, partition.id());
    }
    let committed = consumer.committed_offsets(partitions, timeout).expect("committed offsets");
    let lag = |entry: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        let (low, high) = consumer.fetch_watermarks(topic, entry.partition(), timeout).expect("watermarks");
        high - entry.offset().to_raw().filter(|offset| *offset >= 0).unwrap_or(low)
    };
    committed.elements().iter().map(lag).sum()
}

/// All that `read_committed` shows of a topic now.
async fn dump(bootstrap: String, topic: String) -> Vec<DeadLetter> {
    tokio::task::spawn_blocking(move || {
        let timeout = Duration::from_secs(30);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap)
            .set("group.id", "dump")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10")
            .create()
            .expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(&topic), timeout).expect("metadata");
        let partitions = metadata.topics()[0].partitions().len();
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment
                .add_partition_offset(&topic, partition as i32, rdkafka::Offset::Beginning)
                .expect("an offset");
        }
        consumer.assign(&assignment).expect("an assignment");
        let mut found = Vec::new();
        let mut ended = 0;
        while ended < partitions {
            match consumer.poll(timeout).expect("a record or the end of a partition") {
                Ok(message) => found.push(DeadLetter {
                    payload: message.payload().unwrap_or_default().to_vec(),
                    headers: message
                        .headers()
                        .map(|headers| {
                            headers
                                .iter()
                                .filter_map(|header| {
                                    Some((header.key.into(), String::from_utf8(header.value?.to_vec()).ok()?))
                                })
                                .collect()
                        })
                        .unwrap_or_default(),
                }),
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
                Err(error) => panic!("{topic}: {error}"),
            }
        }
        found
    })
    .await
    .expect("the dump ends")
}

/// A worker process; killed with its handle.
pub struct Worker {
    child: Child,
    http: SocketAddr,
    log: Option<std::thread::JoinHandle<String>>,
}

impl Worker {
    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("a running worker");
        self.child.wait().expect("its end");
    }

    /// SIGTERM; the exit code once it has drained.
    pub fn terminate(self) -> Option<i32> {
        let (code, log) = self.terminated();
        if code != Some(0) {
            eprintln!("{log}");
        }
        code
    }

    /// SIGTERM; the log, once the worker has drained and ended with `expected`.
    pub fn terminate_with_log(self, expected: i32) -> String {
        let (code, log) = self.terminated();
        assert_eq!(code, Some(expected), "{log}");
        log
    }

    fn terminated(self) -> (Option<i32>, String) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: kill takes no pointers; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        self.wait_within(Duration::from_secs(45))
    }

    /// Exit code and log, once the process has ended by itself.
    pub fn wait_within(mut self, within: Duration) -> (Option<i32>, String) {
        let deadline = Instant::now() + within;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            if Instant::now() > deadline {
                self.kill();
                panic!("the worker runs on after {within:?}: {}", self.take_log());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        (status.code(), self.take_log())
    }

    fn take_log(&mut self) -> String {
        self.log.take().and_then(|log| log.join().ok()).unwrap_or_default()
    }

    /// Where it answers HTTP.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    pub async fn wait_until_ready(&self, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            let answer = self.get("/readyz").await;
            if answer.starts_with("HTTP/1.1 200") {
                return;
            }
            assert!(Instant::now() < deadline, "not ready after {within:?}: {answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The whole response to a GET, or the error as text.
    pub async fn get(&self, path: &str) -> String {
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(self.http).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        exchange.await.unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}
