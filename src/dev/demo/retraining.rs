//! The whole loop once: raters come to like something else, a challenger is trained and judged, the worker
//! switches, and what was scored is scored again.

use super::{
    Demo, DemoError, agreement, count,
    outputs::OutputReader,
    photos::Photo,
    raters::{self, Part, RATERS, Rated},
    say,
    scoring::ask,
    servers::{BUCKET, LABELS_TOPIC, RATED_BUCKET},
    unless_asked,
};
use crate::{
    backfill::{self, BackfillArgs, pacing::Rate},
    config::Config,
    dev::s3_put,
    labels::LabelledObject,
    models_command::{self, Format, ModelsCommand, ModelsError, PublishArgs, Shown},
    record::output::OutputRecord,
    retrain::{self, Finish},
    score::ItemStatus,
    store::{RegisteredVersion, ScoreRow, Store},
};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use std::{
    collections::{HashMap, HashSet},
    future::Future,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Parts of photographs, of either kind, that are enough to learn from and to judge by.
const ENOUGH: usize = 80;
const UPLOADS: usize = 8;
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Nothing but training takes longer, unless it has got stuck.
const PATIENCE: Duration = Duration::from_secs(300);

/// Makes the checkpoint the first champion of the registry, which the worker then serves.
pub(super) async fn publish_first(
    config: &Config,
    checkpoint: &Path,
    trained_on_labels: bool,
) -> Result<(), DemoError> {
    let publish = PublishArgs {
        folder: checkpoint.to_owned(),
        promote: !trained_on_labels,
        gate: false,
        trained_on_labels,
        parent: None,
        metrics: None,
    };
    models_command::run(config, &ModelsCommand::Publish(publish), &mut std::io::sink()).await?;
    Ok(())
}

impl Demo<'_> {
    /// Goes round the loop. `asked` ends it early.
    pub(super) async fn go_round(
        &self,
        config: &Config,
        photos: &[Photo],
        asked: &CancellationToken,
        out: &mut dyn Write,
    ) -> Result<(), DemoError> {
        say(out, "\nNow the whole loop once: labels, retraining, gate, switch, rescoring.")?;
        let store = Store::connect(&config.postgres).await?;
        let paths: Vec<_> = photos.iter().map(|photo| photo.path.clone()).collect();
        let rated =
            tokio::task::spawn_blocking(move || raters::rate(paths.iter().map(|path| path.as_path())))
                .await?;
        if rated.known.len() < ENOUGH || rated.new.len() < ENOUGH {
            return say(
                out,
                "It is left out: there are too few photographs to learn from (two dozen are enough).",
            );
        }
        let labels = patiently("storing the votes", self.label(config, &store, &rated, out));
        unless_asked(asked, labels).await?;

        let began = Instant::now();
        let retraining = retrain::run(config, asked.clone().cancelled_owned());
        let finish = match retraining.boxed_local().await {
            Err(_) if asked.is_cancelled() => return Err(DemoError::Interrupted),
            finish => finish?,
        };
        let seconds = began.elapsed().as_secs_f64();
        match &finish {
            Finish::Accepted { verdict, .. } | Finish::Rejected { verdict, .. } => {
                say(out, &format!("gate        {verdict} ({seconds:.0} s for training and judging)"))?;
            }
            other => say(out, &format!("gate        {other}"))?,
        }
        if let Finish::Accepted { version, .. } = &finish {
            let rescoring = self.rescore(config, &store, version, photos, out);
            unless_asked(asked, patiently("switching and scoring again", rescoring)).await?;
        } else {
            say(out, "The champion stays, so nothing is scored again.")?;
        }
        say(out, "")?;
        models_command::run(config, &ModelsCommand::List(Shown { format: Format::Table }), out).await?;
        store.close().await;
        Ok(())
    }

    /// Has raters vote on parts of the photographs: first on what the champion has learned, then on what is
    /// new to it.
    async fn label(
        &self,
        config: &Config,
        store: &Store,
        rated: &Rated,
        out: &mut dyn Write,
    ) -> Result<(), DemoError> {
        self.vote(store, &rated.known).await?;
        publish_first(config, self.checkpoint, true).await?;
        self.vote(store, &rated.new).await?;
        say(
            out,
            &format!(
                "labels      {} raters' votes through the labels topic: on {} of the photographs as the model \
                 knows them,\n            and on {} in sepia, which they like the better the darker",
                RATERS.len(),
                count(rated.known.len(), "part"),
                count(rated.new.len(), "part"),
            ),
        )?;
        let steps = config.train.max_steps.unwrap_or_default();
        say(out, &format!("retraining  {steps} steps from the champion, as `roc4mllm retrain` takes them"))
    }

    /// Uploads parts, sends the votes on them, and waits until the worker has stored every one.
    async fn vote(&self, store: &Store, parts: &[Part]) -> Result<(), DemoError> {
        let (client, producer) = (self.servers.s3_client(), self.servers.producer()?);
        let (client, producer) = (&client, &producer);
        let voted: Vec<LabelledObject> = stream::iter(parts)
            .map(|part| async move {
                let etag = s3_put(client, RATED_BUCKET, &part.key, part.content.clone().into()).await?;
                let object = LabelledObject { bucket: RATED_BUCKET.into(), key: part.key.clone(), etag };
                for (rater, apart) in RATERS {
                    send_vote(producer, &object, rater, (part.score + apart).clamp(1.0, 10.0)).await?;
                }
                Ok::<_, DemoError>(object)
            })
            .buffered(UPLOADS)
            .try_collect()
            .await?;
        let voted: Vec<&LabelledObject> = voted.iter().collect();
        while store.votes_on(&voted).await?.len() < voted.len() * RATERS.len() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Waits for the worker to serve `version`, has everything scored again, and holds rows against outputs.
    async fn rescore(
        &self,
        config: &Config,
        store: &Store,
        version: &str,
        photos: &[Photo],
        out: &mut dyn Write,
    ) -> Result<(), DemoError> {
        let promoted = Instant::now();
        let version = store.find_version(version).await.map_err(ModelsError::from)?;
        self.wait_until_served(&version).await;
        say(
            out,
            &format!(
                "switch      the worker serves {}, {:.1} s after its promotion, between two batches",
                version.version,
                promoted.elapsed().as_secs_f64()
            ),
        )?;
        let args = BackfillArgs {
            prefix: Some(format!("s3://{BUCKET}/")),
            stored: false,
            not_version: None,
            rate: Rate::FASTEST,
            topic: None,
            restart: false,
        };
        backfill::run(config, &args).await?;
        let mut reader = OutputReader::start(self.servers.bootstrap())?;
        let mut outputs: Vec<OutputRecord> = Vec::new();
        let mut seen = HashSet::new();
        while seen.len() < photos.len() {
            let Some(output) = reader.next().await else { break };
            if version.made(&output.model_version) {
                seen.insert(output.id);
            }
            outputs.push(output);
        }
        outputs.extend(reader.finish().await?);
        let rows: Vec<ScoreRow> = store.list(u32::MAX).await?.into_iter().map(|stored| stored.row).collect();
        let (new, old): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| version.made(&row.model_version));
        outputs.retain(|output| version.made(&output.model_version));
        agreement::compare(photos.iter(), &new, &outputs, self.servers.delivery()).check(out)?;
        let scored = new.iter().filter(|row| row.status == ItemStatus::Scored).count();
        say(
            out,
            &format!(
                "rescoring   {} announced again by `roc4mllm backfill`: {scored} scored anew, by {:.2} apart on \
                 average;\n            all {} new rows equal their outputs, and the old ones are still there",
                count(photos.len(), "image"),
                mean_change(&old, &new),
                new.len()
            ),
        )
    }

    async fn wait_until_served(&self, version: &RegisteredVersion) {
        let serves = |line: &str| {
            let served = line.split("version=\"").nth(1).and_then(|rest| rest.split('"').next());
            line.starts_with("roc4mllm_model_info{")
                && line.contains("role=\"champion\"")
                && served.is_some_and(|served| version.made(served))
        };
        loop {
            let metrics = ask(self.servers.http(), "/metrics").await.unwrap_or_default();
            if metrics.lines().any(serves) {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

async fn patiently(
    what: &'static str,
    work: impl Future<Output = Result<(), DemoError>>,
) -> Result<(), DemoError> {
    let stalled = |_| DemoError::Stalled { what, patience: PATIENCE };
    tokio::time::timeout(PATIENCE, work).await.map_err(stalled)?
}

async fn send_vote(
    producer: &FutureProducer,
    object: &LabelledObject,
    rater: &str,
    score: f64,
) -> Result<(), DemoError> {
    let LabelledObject { bucket, key, etag } = object;
    let vote = json!({
        "bucket": bucket, "key": key, "etag": etag, "rater": rater, "score": score,
        "labelled_at": "2025-01-01T12:00:00Z",
    });
    let (key, vote) = (format!("{bucket}/{key}"), vote.to_string());
    let record = FutureRecord::to(LABELS_TOPIC).key(&key).payload(&vote);
    producer.send(record, PRODUCE_TIMEOUT).await.map(drop).map_err(|(error, _)| error.into())
}

/// By how much the scores of the same objects differ.
fn mean_change(old: &[ScoreRow], new: &[ScoreRow]) -> f64 {
    let key = |row: &ScoreRow| Some((row.object.as_ref()?.key.clone(), row.score?));
    let before: HashMap<String, f64> = old.iter().filter_map(key).collect();
    let changes: Vec<f64> = new
        .iter()
        .filter_map(key)
        .filter_map(|(key, score)| Some((score - before.get(&key)?).abs()))
        .collect();
    changes.iter().sum::<f64>() / changes.len().max(1) as f64
}
