//! The run itself: take a batch, wait for its turn, enqueue it, note it.

use super::objects::{Objects, Selection, passing, record_of};
use super::pacing::Pace;
use super::progress::Progress;
use super::{BackfillArgs, BackfillError};
use crate::config::Config;
use crate::fetch::Fetcher;
use crate::kafka::producer::RecordProducer;
use crate::kafka::{self, KafkaSettings, admin};
use crate::model;
use crate::object::ObjectRef;
use crate::registry;
use crate::retry::retry;
use crate::store::{BackfillState, Cursor, Store};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const TOPIC_TIMEOUT: Duration = Duration::from_secs(15);

/// How a backfill ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub name: String,
    pub topic: String,
    /// By this run.
    pub enqueued: u64,
    /// By all runs since it was begun.
    pub in_all: u64,
    /// An earlier run had ended it already.
    pub was_finished: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, topic, enqueued, in_all, .. } = self;
        if self.was_finished {
            return writeln!(
                formatter,
                "backfill {name:?} has ended before, with {in_all} objects enqueued to {topic}; --restart begins anew"
            );
        }
        writeln!(formatter, "{enqueued} objects enqueued to {topic}; {in_all} since {name:?} was begun")
    }
}

/// Enqueues what `args` asks for, from where an earlier run of the same left off.
///
/// # Errors
/// [`BackfillError`], whose exit code says what failed. The same command goes on from there.
pub async fn run(config: &Config, args: &BackfillArgs) -> Result<Summary, BackfillError> {
    let kafka = &config.kafka;
    kafka.check()?;
    let topic = topic_of(kafka, args)?;
    let (selection, fetcher) = select(config, args).await?;
    let name = selection.name();
    let store = Store::connect(&config.postgres).await?;
    check_topic(kafka.clone(), topic.clone()).await?;
    let state = store.open_backfill(&name, &topic, args.restart).await?;
    if state.topic != topic {
        return Err(BackfillError::OtherTopic { name, begun: state.topic, asked: topic });
    }
    let mut summary = Summary {
        name,
        topic,
        enqueued: 0,
        in_all: state.enqueued,
        was_finished: state.finished_at.is_some(),
    };
    if summary.was_finished {
        return Ok(summary);
    }
    let objects = Objects { selection, fetcher, store: store.clone(), retry: config.retry.clone() };
    let mut backfill = Backfill {
        producer: RecordProducer::new(kafka)?,
        pace: Pace::new(args.rate, Instant::now()),
        progress: Progress::new(state.enqueued, count_beside(&objects, &state)),
        objects,
        state,
    };
    let outcome = backfill.enqueue_all(args.rate.batch()).await;
    backfill.progress.finish();
    summary.enqueued = backfill.state.enqueued - summary.in_all;
    summary.in_all = backfill.state.enqueued;
    outcome?;
    store.close().await;
    Ok(summary)
}

fn topic_of(kafka: &KafkaSettings, args: &BackfillArgs) -> Result<String, BackfillError> {
    let topic = args.topic.clone().or_else(|| kafka.backfill_topic.clone()).ok_or(BackfillError::NoTopic)?;
    if [&kafka.output_topic, &kafka.dead_letter_topic].contains(&&topic) {
        return Err(BackfillError::Loop(topic));
    }
    if kafka.labels_topic.as_ref() == Some(&topic) {
        return Err(BackfillError::Votes(topic));
    }
    if !kafka.scored_topics().any(|consumed| consumed == topic) {
        tracing::warn!(topic, "no worker of this configuration reads that topic");
    }
    Ok(topic)
}

async fn select(config: &Config, args: &BackfillArgs) -> Result<(Selection, Option<Fetcher>), BackfillError> {
    if let Some(address) = &args.prefix {
        let selection =
            Selection::of_address(address).ok_or_else(|| BackfillError::Address(address.clone()))?;
        if let Selection::Prefix { bucket, .. } = &selection
            && !config.s3.buckets.contains(bucket)
        {
            return Err(BackfillError::Bucket(bucket.clone()));
        }
        return Ok((selection, Some(Fetcher::connect(&config.s3).await?)));
    }
    let not_version = match &args.not_version {
        Some(version) => version.clone(),
        None => {
            let checkpoint = registry::resolve(config).await?;
            let settings = checkpoint.settings(&config.model);
            // Reads the whole checkpoint.
            tokio::task::spawn_blocking(move || model::served_version(&settings))
                .await
                .map_err(|error| BackfillError::Thread(error.to_string()))??
        }
    };
    Ok((Selection::Stored { not_version }, None))
}

async fn check_topic(settings: KafkaSettings, topic: String) -> Result<(), BackfillError> {
    let brokers = settings.brokers.clone();
    let name = topic.clone();
    let found = tokio::task::spawn_blocking(move || admin::partition_count(&settings, &name, TOPIC_TIMEOUT))
        .await
        .map_err(|error| BackfillError::Thread(error.to_string()))??;
    match found {
        Some(_) => Ok(()),
        None => {
            Err(kafka::Error::TopicMissing { topic, setting: "kafka.backfill_topic or --topic", brokers }
                .into())
        }
    }
}

/// Counts what is left beside the work, for the estimate.
fn count_beside(objects: &Objects, state: &BackfillState) -> Arc<OnceLock<u64>> {
    let total = Arc::new(OnceLock::new());
    let (objects, cursor, before) = (objects.clone(), state.cursor.clone(), state.enqueued);
    let counted = Arc::clone(&total);
    tokio::spawn(async move {
        match objects.count(cursor).await {
            // Nobody else sets it.
            Ok(left) => drop(counted.set(before + left)),
            Err(error) => tracing::debug!(%error, "what is left could not be counted"),
        }
    });
    total
}

struct Backfill {
    producer: RecordProducer,
    pace: Pace,
    progress: Progress,
    objects: Objects,
    state: BackfillState,
}

impl Backfill {
    async fn enqueue_all(&mut self, batch_size: usize) -> Result<(), BackfillError> {
        let mut objects = self.objects.after(self.state.cursor.clone());
        let mut batch = Vec::with_capacity(batch_size);
        while let Some(object) = objects.next().await {
            batch.push(object?);
            if batch.len() >= batch_size {
                self.enqueue(&batch).await?;
                batch.clear();
            }
        }
        self.enqueue(&batch).await?;
        let (store, settings) = (&self.objects.store, &self.objects.retry);
        let finish = || store.finish_backfill(&self.state);
        match retry(settings, finish, passing).await.map_err(|gave_up| gave_up.error)? {
            true => Ok(()),
            false => Err(BackfillError::Overtaken(self.state.name.clone())),
        }
    }

    /// Enqueues a batch and, once every record of it is acknowledged, notes it.
    async fn enqueue(&mut self, batch: &[ObjectRef]) -> Result<(), BackfillError> {
        let Some(last) = batch.last() else { return Ok(()) };
        tokio::time::sleep(self.pace.admit(Instant::now(), batch.len())).await;
        let records: Vec<_> = batch.iter().map(record_of).collect();
        let topic = self.state.topic.as_str();
        try_join_all(records.iter().map(|record| self.producer.send(topic, record))).await?;
        let cursor = Cursor { bucket: last.bucket.clone(), key: last.key.clone() };
        let count = batch.len() as u64;
        // Not repeated if the answer is lost: it could have been noted, and the second try would look
        // like another process's. The next run sees what the table says.
        if !self.objects.store.advance_backfill(&self.state, &cursor, count).await? {
            return Err(BackfillError::Overtaken(self.state.name.clone()));
        }
        self.state.enqueued += count;
        self.state.cursor = Some(cursor);
        self.progress.advance(count);
        Ok(())
    }
}
