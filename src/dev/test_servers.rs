//! Servers for tests: the ones that the environment names, else embedded ones that all tests of
//! a process share.

use crate::dev::{ApacheKafka, DevError, MockKafka, Postgres, S3Server, apache_kafka};
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::DisplayErrorContext;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use tempfile::TempDir;
use url::Url;
use uuid::Uuid;

/// Starts a part for the first holder, hands the same one to later ones, and lets it stop with
/// the last: a plain static would never stop.
fn shared<T>(slot: &Mutex<Weak<T>>, start: impl FnOnce() -> Result<T, DevError>) -> Result<Arc<T>, DevError> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = slot.upgrade() {
        return Ok(running);
    }
    let started = Arc::new(start()?);
    *slot = Arc::downgrade(&started);
    Ok(started)
}

/// Runs something that blocks for seconds where it holds up no other task.
async fn blocking<T: Send + 'static>(
    part: &'static str,
    work: impl FnOnce() -> Result<T, DevError> + Send + 'static,
) -> Result<T, DevError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| DevError::Start { part, reason: error.to_string() })?
}

fn configured(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|address| !address.is_empty())
}

fn unique(name: &str) -> String {
    format!("{name}-{}", Uuid::new_v4().simple())
}

/// A schema of its own in a Postgres, dropped with the handle.
pub struct TestDatabase {
    url: String,
    schema: String,
    base: String,
    _server: Option<Arc<Postgres>>,
}

impl TestDatabase {
    /// In the server at `ROC4MLLM_TEST_DATABASE_URL` (an error if nothing listens there), else in
    /// an embedded one.
    pub async fn create() -> Result<Self, DevError> {
        static SERVER: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let (base, server) = match configured("ROC4MLLM_TEST_DATABASE_URL") {
            Some(url) => (url, None),
            None => {
                let server = blocking("postgres", || shared(&SERVER, Postgres::start)).await?;
                (server.url(), Some(server))
            }
        };
        let schema = format!("test_{}", Uuid::new_v4().simple());
        let failed = |reason: String| DevError::Start { part: "postgres", reason };
        execute(&base, format!("CREATE SCHEMA {schema}")).await.map_err(|error| failed(error.to_string()))?;
        let mut url = Url::parse(&base).map_err(|error| failed(error.to_string()))?;
        url.query_pairs_mut().append_pair("options", &format!("-csearch_path={schema}"));
        Ok(Self { url: url.into(), schema, base, _server: server })
    }

    /// The address, whose `options` make the schema the only one on the search path.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let statement = format!("DROP SCHEMA {} CASCADE", self.schema);
        let base = self.base.clone();
        // A drop may happen inside a runtime, where another one cannot block.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(execute(&base, statement))
        })
        .join();
        if !matches!(dropped, Ok(Ok(()))) {
            tracing::debug!(schema = self.schema, "a test's schema was not dropped");
        }
    }
}

async fn execute(url: &str, statement: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await
}

/// A Kafka cluster for a test.
pub enum TestKafka {
    /// The cluster at `ROC4MLLM_TEST_KAFKA`.
    External(String),
    Apache(Arc<ApacheKafka>),
    Mock(Arc<MockKafka>),
}

impl TestKafka {
    /// A cluster that honours transactions: the configured one, else an embedded Apache Kafka.
    pub async fn real() -> Result<Self, DevError> {
        static SERVER: Mutex<Weak<ApacheKafka>> = Mutex::new(Weak::new());
        if let Some(bootstrap) = configured("ROC4MLLM_TEST_KAFKA") {
            return Ok(Self::External(bootstrap));
        }
        let start = || shared(&SERVER, || ApacheKafka::start(&ApacheKafka::default_libraries()));
        blocking("Apache Kafka", start).await.map(Self::Apache)
    }

    /// A cluster for the happy path: the configured one, else librdkafka's mock.
    pub fn light() -> Result<Self, DevError> {
        static SERVER: Mutex<Weak<MockKafka>> = Mutex::new(Weak::new());
        match configured("ROC4MLLM_TEST_KAFKA") {
            Some(bootstrap) => Ok(Self::External(bootstrap)),
            None => shared(&SERVER, MockKafka::start).map(Self::Mock),
        }
    }

    /// `host:port` for `bootstrap.servers`.
    pub fn bootstrap(&self) -> &str {
        match self {
            Self::External(bootstrap) => bootstrap,
            Self::Apache(kafka) => kafka.bootstrap(),
            Self::Mock(kafka) => kafka.bootstrap(),
        }
    }

    /// Creates a topic whose name begins with `name` and is used by no other test.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<String, DevError> {
        let topic = unique(name);
        match self {
            Self::Mock(kafka) => kafka.create_topic(&topic, partitions)?,
            _ => apache_kafka::create_topic(self.bootstrap(), &topic, partitions).await?,
        }
        Ok(topic)
    }
}

/// Whether tests that need a real Kafka are to be skipped: none can be had, and `ALLOW_SKIP=1` says to
/// go on without.
pub fn lacks_kafka() -> bool {
    let allowed = std::env::var("ALLOW_SKIP").is_ok_and(|value| value == "1");
    let libraries = ApacheKafka::default_libraries();
    allowed && configured("ROC4MLLM_TEST_KAFKA").is_none() && !ApacheKafka::is_laid_out(&libraries)
}

/// Whether the calling test is to leave it at that, because no Apache Kafka can be had and
/// `ALLOW_SKIP=1` says to go on without. The skip is put down in the file that `ROC4MLLM_SKIPPED`
/// names; without `ALLOW_SKIP` such a test fails at its broker instead.
pub fn skip_without_kafka() -> bool {
    if !lacks_kafka() {
        return false;
    }
    let libraries = ApacheKafka::default_libraries();
    note_skip(&format!("no Apache Kafka in {}", libraries.display()));
    true
}

/// Whether the calling test is to leave it at that, because `tool` is not there and `ALLOW_SKIP=1` says to go
/// on without. The skip is put down as [`skip_without_kafka`] does.
///
/// # Panics
/// Where the tool is not there and `ALLOW_SKIP` is not set.
pub fn skip_without(tool: &str, is_there: bool) -> bool {
    if is_there {
        return false;
    }
    let allowed = std::env::var("ALLOW_SKIP").is_ok_and(|value| value == "1");
    assert!(allowed, "{tool} is not there; run `make setup`, or set ALLOW_SKIP=1 to go on without");
    note_skip(&format!("no {tool}"));
    true
}

fn note_skip(reason: &str) {
    let current = thread::current();
    let line = format!("{}: {reason}\n", current.name().unwrap_or("a test"));
    let noted = configured("ROC4MLLM_SKIPPED").map(|path| {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        std::io::Write::write_all(&mut file, line.as_bytes())
    });
    if !matches!(noted, Some(Ok(()))) {
        eprint!("skipped {line}");
    }
}

/// A bucket of its own in an S3 server.
pub struct TestS3 {
    endpoint: String,
    bucket: String,
    access_key: String,
    secret_key: String,
    client: aws_sdk_s3::Client,
    // The server stops before its folder goes.
    _server: Option<(S3Server, TempDir)>,
}

impl TestS3 {
    /// In the server at `ROC4MLLM_TEST_S3_ENDPOINT` (an error if nothing listens there), with the
    /// keys in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`; else in an embedded one.
    pub async fn create() -> Result<Self, DevError> {
        let (endpoint, server) = match configured("ROC4MLLM_TEST_S3_ENDPOINT") {
            Some(endpoint) => (endpoint, None),
            None => {
                let folder = crate::dev::scratch::folder("s3")?;
                let server = S3Server::start(folder.path())?;
                (server.endpoint(), Some((server, folder)))
            }
        };
        let key = |variable, embedded: &str| match &server {
            None => configured(variable).unwrap_or_else(|| embedded.to_owned()),
            Some(_) => embedded.to_owned(),
        };
        let access_key = key("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY);
        let secret_key = key("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY);
        let client = client(&endpoint, &access_key, &secret_key);
        let bucket = unique("test");
        client.create_bucket().bucket(&bucket).send().await.map_err(|error| DevError::Start {
            part: "S3 server",
            reason: format!("bucket {bucket} was not created at {endpoint}: {}", DisplayErrorContext(&error)),
        })?;
        Ok(Self { endpoint, bucket, access_key, secret_key, client, _server: server })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    pub fn secret_key(&self) -> &str {
        &self.secret_key
    }

    /// A client with the server's keys.
    pub fn client(&self) -> &aws_sdk_s3::Client {
        &self.client
    }

    /// Uploads an object into the bucket and returns its ETag without quotes.
    pub async fn put(&self, key: &str, content: impl Into<bytes::Bytes>) -> Result<String, DevError> {
        put(&self.client, &self.bucket, key, content.into()).await
    }
}

/// A client for a server of S3's protocol at `endpoint`, with path-style addresses.
pub fn client(endpoint: &str, access_key: &str, secret_key: &str) -> aws_sdk_s3::Client {
    let settings = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(endpoint)
        .region(Region::new(S3Server::REGION))
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "embedded"))
        .force_path_style(true)
        .build();
    aws_sdk_s3::Client::from_conf(settings)
}

/// Uploads an object and returns its ETag without quotes.
pub async fn put(
    client: &aws_sdk_s3::Client,
    bucket: &str,
    key: &str,
    content: bytes::Bytes,
) -> Result<String, DevError> {
    let request = client.put_object().bucket(bucket).key(key).body(content.into());
    let output = request.send().await.map_err(|error| DevError::Start {
        part: "S3 server",
        reason: format!("{bucket}/{key} was not uploaded: {}", DisplayErrorContext(&error)),
    })?;
    Ok(output.e_tag().unwrap_or_default().trim_matches('"').to_owned())
}
