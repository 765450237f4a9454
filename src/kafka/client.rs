//! librdkafka clients: their configuration, and the context that their logs and tokens go through.

use super::Error;
use super::config::{Delivery, KafkaSettings, OffsetReset, SaslMechanism, Security};
use super::rebalance::SourceContext;
use super::source::SourceConsumer;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::admin::AdminClient;
use rdkafka::client::OAuthToken;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a token without a readable expiry is used.
const TOKEN_LIFETIME: Duration = Duration::from_secs(300);

/// How much of a partition one fetch brings. What is asked for here is compressed, and what is prefetched is only
/// counted once it is unpacked: with librdkafka's megabyte, a long backlog of records that compress well lay in
/// memory many times as large as the settings allow. A larger batch of records still comes whole (KIP-74).
const FETCH_BYTES: u32 = 64 << 10;

/// The facility of librdkafka's debug line about a connection that broke. No callback tells of one that
/// the other side closed, after which the library sends requests again by itself.
const BROKEN_CONNECTION: &str = "FAIL";

/// What a client is for; shown in logs and as part of its client id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientRole {
    Source,
    Lookup,
    Committer,
    Producer,
    Reader,
    Probe,
}

impl ClientRole {
    fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Lookup => "lookup",
            Self::Committer => "committer",
            Self::Producer => "producer",
            Self::Reader => "reader",
            Self::Probe => "probe",
        }
    }
}

/// Receives a client's logs, errors and requests for tokens.
pub(super) struct Context {
    role: ClientRole,
    token_file: Option<PathBuf>,
    transport_errors: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Context {
    pub fn new(role: ClientRole, settings: &KafkaSettings) -> Self {
        let oauth = settings.sasl.mechanism == SaslMechanism::OauthBearer;
        Self {
            role,
            token_file: settings.sasl.token_file.clone().filter(|_| oauth),
            transport_errors: AtomicU64::new(0),
            last_error: Mutex::new(None),
        }
    }

    /// How often a connection has failed so far.
    pub fn transport_errors(&self) -> u64 {
        self.transport_errors.load(Ordering::Relaxed)
    }

    /// The last error that librdkafka reported by itself, such as a refused connection.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == BROKEN_CONNECTION {
            self.transport_errors.fetch_add(1, Ordering::Relaxed);
        }
        let role = self.role.as_str();
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => tracing::error!(target: "librdkafka", role, facility, "{message}"),
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", role, facility, "{message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", role, facility, "{message}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", role, facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let transport = [
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::AllBrokersDown,
            RDKafkaErrorCode::OperationTimedOut,
        ];
        if error.rdkafka_error_code().is_some_and(|code| transport.contains(&code)) {
            self.transport_errors.fetch_add(1, Ordering::Relaxed);
        }
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some() && error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            // It follows the error that says why, at every attempt to connect, while librdkafka repeats that
            // one now and then.
            tracing::debug!(target: "librdkafka", role = self.role.as_str(), %error, "{reason}");
            return;
        }
        *last = Some(reason.to_owned());
        tracing::warn!(target: "librdkafka", role = self.role.as_str(), %error, "{reason}");
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let file = self.token_file.as_ref().ok_or("kafka.sasl.token_file is not set")?;
        let token = std::fs::read_to_string(file)
            .map_err(|error| format!("kafka.sasl.token_file {}: {error}", file.display()))?;
        let token = token.trim().to_owned();
        let claims = Claims::of(&token);
        let lifetime_ms = claims.expires_ms.unwrap_or_else(|| {
            (SystemTime::now() + TOKEN_LIFETIME).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
                as i64
        });
        Ok(OAuthToken { token, principal_name: claims.subject.unwrap_or_default(), lifetime_ms })
    }
}

impl ConsumerContext for Context {}

/// What is needed of a JWT's claims; the broker checks the signature.
#[derive(Debug, Default, PartialEq, Eq)]
struct Claims {
    expires_ms: Option<i64>,
    subject: Option<String>,
}

impl Claims {
    fn of(token: &str) -> Self {
        let decoded = token.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
        let claims = decoded.and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
        let Some(claims) = claims else { return Self::default() };
        Self {
            expires_ms: claims["exp"].as_f64().map(|seconds| (seconds * 1000.0) as i64),
            subject: claims["sub"].as_str().map(|subject| subject.replace('\0', "")),
        }
    }
}

/// The consumer of the input topics.
pub(super) fn source_consumer(
    settings: &KafkaSettings,
    context: SourceContext,
) -> Result<SourceConsumer, Error> {
    let mut config = group_config(settings, ClientRole::Source);
    config
        .set(
            "auto.offset.reset",
            match settings.auto_offset_reset {
                OffsetReset::Earliest => "earliest",
                OffsetReset::Latest => "latest",
            },
        )
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", settings.session_timeout_ms.to_string())
        .set("heartbeat.interval.ms", settings.heartbeat_interval_ms.to_string())
        .set("max.poll.interval.ms", settings.max_poll_interval_ms.to_string());
    prefetch(&mut config, settings);
    create(settings, &config, context)
}

/// How far a consumer reads ahead, and how much a fetch brings.
fn prefetch(config: &mut ClientConfig, settings: &KafkaSettings) {
    config
        .set("fetch.message.max.bytes", FETCH_BYTES.to_string())
        .set("queued.min.messages", settings.prefetch_records.to_string())
        .set("queued.max.messages.kbytes", settings.prefetch_kib.to_string());
}

/// A consumer that is no member of the group and reads what the group committed.
pub(super) fn lookup_consumer(settings: &KafkaSettings) -> Result<BaseConsumer<Context>, Error> {
    let config = group_config(settings, ClientRole::Lookup);
    let consumer = create(settings, &config, Context::new(ClientRole::Lookup, settings))?;
    serve(&consumer, Duration::from_millis(50));
    Ok(consumer)
}

/// A consumer for reading partitions by hand, without the group: committed records only.
pub(super) fn reader_consumer(settings: &KafkaSettings) -> Result<BaseConsumer<Context>, Error> {
    let mut config = group_config(settings, ClientRole::Reader);
    config.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
    prefetch(&mut config, settings);
    create(settings, &config, Context::new(ClientRole::Reader, settings))
}

/// A client that sees where topics really end, open transactions included.
pub(super) fn extent_client(settings: &KafkaSettings) -> Result<BaseConsumer<Context>, Error> {
    let mut config = group_config(settings, ClientRole::Reader);
    config.set("isolation.level", "read_uncommitted");
    let client = create(settings, &config, Context::new(ClientRole::Reader, settings))?;
    serve(&client, Duration::from_millis(20));
    Ok(client)
}

/// Logs and requests for tokens are served by polling, also on a consumer that consumes nothing.
pub(super) fn serve(consumer: &BaseConsumer<Context>, time: Duration) {
    let deadline = Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Without a subscription a poll returns errors at most, and the context has logged those.
        let _ = consumer.poll(left);
        if left == Duration::ZERO {
            return;
        }
    }
}

/// A client that only reads metadata.
pub(super) fn probe_client(settings: &KafkaSettings) -> Result<BaseConsumer<Context>, Error> {
    let config = base_config(settings, ClientRole::Probe);
    create(settings, &config, Context::new(ClientRole::Probe, settings))
}

/// A client that asks for the configuration of topics.
pub(super) fn admin_client(settings: &KafkaSettings) -> KafkaResult<AdminClient<Context>> {
    base_config(settings, ClientRole::Probe).create_with_context(Context::new(ClientRole::Probe, settings))
}

/// The configuration of a producer; transactional only for the committer of that mode.
pub(super) fn producer_config(settings: &KafkaSettings, role: ClientRole) -> ClientConfig {
    let mut config = base_config(settings, role);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("compression.type", "zstd")
        .set("linger.ms", "2")
        .set("message.timeout.ms", settings.message_timeout_ms.to_string())
        .set("message.max.bytes", settings.max_record_bytes.to_string());
    if role == ClientRole::Committer && settings.delivery == Delivery::Transactional {
        config
            .set("transactional.id", settings.transactional_id())
            .set("transaction.timeout.ms", settings.transaction_timeout_ms.to_string())
            // Among its few lines is the one that [`Context`] counts broken connections by.
            .set("debug", "broker")
            .set_log_level(RDKafkaLogLevel::Debug);
    }
    config
}

fn group_config(settings: &KafkaSettings, role: ClientRole) -> ClientConfig {
    let mut config = base_config(settings, role);
    config
        .set("group.id", &settings.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Also makes reads of committed offsets wait for open transactions instead of missing them.
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "false")
        .set("topic.metadata.refresh.interval.ms", settings.metadata_refresh_ms.to_string())
        .set("allow.auto.create.topics", "false");
    config
}

fn base_config(settings: &KafkaSettings, role: ClientRole) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.brokers)
        .set("client.id", format!("{}-{}", settings.group, role.as_str()))
        .set("socket.timeout.ms", settings.socket_timeout_ms.to_string())
        .set("socket.keepalive.enable", "true")
        .set("log.connection.close", "false")
        .set_log_level(RDKafkaLogLevel::Info);
    secure(settings, &mut config);
    config
}

fn secure(settings: &KafkaSettings, config: &mut ClientConfig) {
    let (protocol, tls, sasl) = match settings.security {
        Security::Plaintext => ("plaintext", false, false),
        Security::Tls => ("ssl", true, false),
        Security::SaslPlaintext => ("sasl_plaintext", false, true),
        Security::SaslTls => ("sasl_ssl", true, true),
    };
    config.set("security.protocol", protocol);
    if tls {
        let files = [
            ("ssl.ca.location", &settings.tls.ca),
            ("ssl.certificate.location", &settings.tls.cert),
            ("ssl.key.location", &settings.tls.key),
        ];
        for (property, file) in files {
            if let Some(file) = file {
                config.set(property, file.to_string_lossy());
            }
        }
        if !settings.tls.key_password.is_empty() {
            config.set("ssl.key.password", settings.tls.key_password.expose());
        }
    }
    if sasl {
        secure_sasl(settings, config);
    }
}

fn secure_sasl(settings: &KafkaSettings, config: &mut ClientConfig) {
    let sasl = &settings.sasl;
    let mechanism = match sasl.mechanism {
        SaslMechanism::Plain => "PLAIN",
        SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
        SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        SaslMechanism::OauthBearer => "OAUTHBEARER",
    };
    config.set("sasl.mechanism", mechanism);
    if sasl.mechanism != SaslMechanism::OauthBearer {
        config.set("sasl.username", &sasl.username).set("sasl.password", sasl.password.expose());
    } else if let Some(endpoint) = &sasl.token_endpoint {
        config
            .set("sasl.oauthbearer.method", "oidc")
            .set("sasl.oauthbearer.token.endpoint.url", endpoint)
            .set("sasl.oauthbearer.client.id", &sasl.client_id)
            .set("sasl.oauthbearer.client.secret", sasl.client_secret.expose());
        if let Some(scope) = &sasl.scope {
            config.set("sasl.oauthbearer.scope", scope);
        }
    }
}

/// Makes a client, or says which brokers it was for.
pub(super) fn create<T, C>(settings: &KafkaSettings, config: &ClientConfig, context: C) -> Result<T, Error>
where
    T: FromClientConfigAndContext<C>,
    C: ClientContext,
{
    config.create_with_context(context).map_err(|source| refused(settings, source))
}

pub(super) fn refused(settings: &KafkaSettings, source: KafkaError) -> Error {
    Error::Client { brokers: settings.brokers.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn settings() -> KafkaSettings {
        KafkaSettings { brokers: "b1:9092,b2:9092".into(), group: "g".into(), ..KafkaSettings::default() }
    }

    #[test]
    fn the_source_follows_the_documented_defaults() {
        let config = group_config(&settings(), ClientRole::Source);
        assert_eq!(config.get("enable.auto.commit"), Some("false"));
        assert_eq!(config.get("enable.auto.offset.store"), Some("false"));
        assert_eq!(config.get("isolation.level"), Some("read_committed"));
        assert_eq!(config.get("group.instance.id"), None);
    }

    #[test]
    fn only_the_transactional_committer_has_a_transactional_id() {
        let mut settings = settings();
        settings.transactional_id = Some("t".into());
        assert_eq!(producer_config(&settings, ClientRole::Committer).get("transactional.id"), Some("t"));
        assert_eq!(producer_config(&settings, ClientRole::Producer).get("transactional.id"), None);
        settings.delivery = Delivery::AtLeastOnce;
        assert_eq!(producer_config(&settings, ClientRole::Committer).get("transactional.id"), None);
        assert_eq!(
            producer_config(&settings, ClientRole::Committer).get("partitioner"),
            Some("murmur2_random")
        );
    }

    #[test]
    fn every_mechanism_makes_a_client() {
        for mechanism in [
            SaslMechanism::Plain,
            SaslMechanism::ScramSha256,
            SaslMechanism::ScramSha512,
            SaslMechanism::OauthBearer,
        ] {
            let mut settings = settings();
            settings.brokers = "127.0.0.1:1".into();
            settings.security = Security::SaslTls;
            settings.sasl.mechanism = mechanism;
            settings.sasl.username = "u".into();
            settings.sasl.password = Secret::from("p");
            settings.sasl.token_file = Some("/nowhere".into());
            probe_client(&settings).unwrap();
        }
    }

    #[test]
    fn a_tokens_expiry_and_subject_are_read() {
        let claims = URL_SAFE_NO_PAD.encode(br#"{"exp":1700000000,"sub":"worker"}"#);
        let expected = Claims { expires_ms: Some(1_700_000_000_000), subject: Some("worker".into()) };
        assert_eq!(Claims::of(&format!("h.{claims}.s")), expected);
        assert_eq!(Claims::of("opaque"), Claims::default());
    }

    #[test]
    fn a_token_file_is_read_again_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut settings = settings();
        settings.sasl.mechanism = SaslMechanism::OauthBearer;
        settings.sasl.token_file = Some(file.path().into());
        let context = Context::new(ClientRole::Probe, &settings);
        std::fs::write(file.path(), "one\n").unwrap();
        assert_eq!(context.generate_oauth_token(None).unwrap().token, "one");
        std::fs::write(file.path(), "two").unwrap();
        assert_eq!(context.generate_oauth_token(None).unwrap().token, "two");
    }
}
