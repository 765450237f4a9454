//! No secret shows in anything that the binary lets out: each one is a canary here, every connection fails
//! once and every password is refused once, and all that was written anywhere is searched.

use super::{
    certificates::{Authority, Identity},
    emissions::{Canary, Emissions, pages},
    fronts::Front,
    secured_postgres::SecuredPostgres,
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    producer::{FutureProducer, FutureRecord},
};
use roc4mllm::dev::{ApacheKafka, S3Server};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use url::Url;

const KAFKA_PASSWORD: &str = "CanaryKafkaPassword7c1f";
const KEY_PASSWORD: &str = "CanaryKeyPassword5d20";
const CLIENT_SECRET: &str = "CanaryClientSecret93ae";
const POSTGRES_PASSWORD: &str = "CanaryPostgresPassword41bb";
const POSTGRES_VARIABLE: &str = "CanaryPgpassword88d0";
const SESSION_TOKEN: &str = "CanarySessionToken02fe";
const REFUSED: &str = "CanaryRefused6e93";
const SCORE_TOKEN: &str = "CanaryScoreToken2c55";
const LABEL_TOKEN: &str = "CanaryLabelToken70ad";
const ADDRESS_PASSWORD: &str = "CanaryInAnAddress1b7d";

const CANARIES: &[Canary] = &[
    Canary { of: "kafka.sasl.password", value: KAFKA_PASSWORD },
    Canary { of: "kafka.sasl.client_secret", value: CLIENT_SECRET },
    Canary { of: "kafka.tls.key_password", value: KEY_PASSWORD },
    Canary { of: "postgres.url", value: POSTGRES_PASSWORD },
    Canary { of: "PGPASSWORD", value: POSTGRES_VARIABLE },
    Canary { of: "the S3 secret", value: S3Server::SECRET_KEY },
    Canary { of: "AWS_SESSION_TOKEN", value: SESSION_TOKEN },
    Canary { of: "http.score.token", value: SCORE_TOKEN },
    Canary { of: "http.page.label_token", value: LABEL_TOKEN },
    Canary { of: "a refused password", value: REFUSED },
    Canary { of: "a password in an address", value: ADDRESS_PASSWORD },
];

/// Every setting of the type `Secret`, by file and name. One that is added needs a canary above.
const SETTINGS: [(&str, &str); 7] = [
    ("fetch/mod.rs", "secret_access_key"),
    ("http/settings.rs", "label_token"),
    ("http/settings.rs", "token"),
    ("kafka/config.rs", "client_secret"),
    ("kafka/config.rs", "key_password"),
    ("kafka/config.rs", "password"),
    ("store/pool.rs", "url"),
];

/// All that this crate and librdkafka have to say.
const LOG_LEVEL: &str = "info,roc4mllm=trace,librdkafka=trace";
const WITHIN: Duration = Duration::from_secs(240);

/// Servers that want every secret, each behind a front that breaks the first connection.
struct Servers {
    authority: Authority,
    client: Identity,
    broker: ApacheKafka,
    kafka: Front,
    postgres_server: SecuredPostgres,
    postgres: Front,
    s3_server: S3Server,
    s3: Front,
    _folder: TempDir,
}

impl Servers {
    async fn start() -> Self {
        let authority = Authority::new();
        let server = authority.sign("localhost");
        let client = authority.sign_with_password("worker", KEY_PASSWORD);
        let broker = broker(&authority, &server).await;
        let local = |port: u16| ([127, 0, 0, 1], port).into();
        let kafka = Front::plain(local(broker.second_port().expect("a listener")), 1).await;
        let postgres_server = SecuredPostgres::start(&server).await;
        for statement in [
            format!("CREATE ROLE worker LOGIN PASSWORD '{POSTGRES_PASSWORD}'"),
            format!("CREATE ROLE other LOGIN PASSWORD '{POSTGRES_VARIABLE}'"),
            "CREATE DATABASE photos OWNER worker".to_owned(),
        ] {
            postgres_server.execute(&statement).await;
        }
        let port = Url::parse(&postgres_server.url("localhost", "")).expect("an address").port();
        let postgres = Front::plain(local(port.expect("a port")), 1).await;
        let folder = tempfile::tempdir().expect("a folder");
        let s3_server = S3Server::start(folder.path()).expect("an S3 server");
        s3_server.create_bucket("photos").expect("a bucket");
        let upstream = s3_server.endpoint().trim_start_matches("http://").parse().expect("an address");
        let s3 = Front::tls(&server, upstream, 1).await;
        Self { authority, client, broker, kafka, postgres_server, postgres, s3_server, s3, _folder: folder }
    }

    /// The settings that hold no secret, as variables.
    fn settings(&self) -> Vec<(String, String)> {
        let ca = self.authority.file().display().to_string();
        let settings = [
            ("KAFKA__BROKERS", format!("localhost:{}", self.kafka.port())),
            ("KAFKA__SECURITY", "sasl_tls".into()),
            ("KAFKA__SASL__MECHANISM", "PLAIN".into()),
            ("KAFKA__SASL__USERNAME", "worker".into()),
            ("KAFKA__TLS__CA", ca.clone()),
            ("KAFKA__TLS__CERT", self.client.certificate.display().to_string()),
            ("KAFKA__TLS__KEY", self.client.key.display().to_string()),
            ("S3__ENDPOINT", format!("https://localhost:{}", self.s3.port())),
            ("S3__REGION", S3Server::REGION.into()),
            ("S3__BUCKETS", "photos".into()),
            ("S3__TLS_CA_FILE", ca.clone()),
            ("S3__MISSING_GRACE_MS", "100".into()),
            ("POSTGRES__TLS_CA_FILE", ca),
            ("MODEL__CHECKPOINT", checkpoint().display().to_string()),
            ("PIPELINE__START_TIMEOUT_MS", "60000".into()),
        ];
        settings.map(|(key, value)| (format!("ROC4MLLM__{key}"), value)).into()
    }

    /// The secrets that the servers accept, as variables.
    fn secrets(&self) -> Vec<(String, String)> {
        let url = format!("postgres://worker:{POSTGRES_PASSWORD}@localhost:{}/photos", self.postgres.port());
        let proxy = format!("http://proxy:{ADDRESS_PASSWORD}@127.0.0.1:1");
        let secrets = [
            ("ROC4MLLM__KAFKA__SASL__PASSWORD", KAFKA_PASSWORD),
            ("ROC4MLLM__KAFKA__SASL__CLIENT_SECRET", CLIENT_SECRET),
            ("ROC4MLLM__KAFKA__TLS__KEY_PASSWORD", KEY_PASSWORD),
            ("ROC4MLLM__POSTGRES__URL", &url),
            ("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY),
            ("AWS_SESSION_TOKEN", SESSION_TOKEN),
            ("HTTP_PROXY", &proxy),
            ("HTTPS_PROXY", &proxy),
            ("ALL_PROXY", &proxy),
        ];
        let tokens = [
            ("token", "ROC4MLLM__HTTP__SCORE__TOKEN", SCORE_TOKEN),
            ("token", "ROC4MLLM__HTTP__SCORE__ENABLED", "true"),
            ("label_token", "ROC4MLLM__HTTP__PAGE__LABEL_TOKEN", LABEL_TOKEN),
        ];
        let settings = secret_settings();
        let served = |name: &str| settings.contains(&("http/settings.rs".to_owned(), name.to_owned()));
        let tokens = tokens.into_iter().filter(|(name, ..)| served(name)).map(|(_, key, value)| (key, value));
        secrets.into_iter().chain(tokens).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn command(&self, arguments: &[&str], further: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(arguments).envs(self.settings()).envs(self.secrets());
        command.envs(further.iter().copied()).stdin(Stdio::null());
        command
    }
}

async fn broker(authority: &Authority, server: &Identity) -> ApacheKafka {
    let prefix = "listener.name.proxied";
    let settings = [
        "ssl.keystore.type=PEM".to_owned(),
        format!("ssl.keystore.location={}", server.keystore().display()),
        "ssl.truststore.type=PEM".into(),
        format!("ssl.truststore.location={}", authority.file().display()),
        "ssl.client.auth=required".into(),
        "sasl.enabled.mechanisms=PLAIN".into(),
        format!(
            "plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
             user_worker=\"{KAFKA_PASSWORD}\";"
        ),
    ];
    let settings: String = settings.map(|line| format!("{prefix}.{line}\n")).concat();
    let libraries = ApacheKafka::default_libraries();
    let start = move || ApacheKafka::start_secured(&libraries, "SASL_SSL", &settings);
    let broker = tokio::task::spawn_blocking(start).await.expect("a thread").expect("a broker");
    for topic in ["uploads", "scores", "scores-dead-letters"] {
        broker.create_topic(topic, 1).await.expect("a topic");
    }
    broker
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

fn checkpoint() -> PathBuf {
    fixtures().join("ckpt_safetensors")
}

fn photo() -> PathBuf {
    let photos = fs::read_dir(fixtures().join("images")).expect("pictures");
    photos.map(|entry| entry.expect("a picture").path()).min().expect("a picture")
}

fn keep(emissions: &mut Emissions, origin: &str, output: &Output) -> Option<i32> {
    emissions.add(format!("{origin}: stdout"), String::from_utf8_lossy(&output.stdout));
    emissions.add(format!("{origin}: stderr"), String::from_utf8_lossy(&output.stderr));
    output.status.code()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_anywhere() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let servers = Servers::start().await;
    let mut emissions = Emissions::default();

    // The first connections break here, and Postgres is asked once only.
    let arguments = ["--log-level", LOG_LEVEL, "check-config", "--probe"];
    let broken = servers.command(&arguments, &[]).output().expect("it starts");
    assert_eq!(keep(&mut emissions, "broken connections", &broken), Some(69));
    for format in ["human", "json"] {
        commands(&servers, format, &mut emissions);
        worker(&servers, format, &mut emissions).await;
    }
    for (front, name) in [(&servers.kafka, "Kafka"), (&servers.s3, "S3"), (&servers.postgres, "Postgres")] {
        assert!(front.accepted() > 1, "{name} was not reached again after its first connection broke");
    }
    refusals(&servers, &mut emissions);
    records(&servers, &mut emissions).await;

    // What was searched has something in it: every log, in the most detail, with what secrets stand beside.
    for format in ["human", "json"] {
        let log = emissions.of(&format!("worker, {format}"));
        for sign in ["librdkafka", "DEBUG", "worker"] {
            assert!(log.contains(sign), "no {sign} in the worker's log: {log}");
        }
    }
    assert!(emissions.of("worker, json: /metrics").contains("roc4mllm_"), "metrics were scraped");
    assert!(emissions.of("topic scores-dead-letters").contains("malformed_event"), "there are dead letters");
    assert!(emissions.of("rows").contains("scored"), "there are rows");

    let leaks = emissions.leaks(CANARIES);
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
}

/// Commands that do what they are for.
fn commands(servers: &Servers, format: &str, emissions: &mut Emissions) {
    let logs = ["--log-format", format, "--log-level", LOG_LEVEL];
    let photo = photo().display().to_string();
    let checkpoint = checkpoint().display().to_string();
    let runs: [(&[&str], i32); 7] = [
        (&["check-config"], 0),
        (&["check-config", "--probe"], 0),
        (&["migrate"], 0),
        (&["score", "--format", "jsonl", "--checkpoint", &checkpoint, &photo], 0),
        (&["models", "list"], 0),
        (&["republish", "--dry-run"], 0),
        (&["redrive", "--dry-run"], 0),
    ];
    for (arguments, expected) in runs {
        let output = servers.command(&[&logs, arguments].concat(), &[]).output().expect("it starts");
        let origin = format!("{}, {format}", arguments.join(" "));
        let code = keep(emissions, &origin, &output);
        assert_eq!(code, Some(expected), "{origin}: {}", emissions.of(&origin));
    }
    let own_password = format!("postgres://other@localhost:{}/photos", servers.postgres.port());
    let variables = [("ROC4MLLM__POSTGRES__URL", own_password.as_str()), ("PGPASSWORD", POSTGRES_VARIABLE)];
    let output = servers.command(&[&logs[..], &["check-config", "--probe"]].concat(), &variables).output();
    assert_eq!(keep(emissions, &format!("PGPASSWORD, {format}"), &output.expect("it starts")), Some(0));
}

/// A worker that scores, rejects and misses something; its log, its pages.
async fn worker(servers: &Servers, format: &str, emissions: &mut Emissions) {
    let picture = fs::read(photo()).expect("a picture");
    let key = |name: &str| format!("{format}-{name}.jpg");
    servers.s3_server.put("photos", &key("good"), &picture).expect("an object");
    servers.s3_server.put("photos", &key("bad"), b"no picture").expect("an object");
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", servers.broker.bootstrap())
        .create()
        .expect("a producer");
    let named = |name: &str| serde_json::json!({"bucket": "photos", "key": key(name)}).to_string();
    let other = serde_json::json!({"bucket": "others", "key": key("good")}).to_string();
    let records = [named("good"), named("bad"), named("missing"), other, "{no JSON".to_owned()];
    let before = servers.count_rows().await;
    for record in &records {
        let record = FutureRecord::<(), _>::to("uploads").payload(record);
        producer.send(record, Duration::from_secs(30)).await.expect("delivered");
    }

    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let folder = tempfile::tempdir().expect("a folder");
    let (out, log) = (folder.path().join("out"), folder.path().join("log"));
    let listen = format!("127.0.0.1:{port}");
    let arguments = ["--log-format", format, "--log-level", LOG_LEVEL, "worker"];
    let child = servers
        .command(&arguments, &[("ROC4MLLM__HTTP__LISTEN", listen.as_str())])
        .stdout(File::create(&out).expect("a file"))
        .stderr(File::create(&log).expect("a file"))
        .spawn()
        .expect("the worker starts");
    let mut child = Running(child);
    let deadline = Instant::now() + WITHIN;
    while servers.count_rows().await < before + records.len() {
        let log = || fs::read_to_string(&log).unwrap_or_default();
        assert!(child.0.try_wait().expect("a child").is_none(), "the worker ended: {}", log());
        assert!(Instant::now() < deadline, "not all records have rows after {WITHIN:?}: {}", log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (path, page) in pages(port).await {
        emissions.add(format!("worker, {format}: {path}"), page);
    }
    let status = child.terminate();
    emissions.add(format!("worker, {format}: stdout"), fs::read_to_string(&out).expect("UTF-8"));
    emissions.add(format!("worker, {format}: stderr"), fs::read_to_string(&log).expect("UTF-8"));
    assert_eq!(status, Some(0), "{}", emissions.of(&format!("worker, {format}: stderr")));
}

struct Running(Child);

impl Running {
    fn terminate(&mut self) -> Option<i32> {
        let pid = i32::try_from(self.0.id()).expect("a process id");
        // SAFETY: kill takes no pointers; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        self.0.wait().expect("its end").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Every secret refused by its server, and written where it does not belong.
fn refusals(servers: &Servers, emissions: &mut Emissions) {
    let port = servers.postgres.port();
    let wrong_url = format!("postgres://worker:{REFUSED}@localhost:{port}/photos");
    let no_url = format!("postgres://worker:{ADDRESS_PASSWORD}@localhost:none/photos");
    let no_mode = format!("postgres://worker:{ADDRESS_PASSWORD}@localhost:{port}/photos?sslmode={REFUSED}");
    let address = format!("https://user:{ADDRESS_PASSWORD}@localhost:{}", servers.s3.port());
    let wrong: [(&str, &str, &str); 8] = [
        ("ROC4MLLM__KAFKA__SASL__PASSWORD", REFUSED, "uthentication"),
        ("ROC4MLLM__KAFKA__TLS__KEY_PASSWORD", REFUSED, "ssl.key"),
        ("AWS_SECRET_ACCESS_KEY", REFUSED, "SignatureDoesNotMatch"),
        ("ROC4MLLM__POSTGRES__URL", &wrong_url, "28P01"),
        ("ROC4MLLM__POSTGRES__URL", &no_url, "postgres.url"),
        ("ROC4MLLM__POSTGRES__URL", &no_mode, "postgres.url"),
        ("ROC4MLLM__S3__ENDPOINT", &address, "s3.endpoint"),
        ("ROC4MLLM__KAFKA__SASL__TOKEN_ENDPOINT", &address, "token_endpoint"),
    ];
    for (variable, value, sign) in wrong {
        for format in ["human", "json"] {
            let variables = [(variable, value), ("ROC4MLLM__PIPELINE__START_TIMEOUT_MS", "6000")];
            let arguments = ["--log-format", format, "--log-level", LOG_LEVEL, "check-config", "--probe"];
            let output = servers.command(&arguments, &variables).output().expect("it starts");
            let origin = format!("refused {variable} for {sign}, {format}");
            let code = keep(emissions, &origin, &output);
            let said = emissions.of(&origin);
            assert!(matches!(code, Some(2 | 69)), "{origin} ended with {code:?}: {said}");
            assert!(said.contains(sign), "{origin}: {said}");
        }
    }
    let commands: [&[&str]; 6] = [
        &["worker"],
        &["migrate"],
        &["models", "list"],
        &["republish", "--dry-run"],
        &["labels", "suggest"],
        &["backfill-pg", "--dry-run"],
    ];
    for arguments in commands {
        let variables = [
            ("ROC4MLLM__POSTGRES__URL", wrong_url.as_str()),
            ("ROC4MLLM__KAFKA__SASL__PASSWORD", REFUSED),
            ("ROC4MLLM__PIPELINE__START_TIMEOUT_MS", "6000"),
            ("ROC4MLLM__RETRY__DEADLINE_MS", "2000"),
        ];
        let arguments = [&["--log-level", LOG_LEVEL], arguments].concat();
        let output = servers.command(&arguments, &variables).output().expect("it starts");
        let origin = format!("refused {}", arguments.join(" "));
        assert_ne!(keep(emissions, &origin, &output), Some(0), "{origin}: {}", emissions.of(&origin));
    }

    // A file with a secret that cannot be read says where, and not what.
    let file = tempfile::NamedTempFile::new().expect("a file");
    for content in [
        format!("[kafka.sasl]\npassword = \"{REFUSED}\n"),
        format!("[kafka.sasl]\npassword = {REFUSED}\n"),
        format!("[kafka.sasl]\npassword = [\"{REFUSED}\"]\n"),
        format!("[kafka.sasl]\npasswort = \"{REFUSED}\"\n"),
        format!("[kafka.sasl]\npassword = \"a\" \"{REFUSED}\"\n"),
        format!("[s3]\nsecret_access_key = {{ value = \"{REFUSED}\" }}\n"),
    ] {
        fs::write(file.path(), &content).expect("a file");
        let path = file.path().to_str().expect("UTF-8");
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        let output = command.args(["check-config", "-c", path]).output().expect("it starts");
        let origin = format!("unreadable file {}", content.replace(REFUSED, "…").escape_debug());
        assert_eq!(keep(emissions, &origin, &output), Some(2), "{origin}: {}", emissions.of(&origin));
    }
}

/// What lies in the topics and tables now.
async fn records(servers: &Servers, emissions: &mut Emissions) {
    for topic in ["scores", "scores-dead-letters"] {
        let bootstrap = servers.broker.bootstrap().to_owned();
        let dump = tokio::task::spawn_blocking(move || dump(&bootstrap, topic)).await.expect("a dump");
        emissions.add(format!("topic {topic}"), dump);
    }
    let rows = servers.rows("SELECT to_jsonb(s)::text FROM scores AS s").await;
    emissions.add("rows", rows.join("\n"));
}

impl Servers {
    async fn rows(&self, query: &str) -> Vec<String> {
        self.postgres_server.texts_of("photos", query).await
    }

    async fn count_rows(&self) -> usize {
        self.rows("SELECT id::text FROM scores").await.len()
    }
}

/// Keys, headers and values of a topic of one partition.
fn dump(bootstrap: &str, topic: &str) -> String {
    let timeout = Duration::from_secs(30);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "dump")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, Offset::Beginning).expect("an offset");
    consumer.assign(&assignment).expect("an assignment");
    let mut dump = String::new();
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    loop {
        match consumer.poll(timeout).expect("a record or the end") {
            Ok(message) => {
                for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
                    dump += &format!("{}: {}\n", header.key, text(header.value));
                }
                dump += &format!("{}\n{}\n", text(message.key()), text(message.payload()));
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return dump,
            Err(error) => panic!("{topic}: {error}"),
        }
    }
}

/// The settings of the type `Secret` in the sources, by file and name.
fn secret_settings() -> BTreeSet<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeSet::new();
    for entry in walkdir::WalkDir::new(&root) {
        let entry = entry.expect("a file of the sources");
        if entry.path().extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let file = entry.path().strip_prefix(&root).expect("within").display().to_string();
        for line in fs::read_to_string(entry.path()).expect("UTF-8").lines() {
            let Some((name, kind)) =
                line.trim().strip_prefix("pub ").and_then(|field| field.split_once(": "))
            else {
                continue;
            };
            if kind.trim_end_matches([',', '>']).rsplit(['<', ' ', ':']).next() == Some("Secret") {
                found.insert((file.clone(), name.to_owned()));
            }
        }
    }
    found
}

/// A secret that is added to the configuration must be searched for as well.
#[test]
fn every_secret_has_a_canary() {
    let found = secret_settings();
    let known: BTreeSet<_> = SETTINGS.map(|(file, name)| (file.to_owned(), name.to_owned())).into();
    let unknown: Vec<_> = found.difference(&known).collect();
    assert!(
        unknown.is_empty(),
        "{unknown:?}: give each a canary in this file, and a place in config/load.rs"
    );
    // Those that every build has, so that the search is known to find some.
    let absent: Vec<_> = known.difference(&found).filter(|(file, _)| file != "http/settings.rs").collect();
    assert!(absent.is_empty(), "{absent:?} is no setting any more: take it out of this file");
}
