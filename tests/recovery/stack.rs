//! Servers, topics and processes of one test.

use futures_util::{StreamExt, stream};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use roc4mllm::dev::{TestDatabase, TestKafka, TestS3};
use roc4mllm::kafka::batch_writer::{BatchWriter, settings_of_command};
use roc4mllm::kafka::producer::RecordProducer;
use roc4mllm::kafka::reader::{ReadRecord, Start, TopicReader, spans};
use roc4mllm::kafka::{KafkaSettings, StagedRecord};
use roc4mllm::record::{Header, WireRecord};
use serde_json::Value;
use sqlx::PgPool;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Kafka, S3 and Postgres with topics, bucket and schema of their own.
pub struct Stack {
    pub kafka: KafkaSettings,
    pub s3: TestS3,
    pub pool: PgPool,
    producer: RecordProducer,
    database: TestDatabase,
    _kafka: TestKafka,
}

impl Stack {
    pub async fn start() -> Self {
        let server = TestKafka::real().await.expect("a real Kafka");
        let s3 = TestS3::create().await.expect("an S3 server");
        let database = TestDatabase::create().await.expect("a Postgres");
        let topic = async |name, partitions| server.create_topic(name, partitions).await.expect("a topic");
        let input = topic("uploads", 2).await;
        let kafka = KafkaSettings {
            brokers: server.bootstrap().to_owned(),
            group: format!("{input}-group"),
            input_topics: vec![input],
            backfill_topic: Some(topic("backfill", 2).await),
            output_topic: topic("scores", 1).await,
            dead_letter_topic: topic("dead-letters", 1).await,
            ..KafkaSettings::default()
        };
        let pool = PgPool::connect(database.url()).await.expect("a connection");
        let producer = RecordProducer::new(&kafka).expect("a producer");
        let stack = Self { kafka, s3, pool, producer, database, _kafka: server };
        assert_eq!(stack.run(&["migrate"]).await.status.code(), Some(0));
        stack
    }

    pub fn input(&self) -> &str {
        &self.kafka.input_topics[0]
    }

    pub fn backfill_topic(&self) -> &str {
        self.kafka.backfill_topic.as_deref().expect("it is set")
    }

    /// Uploads `count` objects named by `name`.
    pub async fn upload(&self, count: usize, content: &'static [u8], name: impl Fn(usize) -> String) {
        stream::iter((0..count).map(name))
            .for_each_concurrent(16, async |key| {
                self.s3.put(&key, content).await.expect("an upload");
            })
            .await;
    }

    /// Announces objects with plain records, in `topic`.
    pub async fn announce(&self, topic: &str, keys: impl Iterator<Item = String>) {
        let records: Vec<WireRecord> = keys
            .map(|key| {
                let value = serde_json::json!({"bucket": self.s3.bucket(), "key": key});
                WireRecord {
                    key: Some(key.into_bytes()),
                    payload: Some(value.to_string().into_bytes()),
                    headers: Vec::new(),
                }
            })
            .collect();
        for sent in
            futures_util::future::join_all(records.iter().map(|record| self.producer.send(topic, record)))
                .await
        {
            sent.expect("delivered");
        }
    }

    /// Produces a value with one header, whose value is `kept`.
    pub async fn send(&self, topic: &str, value: &Value, header: &str) {
        let headers = vec![Header::new(header, "kept")];
        let record = WireRecord { key: None, payload: Some(value.to_string().into_bytes()), headers };
        self.producer.send(topic, &record).await.expect("delivered");
    }

    /// Dead letters of items `0..count` of one input record, written in transactions of a hundred.
    pub async fn dead_letters(&self, count: usize) {
        let settings = settings_of_command(&self.kafka, "test");
        let topic: Arc<str> = self.kafka.dead_letter_topic.as_str().into();
        let origin = self.input().to_owned();
        let letter = move |item: usize| {
            let headers = [
                ("dlq-class", "dead".to_owned()),
                ("dlq-code", "retry_exhausted".to_owned()),
                ("dlq-origin-topic", origin.clone()),
                ("dlq-origin-partition", "0".to_owned()),
                ("dlq-origin-offset", "0".to_owned()),
                ("dlq-item", item.to_string()),
            ];
            let headers = headers.into_iter().map(|(name, value)| Header::new(name, value)).collect();
            let record = WireRecord { key: None, payload: Some(b"{}".to_vec()), headers };
            Arc::new(StagedRecord { topic: Arc::clone(&topic), record })
        };
        tokio::task::spawn_blocking(move || {
            let mut writer = BatchWriter::open(&settings).expect("a writer");
            let letters: Vec<_> = (0..count).map(letter).collect();
            for batch in letters.chunks(100) {
                writer.write(batch, &[]).expect("written");
            }
        })
        .await
        .expect("the letters are written");
    }

    /// The binary with this stack's configuration and the arguments of one of its commands.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/ckpt_safetensors");
        let kafka = &self.kafka;
        let settings = [
            ("kafka.brokers", kafka.brokers.clone()),
            ("kafka.group", kafka.group.clone()),
            ("kafka.input_topics", format!("[{:?}]", self.input())),
            ("kafka.backfill_topic", self.backfill_topic().to_owned()),
            ("kafka.output_topic", kafka.output_topic.clone()),
            ("kafka.dead_letter_topic", kafka.dead_letter_topic.clone()),
            ("kafka.session_timeout_ms", "6000".into()),
            ("kafka.commit_interval_ms", "100".into()),
            ("s3.endpoint", self.s3.endpoint().into()),
            ("s3.buckets", format!("[{:?}]", self.s3.bucket())),
            ("postgres.url", self.database.url().into()),
            ("model.checkpoint", checkpoint.display().to_string()),
            ("http.listen", "127.0.0.1:0".into()),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(arguments);
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command
            .env("AWS_ACCESS_KEY_ID", self.s3.access_key())
            .env("AWS_SECRET_ACCESS_KEY", self.s3.secret_key())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        tokio::task::spawn_blocking(move || command.output())
            .await
            .expect("a thread")
            .expect("the binary starts")
    }

    /// Runs a command that must end with `code`; what it printed on both.
    pub async fn expect(&self, arguments: &[&str], code: i32) -> (String, String) {
        let output = self.run(arguments).await;
        let (shown, log) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {shown}{log}");
        (shown, log)
    }

    /// Starts a command in the background.
    pub fn spawn(&self, arguments: &[&str]) -> Process {
        let mut command = self.command(arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts");
        Process(child)
    }

    /// All that `read_committed` shows of a topic now, in order within each partition.
    pub async fn dump(&self, topic: &str) -> Vec<ReadRecord> {
        let (settings, topic) = (self.kafka.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || {
            let spans = spans(&settings, &topic, Start::Beginning).expect("the topic");
            let mut reader = TopicReader::open(&settings, &spans).expect("a reader");
            let mut records = Vec::new();
            while let Some(record) = reader.next_record().expect("a record") {
                records.push(record);
            }
            records
        })
        .await
        .expect("the dump ends")
    }

    /// Every committed output.
    pub async fn outputs(&self) -> Vec<Value> {
        let records = self.dump(&self.kafka.output_topic).await;
        records.iter().map(|read| value_of(&read.record)).collect()
    }

    /// Waits until `topic` shows `count` records.
    pub async fn wait_for(&self, topic: &str, count: usize) -> Vec<ReadRecord> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let records = self.dump(topic).await;
            if records.len() >= count {
                return records;
            }
            assert!(Instant::now() < deadline, "{} of {count} records in {topic}", records.len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Removes every record of partition 0 of `topic` below `offset`, as retention does.
    pub async fn delete_records(&self, topic: &str, offset: i64) {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka.brokers)
            .create()
            .expect("an admin client");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("an offset");
        let deleted = admin.delete_records(&list, &AdminOptions::new()).await.expect("an answer");
        for entry in deleted.elements() {
            entry.error().expect("deleted");
        }
    }

    /// Id, status and score of every row.
    pub async fn rows(&self) -> Vec<(String, String, Option<f64>)> {
        sqlx::query_as("SELECT id::text, status, score FROM scores")
            .fetch_all(&self.pool)
            .await
            .expect("rows")
    }

    /// Waits until the backfills' counter is above `count`.
    pub async fn wait_until_enqueued(&self, count: i64) -> i64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let enqueued: Option<i64> = sqlx::query_scalar("SELECT sum(enqueued)::bigint FROM backfills")
                .fetch_one(&self.pool)
                .await
                .expect("a count");
            match enqueued {
                Some(enqueued) if enqueued > count => return enqueued,
                _ => assert!(Instant::now() < deadline, "{enqueued:?} of {count} enqueued"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A process that is killed with its handle.
pub struct Process(Child);

impl Process {
    /// SIGKILL, if it still runs.
    pub fn kill(mut self) {
        assert_eq!(self.0.try_wait().expect("a child"), None, "it had ended by itself");
        self.0.kill().expect("a running process");
        self.0.wait().expect("its end");
    }

    /// SIGTERM; the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = i32::try_from(self.0.id()).expect("a process id");
        // SAFETY: kill takes no pointers; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        self.0.wait().expect("its end").code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // Errors leave a process behind that the test's end would have left anyway.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

pub fn value_of(record: &WireRecord) -> Value {
    serde_json::from_slice(record.payload.as_deref().expect("a value")).expect("JSON")
}

/// The smallest picture that comes with the tests.
pub fn picture() -> &'static [u8] {
    include_bytes!("../fixtures/golden/images/15_three_by_three.png")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
