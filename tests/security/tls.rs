//! Encrypted connections to Kafka, S3 and Postgres, each with an authority of the test's own: the right one
//! is trusted, another one is not, nor is a certificate that names another host.
//!
//! Every certificate is for `localhost`. `127.0.0.1` is the same server by a name that it has not.

use super::{certificates::Authority, fronts::Front, secured_postgres::SecuredPostgres};
use roc4mllm::{
    dev::{ApacheKafka, S3Server},
    fault::Disposition,
    fetch::{FetchError, Fetcher, S3Settings},
    kafka::{
        self, Error, KafkaSettings, admin,
        config::{Security, TlsSettings},
    },
    object::ObjectRef,
    secret::Secret,
    store::{PostgresSettings, Store, StoreError},
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// How long a broker is asked for. One that is not trusted is asked to the end.
const PATIENCE: Duration = Duration::from_secs(60);
const REFUSAL: Duration = Duration::from_secs(6);

/// A broker with an encrypted listener that shows `localhost`'s certificate.
async fn kafka(authority: &Authority) -> ApacheKafka {
    let keystore = authority.sign("localhost").keystore();
    let listener = "listener.name.proxied.ssl";
    let settings = format!(
        "{listener}.keystore.type=PEM\n{listener}.keystore.location={}\n{listener}.client.auth=none\n",
        keystore.display()
    );
    let start = move || ApacheKafka::start_secured(&ApacheKafka::default_libraries(), "SSL", &settings);
    let broker = tokio::task::spawn_blocking(start).await.expect("a thread").expect("a broker");
    for topic in ["uploads", "scores", "scores-dead-letters"] {
        broker.create_topic(topic, 1).await.expect("a topic");
    }
    broker
}

fn kafka_settings(brokers: String, ca: Option<PathBuf>) -> KafkaSettings {
    KafkaSettings {
        brokers,
        security: Security::Tls,
        tls: TlsSettings { ca, ..TlsSettings::default() },
        ..KafkaSettings::default()
    }
}

async fn probe(settings: KafkaSettings, patience: Duration) -> Result<Vec<admin::TopicInfo>, kafka::Error> {
    tokio::task::spawn_blocking(move || admin::probe(&settings, patience)).await.expect("a thread")
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_trusted_by_its_authority_and_its_name() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let (authority, other) = (Authority::new(), Authority::new());
    let broker = kafka(&authority).await;
    let port = broker.second_port().expect("an encrypted listener");
    let named = format!("localhost:{port}");

    let topics =
        probe(kafka_settings(named.clone(), Some(authority.file())), PATIENCE).await.expect("topics");
    assert_eq!(topics.len(), 3);
    for (brokers, ca, case) in [
        (named.clone(), Some(other.file()), "another authority"),
        (named, None, "the system's authorities"),
        (format!("127.0.0.1:{port}"), Some(authority.file()), "another name"),
    ] {
        let error = probe(kafka_settings(brokers.clone(), ca), REFUSAL).await.expect_err(case);
        assert!(matches!(error, Error::Untrusted { .. }), "{case}: {error}");
        assert_eq!(error.disposition(), Disposition::Hold);
        let message = error.to_string();
        assert!(message.contains(&brokers) && message.contains("kafka.tls.ca"), "{case}: {message}");
    }
    let missing = kafka_settings("localhost:1".into(), Some("/nowhere/ca.pem".into()));
    let error = probe(missing, REFUSAL).await.expect_err("a file that is not there").to_string();
    assert!(error.contains("ssl.ca.location"), "{error}");
}

/// An S3 server behind a front that ends TLS, with one object.
struct EncryptedS3 {
    front: Front,
    etag: String,
    _server: S3Server,
    _folder: TempDir,
}

impl EncryptedS3 {
    async fn start(authority: &Authority) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server = S3Server::start(folder.path()).expect("an S3 server");
        server.create_bucket("photos").expect("a bucket");
        let etag = server.put("photos", "a.jpg", b"some bytes").expect("an object");
        let front = Front::tls(&authority.sign("localhost"), upstream(&server), 0).await;
        Self { front, etag, _server: server, _folder: folder }
    }

    fn settings(&self, host: &str, tls_ca_file: Option<PathBuf>) -> S3Settings {
        S3Settings {
            endpoint: Some(format!("https://{host}:{}", self.front.port())),
            region: Some(S3Server::REGION.into()),
            buckets: vec!["photos".into()],
            access_key_id: Some(S3Server::ACCESS_KEY.into()),
            secret_access_key: Some(Secret::from(S3Server::SECRET_KEY)),
            tls_ca_file,
            ..S3Settings::default()
        }
    }
}

fn upstream(server: &S3Server) -> SocketAddr {
    server.endpoint().strip_prefix("http://").expect("a plain server").parse().expect("an address")
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_is_trusted_by_its_authority_and_its_name() {
    let (authority, other) = (Authority::new(), Authority::new());
    let s3 = EncryptedS3::start(&authority).await;
    let object = ObjectRef { etag: Some(s3.etag.clone()), ..ObjectRef::new("photos", "a.jpg") };

    let trusting =
        Fetcher::connect(&s3.settings("localhost", Some(authority.file()))).await.expect("a client");
    trusting.probe().await.expect("a server to trust");
    assert_eq!(&trusting.fetch(&object, 1 << 20).await.expect("the object").bytes[..], b"some bytes");
    for (host, ca, case) in [
        ("localhost", Some(other.file()), "another authority"),
        ("localhost", None, "the system's authorities"),
        ("127.0.0.1", Some(authority.file()), "another name"),
    ] {
        let fetcher = Fetcher::connect(&s3.settings(host, ca)).await.expect("a client");
        for error in
            [fetcher.probe().await.expect_err(case), fetcher.fetch(&object, 1 << 20).await.expect_err(case)]
        {
            assert!(matches!(error, FetchError::Untrusted { .. }), "{case}: {error}");
            assert_eq!(error.disposition(), Disposition::Hold);
            let message = error.to_string();
            assert!(message.contains("s3.tls_ca_file") && message.contains(host), "{case}: {message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_trusted_by_its_authority_and_its_name() {
    let (authority, other) = (Authority::new(), Authority::new());
    let postgres = SecuredPostgres::start(&authority.sign("localhost")).await;
    let connect = async |url: String, tls_ca_file: Option<PathBuf>| {
        let settings =
            PostgresSettings { url: Secret::from(url.as_str()), tls_ca_file, ..Default::default() };
        Store::connect(&settings).await
    };
    let in_url = |ca: PathBuf| format!("sslmode=verify-full&sslrootcert={}", ca.display());

    // An authority alone is enough to be checked.
    let store =
        connect(postgres.url("localhost", ""), Some(authority.file())).await.expect("a server to trust");
    store.migrate().await.expect("a schema");
    assert!(store.champion().await.expect("an answer").is_none());
    assert_eq!(postgres.encrypted_connections().await, (true, 1), "the pool keeps an encrypted connection");
    store.close().await;
    connect(postgres.url("localhost", &in_url(authority.file())), None).await.expect("a server to trust");

    for (url, ca, case) in [
        (postgres.url("localhost", ""), Some(other.file()), "another authority"),
        (postgres.url("localhost", "sslmode=verify-full"), None, "the public authorities"),
        (postgres.url("localhost", &in_url(other.file())), None, "another authority in the address"),
        (postgres.url("127.0.0.1", ""), Some(authority.file()), "another name"),
    ] {
        let error = connect(url, ca).await.expect_err(case);
        assert!(matches!(error, StoreError::Untrusted { .. }), "{case}: {error}");
        assert_eq!(error.disposition(), Disposition::Hold);
        assert!(error.to_string().contains("postgres.tls_ca_file"), "{case}: {error}");
    }
    postgres.execute("ALTER SYSTEM SET ssl = off").await;
    postgres.execute("SELECT pg_reload_conf()").await;
    // Until the postmaster has taken the setting, the connection is encrypted and fine.
    let error = loop {
        match connect(postgres.url("localhost", ""), Some(authority.file())).await {
            Ok(store) => store.close().await,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Untrusted { .. }), "nothing goes unencrypted: {error}");
}

/// What an operator sees: one line a dependency, with what to do.
#[tokio::test(flavor = "multi_thread")]
async fn check_config_says_what_is_not_trusted() {
    if roc4mllm::dev::skip_without_kafka() {
        return;
    }
    let (authority, other) = (Authority::new(), Authority::new());
    let (broker, s3) = (kafka(&authority).await, EncryptedS3::start(&authority).await);
    let postgres = SecuredPostgres::start(&authority.sign("localhost")).await;
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/ckpt_safetensors");
    let check = |ca: PathBuf, start_timeout: &str| {
        let port = broker.second_port().expect("an encrypted listener");
        let ca = ca.display();
        let settings = [
            format!("kafka.brokers=localhost:{port}"),
            "kafka.security=tls".into(),
            format!("kafka.tls.ca={ca}"),
            format!("s3.endpoint=https://localhost:{}", s3.front.port()),
            "s3.buckets=[\"photos\"]".into(),
            format!("s3.access_key_id={}", S3Server::ACCESS_KEY),
            format!("s3.secret_access_key={}", S3Server::SECRET_KEY),
            format!("s3.tls_ca_file={ca}"),
            format!("postgres.url={}", postgres.url("localhost", "")),
            format!("postgres.tls_ca_file={ca}"),
            format!("model.checkpoint={}", checkpoint.display()),
            format!("pipeline.start_timeout_ms={start_timeout}"),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(["check-config", "--probe"]);
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        let output = command.output().expect("the binary starts");
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let (code, shown) = check(authority.file(), "60000");
    assert_eq!(code, Some(0), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.ends_with(": ok")).count(), 4, "{shown}");
    let (code, shown) = check(other.file(), "8000");
    assert_eq!(code, Some(69), "{shown}");
    for remedy in ["kafka.tls.ca", "s3.tls_ca_file", "postgres.tls_ca_file"] {
        let line = shown.lines().find(|line| line.starts_with("# ") && line.contains(remedy));
        assert!(line.is_some(), "no line names {remedy}: {shown}");
    }
}
