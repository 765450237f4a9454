//! The `[kafka]` section of the configuration.

use super::Error;
use crate::secret::{Secret, address_without_credentials};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// How outputs and offsets are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Outputs, dead letters and input offsets in one transaction: each output exactly once for
    /// `read_committed` readers.
    Transactional,
    /// For brokers without transactions: outputs first, then offsets; an output may repeat, with the
    /// same id and score.
    AtLeastOnce,
}

/// How connections are secured and authenticated; `security.protocol` in librdkafka's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    Plaintext,
    Tls,
    SaslPlaintext,
    SaslTls,
}

/// The SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SaslMechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
}

/// Credentials for `security = "sasl_plaintext" | "sasl_tls"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SaslSettings {
    pub mechanism: SaslMechanism,
    /// PLAIN and SCRAM.
    pub username: String,
    pub password: Secret,
    /// OAUTHBEARER: a file with a JWT, read again whenever the token runs out, such as a projected
    /// Kubernetes service-account token.
    pub token_file: Option<PathBuf>,
    /// OAUTHBEARER: the OpenID Connect token endpoint for the client-credentials grant, fetched by
    /// librdkafka; needs a build with the feature `oidc`.
    #[serde(deserialize_with = "address_without_credentials")]
    pub token_endpoint: Option<String>,
    pub client_id: String,
    pub client_secret: Secret,
    pub scope: Option<String>,
}

impl Default for SaslSettings {
    fn default() -> Self {
        Self {
            mechanism: SaslMechanism::ScramSha512,
            username: String::new(),
            password: Secret::default(),
            token_file: None,
            token_endpoint: None,
            client_id: String::new(),
            client_secret: Secret::default(),
            scope: None,
        }
    }
}

/// Files for `security = "tls" | "sasl_tls"`, all PEM.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// Authorities that brokers' certificates are checked against; the system's where unset.
    pub ca: Option<PathBuf>,
    /// This client's certificate and private key, for mutual TLS.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub key_password: Secret,
}

/// Everything this module is configured with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSettings {
    /// Bootstrap addresses, `host:port`, separated by commas.
    pub brokers: String,
    /// The consumer group; also the stem of the transactional id.
    pub group: String,
    /// Topics with object notifications.
    pub input_topics: Vec<String>,
    /// Where `backfill` puts what is to be scored beside the uploads. The worker reads it while nothing
    /// waits in `input_topics`.
    pub backfill_topic: Option<String>,
    /// Records of `backfill_topic` that a worker may have in flight, which a live one queues behind.
    pub backfill_records: usize,
    /// Where every item's outcome goes.
    pub output_topic: String,
    /// Where records with permanently bad items go.
    pub dead_letter_topic: String,
    /// Where raters' votes come from; where unset, the worker reads none.
    pub labels_topic: Option<String>,
    pub delivery: Delivery,
    pub security: Security,
    pub sasl: SaslSettings,
    pub tls: TlsSettings,
    /// Must differ between processes that run at once and should survive a restart of one; where
    /// unset, `{group}-{POD_UID or host name}`.
    pub transactional_id: Option<String>,
    /// Where a group without a committed offset begins.
    pub auto_offset_reset: OffsetReset,
    /// A member that has not been heard of for so long loses its partitions.
    pub session_timeout_ms: u32,
    pub heartbeat_interval_ms: u32,
    pub max_poll_interval_ms: u32,
    /// A transaction open for longer is aborted by the broker, and readers wait for it that long.
    pub transaction_timeout_ms: u32,
    /// Retries of one produced record end here; below the transaction timeout.
    pub message_timeout_ms: u32,
    pub socket_timeout_ms: u32,
    /// How often finished work is committed.
    pub commit_interval_ms: u64,
    /// Commit earlier once so many outputs wait.
    pub commit_outputs: usize,
    /// How long a revocation waits for started work and its last commit.
    pub revoke_drain_ms: u64,
    /// How long leaving the group may take at shutdown.
    pub close_timeout_ms: u64,
    /// Records between the poll thread and the pipeline.
    pub queue_records: usize,
    /// Records that librdkafka fetches ahead, and their size in KiB: pausing throws them away.
    pub prefetch_records: u32,
    pub prefetch_kib: u32,
    /// The largest record to produce; detail is left out of larger outputs.
    pub max_record_bytes: u32,
    /// How often the brokers are asked for new partitions, in milliseconds.
    pub metadata_refresh_ms: u32,
    /// How often lag is measured.
    pub lag_interval_ms: u64,
}

/// Where a group without a committed offset begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OffsetReset {
    Earliest,
    Latest,
}

impl Default for KafkaSettings {
    fn default() -> Self {
        Self {
            brokers: "localhost:9092".into(),
            group: "roc4mllm".into(),
            input_topics: vec!["uploads".into()],
            backfill_topic: None,
            backfill_records: 64,
            output_topic: "scores".into(),
            dead_letter_topic: "scores-dead-letters".into(),
            labels_topic: None,
            delivery: Delivery::Transactional,
            security: Security::Plaintext,
            sasl: SaslSettings::default(),
            tls: TlsSettings::default(),
            transactional_id: None,
            auto_offset_reset: OffsetReset::Earliest,
            session_timeout_ms: 30_000,
            heartbeat_interval_ms: 3_000,
            max_poll_interval_ms: 300_000,
            transaction_timeout_ms: 30_000,
            message_timeout_ms: 20_000,
            socket_timeout_ms: 10_000,
            commit_interval_ms: 500,
            commit_outputs: 1_000,
            revoke_drain_ms: 8_000,
            close_timeout_ms: 5_000,
            queue_records: 1_000,
            prefetch_records: 1_000,
            prefetch_kib: 4_096,
            max_record_bytes: 1_000_000,
            metadata_refresh_ms: 30_000,
            lag_interval_ms: 5_000,
        }
    }
}

impl KafkaSettings {
    /// Settings that can't work together, before anything connects.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |setting: &'static str, reason: String| Err(Error::Setting { setting, reason });
        if self.brokers.trim().is_empty() {
            return bad("brokers", "is empty; name at least one host:port".into());
        }
        if self.group.is_empty() {
            return bad("group", "is empty; name a consumer group".into());
        }
        if self.input_topics.is_empty() {
            return bad("input_topics", "is empty; name at least one topic".into());
        }
        let named = [
            ("output_topic", self.output_topic.as_str()),
            ("dead_letter_topic", self.dead_letter_topic.as_str()),
        ];
        let backfill = self.backfill_topic.as_deref().map(|topic| ("backfill_topic", topic));
        let labels = self.labels_topic.as_deref().map(|topic| ("labels_topic", topic));
        let inputs = self.input_topics.iter().map(|topic| ("input_topics", topic.as_str()));
        for (setting, topic) in named.into_iter().chain(inputs).chain(backfill).chain(labels) {
            if let Err(reason) = check_topic_name(topic) {
                return bad(setting, reason);
            }
        }
        for (setting, topic) in named {
            if self.consumed_topics().any(|input| input == topic) {
                return bad(
                    setting,
                    format!("{topic:?} is an input topic too, which would be a loop; use another"),
                );
            }
        }
        if let Some((setting, topic)) = backfill
            && self.input_topics.iter().any(|input| input == topic)
        {
            return bad(
                setting,
                format!("{topic:?} is one of input_topics; live uploads go before it, so use another"),
            );
        }
        if let Some((setting, topic)) = labels
            && self.scored_topics().any(|input| input == topic)
        {
            return bad(
                setting,
                format!("{topic:?} is read for uploads too; votes need a topic of their own"),
            );
        }
        if self.message_timeout_ms >= self.transaction_timeout_ms {
            return bad(
                "message_timeout_ms",
                format!(
                    "{} is not below kafka.transaction_timeout_ms {}; a transaction would end before its records",
                    self.message_timeout_ms, self.transaction_timeout_ms
                ),
            );
        }
        if self.heartbeat_interval_ms >= self.session_timeout_ms {
            return bad(
                "heartbeat_interval_ms",
                "is not below kafka.session_timeout_ms; use a tenth of it".into(),
            );
        }
        if self.session_timeout_ms > self.max_poll_interval_ms {
            return bad("session_timeout_ms", "is above kafka.max_poll_interval_ms; lower it".into());
        }
        if self.revoke_drain_ms >= u64::from(self.max_poll_interval_ms) {
            return bad("revoke_drain_ms", "is not below kafka.max_poll_interval_ms; lower it".into());
        }
        for (setting, zero) in [
            ("commit_interval_ms", self.commit_interval_ms == 0),
            ("backfill_records", self.backfill_records == 0),
            ("commit_outputs", self.commit_outputs == 0),
            ("queue_records", self.queue_records == 0),
            ("metadata_refresh_ms", self.metadata_refresh_ms == 0),
            ("lag_interval_ms", self.lag_interval_ms == 0),
        ] {
            if zero {
                return bad(setting, "is 0; use 1 or more".into());
            }
        }
        self.check_credentials()
    }

    fn check_credentials(&self) -> Result<(), Error> {
        let bad =
            |setting: &'static str, reason: &str| Err(Error::Setting { setting, reason: reason.into() });
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            return bad("tls", "cert and key go together; set both or neither");
        }
        if !matches!(self.security, Security::SaslPlaintext | Security::SaslTls) {
            return Ok(());
        }
        match self.sasl.mechanism {
            SaslMechanism::OauthBearer => match (&self.sasl.token_file, &self.sasl.token_endpoint) {
                (Some(_), None) => Ok(()),
                (None, Some(_)) if self.sasl.client_id.is_empty() || self.sasl.client_secret.is_empty() => {
                    bad("sasl", "token_endpoint needs client_id and client_secret")
                }
                (None, Some(_)) if !cfg!(feature = "oidc") => bad(
                    "sasl.token_endpoint",
                    "needs a build with the feature `oidc`; use token_file instead",
                ),
                (None, Some(_)) => Ok(()),
                _ => bad("sasl", "OAUTHBEARER needs either token_file or token_endpoint"),
            },
            _ if self.sasl.username.is_empty() => bad("sasl.username", "is empty; this mechanism needs one"),
            _ => Ok(()),
        }
    }

    /// The id that Kafka fences this process's transactions by.
    pub fn transactional_id(&self) -> String {
        self.transactional_id.clone().unwrap_or_else(|| format!("{}-{}", self.group, instance_name()))
    }

    /// Topics whose records name objects to score: uploads, then backfills.
    pub fn scored_topics(&self) -> impl Iterator<Item = &str> {
        self.input_topics.iter().chain(&self.backfill_topic).map(String::as_str)
    }

    /// Every topic that the worker reads: those to score, then votes.
    pub fn consumed_topics(&self) -> impl Iterator<Item = &str> {
        self.scored_topics().chain(self.labels_topic.as_deref())
    }

    /// The topics that have to exist, each with the setting that names it.
    pub fn required_topics(&self) -> Vec<(&'static str, &str)> {
        let mut topics: Vec<_> =
            self.input_topics.iter().map(|topic| ("kafka.input_topics", topic.as_str())).collect();
        topics.extend(self.backfill_topic.as_deref().map(|topic| ("kafka.backfill_topic", topic)));
        topics.extend(self.labels_topic.as_deref().map(|topic| ("kafka.labels_topic", topic)));
        topics.push(("kafka.output_topic", &self.output_topic));
        topics.push(("kafka.dead_letter_topic", &self.dead_letter_topic));
        topics
    }

    pub(super) fn commit_interval(&self) -> Duration {
        Duration::from_millis(self.commit_interval_ms)
    }

    pub(super) fn revoke_drain(&self) -> Duration {
        Duration::from_millis(self.revoke_drain_ms)
    }

    pub(super) fn socket_timeout(&self) -> Duration {
        Duration::from_millis(u64::from(self.socket_timeout_ms))
    }
}

/// Kafka's rule for topic names.
fn check_topic_name(topic: &str) -> Result<(), String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if topic.is_empty() || topic.len() > 249 || !topic.bytes().all(legal) || topic == "." || topic == ".." {
        return Err(format!("{topic:?} is no topic name; use 1 to 249 letters, digits, '.', '_' and '-'"));
    }
    Ok(())
}

/// Kubernetes' `POD_UID` where it is passed in, else the host name.
fn instance_name() -> String {
    let named = |variable: &str| std::env::var(variable).ok().filter(|value| !value.is_empty());
    named("POD_UID")
        .or_else(|| named("HOSTNAME"))
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok().map(|name| name.trim().to_owned()))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut KafkaSettings)) -> String {
        let mut settings = KafkaSettings::default();
        change(&mut settings);
        settings.check().expect_err("should be refused").to_string()
    }

    #[test]
    fn the_defaults_work() {
        KafkaSettings::default().check().unwrap();
    }

    #[test]
    fn what_cannot_work_is_named() {
        assert!(refused(|s| s.brokers = " ".into()).starts_with("kafka.brokers"));
        assert!(refused(|s| s.input_topics.clear()).starts_with("kafka.input_topics"));
        assert!(refused(|s| s.input_topics.push("a b".into())).contains("\"a b\""));
        assert!(refused(|s| s.output_topic = "uploads".into()).contains("loop"));
        assert!(refused(|s| s.backfill_topic = Some("scores".into())).contains("loop"));
        assert!(refused(|s| s.labels_topic = Some("scores".into())).contains("loop"));
        assert!(refused(|s| s.labels_topic = Some("uploads".into())).starts_with("kafka.labels_topic"));
        assert!(refused(|s| s.backfill_topic = Some("uploads".into())).starts_with("kafka.backfill_topic"));
        assert!(refused(|s| s.backfill_topic = Some(String::new())).starts_with("kafka.backfill_topic"));
        assert!(refused(|s| s.output_topic = "nul\0".into()).starts_with("kafka.output_topic"));
        assert!(refused(|s| s.message_timeout_ms = 30_000).contains("transaction_timeout_ms"));
        assert!(refused(|s| s.revoke_drain_ms = 300_000).starts_with("kafka.revoke_drain_ms"));
        assert!(refused(|s| s.commit_outputs = 0).starts_with("kafka.commit_outputs"));
        assert!(refused(|s| s.tls.cert = Some("c.pem".into())).starts_with("kafka.tls"));
        assert!(refused(|s| s.security = Security::SaslTls).starts_with("kafka.sasl.username"));
        assert!(
            refused(|s| {
                s.security = Security::SaslTls;
                s.sasl.mechanism = SaslMechanism::OauthBearer;
            })
            .contains("token_file")
        );
    }

    #[test]
    fn printing_it_shows_no_secret() {
        let mut settings = KafkaSettings::default();
        settings.sasl.password = Secret::from("hunter2");
        settings.sasl.client_secret = Secret::from("hunter2");
        settings.tls.key_password = Secret::from("hunter2");
        assert!(!toml::to_string(&settings).unwrap().contains("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = serde_json::from_str::<KafkaSettings>(r#"{"grupp":"g"}"#).unwrap_err();
        assert!(error.to_string().contains("grupp"), "{error}");
    }

    #[test]
    fn names_are_read_as_documented() {
        let text = r#"{"delivery":"at_least_once","security":"sasl_tls","sasl":{"mechanism":"SCRAM-SHA-256","username":"u"}}"#;
        let settings: KafkaSettings = serde_json::from_str(text).unwrap();
        assert_eq!(settings.delivery, Delivery::AtLeastOnce);
        assert_eq!(settings.sasl.mechanism, SaslMechanism::ScramSha256);
        settings.check().unwrap();
    }
}
