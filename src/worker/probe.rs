//! Whether each dependency answers, within a deadline and by name.

use super::WorkerError;
use crate::{
    config::Config,
    fault::Disposition,
    fetch::{FetchError, Fetcher},
    kafka, registry,
    retry::{RetrySettings, retry},
    store::{Store, StoreError},
};
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
    let answer = patiently(config, deadline, || fetcher.probe(), FetchError::disposition);
    within("S3", &server, deadline, async { Ok(answer.await?) }).await?;
    Ok(fetcher)
}

/// The server accepts the connection.
pub(super) async fn postgres(config: &Config, deadline: Duration) -> Result<Store, WorkerError> {
    let server = config.postgres.server();
    let answer = patiently(config, deadline, || Store::connect(&config.postgres), StoreError::disposition);
    within("Postgres", &server, deadline, async { Ok(answer.await?) }).await
}

/// Asks again while what went wrong may pass; the last answer, once the next one would come too late.
async fn patiently<T, E, F: Future<Output = Result<T, E>>>(
    config: &Config,
    deadline: Duration,
    ask: impl FnMut() -> F,
    disposition: impl Fn(&E) -> Disposition,
) -> Result<T, E> {
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX) / 4 * 3;
    let settings =
        RetrySettings { deadline_ms, max_ms: config.retry.max_ms.min(1_000), ..config.retry.clone() };
    // What needs an operator is said at once: waiting for that is no worker's business before it has begun.
    let passing = |error: &E| match disposition(error) {
        Disposition::Retry => Disposition::Retry,
        _ => Disposition::Stop,
    };
    retry(&settings, ask, passing).await.map_err(|gave_up| gave_up.error)
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
