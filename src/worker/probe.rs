//! Whether each dependency answers, within a deadline and by name.

use super::WorkerError;
use crate::{config::Config, fetch::Fetcher, kafka, registry, store::Store};
use std::{future::Future, time::Duration};

/// What a configuration connects to, a line each.
pub fn targets(config: &Config) -> Vec<String> {
    let s3 = config.s3.endpoint.clone().unwrap_or_else(|| "AWS".into());
    vec![
        format!(
            "Kafka {}: {} -> {}, dead letters {}",
            config.kafka.brokers,
            config.kafka.consumed_topics().collect::<Vec<_>>().join(", "),
            config.kafka.output_topic,
            config.kafka.dead_letter_topic
        ),
        format!("S3 {s3}: {}", config.s3.buckets.join(", ")),
        format!("Postgres {}", config.postgres.server()),
        format!("checkpoint {} on {}", config.model.checkpoint, config.model.device),
    ]
}

/// Tries every connection; a result a target of [`targets`].
pub async fn probe(config: &Config) -> Vec<(String, Result<(), String>)> {
    let deadline = config.pipeline.start_timeout();
    let checkpoint = within("the checkpoint", &config.model.checkpoint, deadline, async {
        Ok(registry::probe(config).await?)
    });
    let (kafka, s3, postgres, checkpoint) =
        tokio::join!(kafka(config, deadline), s3(config, deadline), postgres(config, deadline), checkpoint);
    let shown = |result: Result<(), WorkerError>| result.map_err(|error| error.to_string());
    let results = [shown(kafka), shown(s3.map(drop)), shown(postgres.map(drop)), shown(checkpoint)];
    targets(config).into_iter().zip(results).collect()
}

/// Brokers answer and every configured topic exists.
pub(super) async fn kafka(config: &Config, deadline: Duration) -> Result<(), WorkerError> {
    let settings = config.kafka.clone();
    let probing = tokio::task::spawn_blocking(move || kafka::admin::probe(&settings, deadline));
    // librdkafka keeps its own deadline; this one only guards against it.
    let answer = within("Kafka", &config.kafka.brokers, deadline * 2, async {
        match probing.await {
            Ok(result) => result.map(drop).map_err(WorkerError::from),
            Err(error) => Err(WorkerError::Drain(error.to_string())),
        }
    });
    answer.await
}

/// The server answers; buckets exist.
pub(super) async fn s3(config: &Config, deadline: Duration) -> Result<Fetcher, WorkerError> {
    let fetcher = Fetcher::connect(&config.s3).await?;
    let server = fetcher.server().to_owned();
    within("S3", &server, deadline, async { Ok(fetcher.probe().await?) }).await?;
    Ok(fetcher)
}

/// The server accepts the connection.
pub(super) async fn postgres(config: &Config, deadline: Duration) -> Result<Store, WorkerError> {
    let server = config.postgres.server();
    within("Postgres", &server, deadline, async { Ok(Store::connect(&config.postgres).await?) }).await
}

async fn within<T>(
    dependency: &'static str,
    address: &str,
    deadline: Duration,
    answer: impl Future<Output = Result<T, WorkerError>>,
) -> Result<T, WorkerError> {
    tokio::time::timeout(deadline, answer).await.unwrap_or_else(|_| {
        Err(WorkerError::Silent { dependency, address: address.into(), seconds: deadline.as_secs() })
    })
}
