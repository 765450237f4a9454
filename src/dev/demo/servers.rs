//! The embedded Kafka, S3 and Postgres, and the configuration of a worker that uses them.

use super::{DemoArgs, DemoKafka, error::DemoError};
use crate::{
    config::Config,
    dev::{ApacheKafka, DevError, MockKafka, Postgres, S3Server, free_port, s3_client, scratch},
    http::Listen,
    image::ImageSettings,
    kafka::Delivery,
    model::device::Dtype,
    secret::Secret,
    train::options::Trained,
};
use rdkafka::{ClientConfig, producer::FutureProducer};
use std::{net::SocketAddr, path::Path};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

/// The bucket that the photos go to.
pub const BUCKET: &str = "photos";
/// The bucket of what raters vote on.
pub const RATED_BUCKET: &str = "rated";
/// The bucket of the registry's versions.
const MODELS_BUCKET: &str = "models";
pub const INPUT_TOPIC: &str = "uploads";
pub const OUTPUT_TOPIC: &str = "scores";
pub const LABELS_TOPIC: &str = "labels";
const BACKFILL_TOPIC: &str = "scores-backfill";
const DEAD_LETTER_TOPIC: &str = "scores-dead-letters";
/// Spreads what the mock, which keeps 5 MiB a partition, has to hold.
const PARTITIONS: i32 = 8;

/// Every server of the demo. They stop, and their data goes, when this is dropped.
pub struct Servers {
    kafka: Broker,
    postgres: Postgres,
    // Stops before its folder goes.
    s3: S3Server,
    http: SocketAddr,
    _objects: TempDir,
}

enum Broker {
    Mock(MockKafka),
    Apache(ApacheKafka),
}

impl Servers {
    /// Starts all of them, at once, with the topics and the bucket.
    pub async fn start(kafka: DemoKafka, listen: Option<SocketAddr>) -> Result<Self, DemoError> {
        let broker = spawn_blocking(move || match kafka {
            DemoKafka::Embedded => MockKafka::start().map(Broker::Mock),
            DemoKafka::Apache => ApacheKafka::start(&ApacheKafka::default_libraries()).map(Broker::Apache),
        });
        let postgres = spawn_blocking(Postgres::start);
        let (broker, postgres) = tokio::join!(broker, postgres);
        let (kafka, postgres) = (broker??, postgres??);
        let objects = scratch::folder("s3")?;
        let s3 = S3Server::start(objects.path())?;
        for bucket in [BUCKET, RATED_BUCKET, MODELS_BUCKET] {
            s3.create_bucket(bucket)?;
        }
        for topic in [INPUT_TOPIC, OUTPUT_TOPIC, DEAD_LETTER_TOPIC, LABELS_TOPIC, BACKFILL_TOPIC] {
            kafka.create_topic(topic).await?;
        }
        let http = match listen {
            Some(address) => address,
            None => SocketAddr::from(([127, 0, 0, 1], free_port("worker")?)),
        };
        Ok(Self { kafka, postgres, s3, http, _objects: objects })
    }

    /// Stops all of them, off the async threads: some take a second.
    pub async fn stop(self) -> Result<(), DemoError> {
        Ok(spawn_blocking(move || drop(self)).await?)
    }

    pub fn bootstrap(&self) -> &str {
        match &self.kafka {
            Broker::Mock(kafka) => kafka.bootstrap(),
            Broker::Apache(kafka) => kafka.bootstrap(),
        }
    }

    /// Where the worker's probes and metrics are served.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    pub fn s3_client(&self) -> aws_sdk_s3::Client {
        s3_client(&self.s3.endpoint(), S3Server::ACCESS_KEY, S3Server::SECRET_KEY)
    }

    pub fn producer(&self) -> Result<FutureProducer, DemoError> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap()).set("linger.ms", "5");
        Ok(config.create()?)
    }

    /// How outputs are committed: the mock only pretends to honour transactions.
    pub fn delivery(&self) -> Delivery {
        match self.kafka {
            Broker::Mock(_) => Delivery::AtLeastOnce,
            Broker::Apache(_) => Delivery::Transactional,
        }
    }

    /// The configuration that a file would give a worker for these servers.
    pub fn config(&self, args: &DemoArgs, checkpoint: &Path) -> Config {
        let mut config = Config::default();
        config.kafka.brokers = self.bootstrap().into();
        config.kafka.group = "demo".into();
        config.kafka.transactional_id = Some("demo".into());
        config.kafka.input_topics = vec![INPUT_TOPIC.into()];
        config.kafka.output_topic = OUTPUT_TOPIC.into();
        config.kafka.dead_letter_topic = DEAD_LETTER_TOPIC.into();
        config.kafka.delivery = self.delivery();
        // Somebody watches the bar.
        config.kafka.commit_interval_ms = 100;
        config.s3.endpoint = Some(self.s3.endpoint());
        config.s3.region = Some(S3Server::REGION.into());
        config.s3.buckets = vec![BUCKET.into()];
        config.s3.access_key_id = Some(S3Server::ACCESS_KEY.into());
        config.s3.secret_access_key = Some(Secret::from(S3Server::SECRET_KEY));
        // A photo is announced after its upload, so a missing one stays missing.
        config.s3.missing_grace_ms = 1_000;
        config.retry.deadline_ms = 60_000;
        // A folder may well hold nothing but broken files, and nobody is on call for it.
        config.pipeline.dead_letter_hold_ms = 0;
        config.postgres.url = Secret::from(self.postgres.url().as_str());
        config.model.checkpoint = checkpoint.to_string_lossy().into_owned();
        config.model.device = args.device;
        config.model.dtype = args.dtype;
        // The limits of `score`, for a user's own files.
        config.image = ImageSettings::local();
        config.pipeline.max_bytes = config.pipeline.max_bytes.max(config.image.max_bytes);
        config.http.listen = Listen::at(self.http);
        // Somebody watches the page.
        config.http.page.refresh_ms = 1_000;
        if args.serve {
            let token = uuid::Uuid::new_v4().simple().to_string();
            config.http.page.label_token = Secret::from(token.as_str());
            config.http.score.enabled = true;
            config.http.score.token = Secret::from(token.as_str());
        }
        config
    }
}

/// What serving and retraining the registry's champion takes, with what lies on this machine in `folder`.
/// Everything is smaller than in production, so that it takes a minute: the gate asks for as much as it can
/// of sets so small.
pub fn with_registry(config: &mut Config, folder: &Path) {
    config.model.checkpoint = "champion".into();
    config.kafka.labels_topic = Some(LABELS_TOPIC.into());
    config.kafka.backfill_topic = Some(BACKFILL_TOPIC.into());
    config.s3.buckets.push(RATED_BUCKET.into());
    config.registry.publish_to = format!("s3://{MODELS_BUCKET}/demo").parse().ok();
    config.registry.cache_dir = Some(folder.join("versions"));
    config.registry.poll_interval_ms = 500;
    // Training takes the cores that the worker's model has for itself otherwise.
    config.inference.hang_timeout_ms = 300_000;
    config.retrain.work_dir = folder.join("retrain");
    config.retrain.lease_ms = 60_000;
    config.retrain.min_labels = 80;
    config.retrain.gold_share = 0.3;
    config.retrain.replay_share = 2.0;
    config.split.holdout = 0.4;
    config.gate.min_photos = 20;
    config.gate.margin = 0.1;
    config.gate.resamples = 500;
    // What the demo's model sees is laid down, not learned.
    config.train.train = Trained::AbstractorLanguage;
    config.train.max_steps = Some(100);
    config.train.batch_size = 16;
    config.train.learning_rate = 5e-5;
    config.train.device = config.model.device;
    config.train.dtype = Dtype::F32;
}

impl Broker {
    async fn create_topic(&self, topic: &str) -> Result<(), DevError> {
        match self {
            Self::Mock(kafka) => kafka.create_topic(topic, PARTITIONS),
            Self::Apache(kafka) => kafka.create_topic(topic, PARTITIONS).await,
        }
    }
}
