//! The whole configuration: one section a module, files below environment below flags.

mod load;

pub use load::{ConfigError, load, render};

use crate::{
    evaluate::GateSettings,
    fetch::S3Settings,
    http::HttpSettings,
    image::ImageSettings,
    inference::InferenceSettings,
    kafka::KafkaSettings,
    labels::{LabelsSettings, Scale, ScaleSettings},
    model::ModelSettings,
    model::config::ModelConfig,
    pipeline::{PipelineSettings, ReuseSettings},
    registry::RegistrySettings,
    retrain::RetrainSettings,
    retry::RetrySettings,
    serving::ServingSettings,
    split::SplitSettings,
    store::PostgresSettings,
    telemetry::TelemetrySettings,
    train::TrainOptions,
};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Everything the worker reads from `config/worker.toml` and the environment, and retraining from
/// `config/retrain.toml`.
///
/// Unknown keys are errors. Secrets serialize as `[redacted]`, so this may be printed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub kafka: KafkaSettings,
    pub s3: S3Settings,
    pub postgres: PostgresSettings,
    pub model: ModelSettings,
    pub registry: RegistrySettings,
    pub serving: ServingSettings,
    pub inference: InferenceSettings,
    pub image: ImageSettings,
    pub pipeline: PipelineSettings,
    pub reuse: ReuseSettings,
    pub retry: RetrySettings,
    pub labels: LabelsSettings,
    pub retrain: RetrainSettings,
    pub train: TrainOptions,
    pub split: SplitSettings,
    pub gate: GateSettings,
    pub http: HttpSettings,
    pub telemetry: TelemetrySettings,
}

impl Config {
    /// What one section alone cannot know: required keys and sections that contradict each other.
    ///
    /// # Errors
    /// Names the key, the reason and the remedy.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: &str| Err(ConfigError::invalid(key, reason));
        let kafka = &self.kafka;
        kafka.check().map_err(|error| ConfigError::Kafka(error.to_string()))?;
        if kafka.output_topic == kafka.dead_letter_topic {
            return invalid("kafka.dead_letter_topic", "is the output topic; use another topic");
        }
        if self.s3.buckets.is_empty() {
            return invalid("s3.buckets", "is empty; list the buckets that records may name");
        }
        if self.s3.hedge_percent > 100 {
            return invalid("s3.hedge_percent", "is above 100; give the share of requests in percent");
        }
        if self.postgres.url.expose().is_empty() {
            return invalid("postgres.url", "is empty; give a `postgres://` address");
        }
        if self.model.checkpoint.is_empty() {
            return invalid(
                "model.checkpoint",
                "is empty; give a checkpoint folder, an s3:// address or `champion`",
            );
        }
        if self.registry.keep_versions == 0 {
            return invalid(
                "registry.keep_versions",
                "is 0, which leaves no room for the model itself; keep 1 or more",
            );
        }
        if self.registry.poll_interval_ms == 0 {
            return invalid(
                "registry.poll_interval_ms",
                "is 0, which would never let Postgres rest; give milliseconds",
            );
        }
        if self.pipeline.max_items < self.inference.batch_size {
            return invalid(
                "pipeline.max_items",
                "is below inference.batch_size, so no batch could fill; raise it",
            );
        }
        if self.pipeline.max_bytes < self.image.max_bytes {
            return invalid(
                "pipeline.max_bytes",
                "is below image.max_bytes, so the largest image could never enter; raise it",
            );
        }
        if let Err((key, reason)) = self.labels.check() {
            return invalid(key, reason);
        }
        if let Err((key, reason)) = self.http.check() {
            return invalid(key, reason);
        }
        self.telemetry.check().map_err(|(key, reason)| ConfigError::invalid(key, &reason))
    }

    /// What retraining needs beside what each section knows: places to read from and to publish to.
    ///
    /// # Errors
    /// Names the key, the reason and the remedy.
    pub fn check_retrain(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: &str| Err(ConfigError::invalid(key, reason));
        if self.postgres.url.expose().is_empty() {
            return invalid("postgres.url", "is empty; give a `postgres://` address");
        }
        if self.s3.buckets.is_empty() {
            return invalid("s3.buckets", "is empty; list the buckets that labels may name");
        }
        if self.registry.publish_to.is_none() {
            return invalid("registry.publish_to", "is not set; give the s3://bucket/prefix of versions");
        }
        if let Err((key, reason)) = self.labels.check() {
            return invalid(key, reason);
        }
        if let Err((key, reason)) = self.retrain.check() {
            return invalid(key, reason);
        }
        if !(self.split.holdout > 0.0 && self.split.holdout < 1.0) {
            return invalid(
                "split.holdout",
                "leaves nothing to learn from or to judge by; give a share such as 0.1",
            );
        }
        self.gate.check().map_err(|error| ConfigError::Other(error.to_string()))?;
        self.train.check().map_err(|error| ConfigError::Other(format!("[train]: {error}")))
    }

    /// The scale that votes are checked against: `labels.scale`, or that of the checkpoint folder, or what
    /// the paper's checkpoints have.
    ///
    /// # Errors
    /// When `labels.scale` is none, or the checkpoint folder's `config.json` can't be read.
    pub fn label_scale(&self) -> Result<Scale, ConfigError> {
        self.labels.check().map_err(|(key, reason)| ConfigError::invalid(key, reason))?;
        if let Some(ScaleSettings { min_score, max_score, num_tokens }) = self.labels.scale {
            return Ok(Scale { min_score, max_score, num_tokens });
        }
        let folder = Path::new(&self.model.checkpoint);
        if !folder.join("config.json").is_file() {
            return Ok(Scale::PAPER);
        }
        let model = ModelConfig::read(folder)
            .map_err(|error| ConfigError::invalid("model.checkpoint", &error.to_string()))?;
        let head = model.score.and_then(|head| {
            Scale::new(head.min_score, head.max_score, usize::try_from(head.num_tokens).unwrap_or_default())
        });
        Ok(head.unwrap_or(Scale::PAPER))
    }
}
