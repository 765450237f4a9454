//! The worker's life: connect, load, consume, drain.

mod error;
mod model;
mod observing;
mod probe;
pub mod quarantined;
mod samples;

pub use error::{UNAVAILABLE, WorkerError};
pub use probe::{probe, targets};

use crate::{
    config::Config,
    fetch::Fetcher,
    http::{self, ProbeSlot, Probes},
    inference::ScoringService,
    kafka::{self, Connection, KafkaStats, Stalled},
    labels::Vote,
    object::{ContentKey, ScoreId},
    page::{self, Page},
    pipeline::{self, Admission, Hold, Parts, Pipeline, Reuse, Routes, Voting},
    scoring_api::{self, ScoringApi},
    serving::Models,
    store::{self, ScoreRow, Store},
    telemetry::{metrics::Metrics, traces::Traces},
};
use futures_util::{FutureExt, future::LocalBoxFuture};
use model::Serving;
use std::{future::Future, pin::pin, sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// The poll thread turns many times a second; this long without a turn, it hangs.
const POLL_STALL: Duration = Duration::from_secs(60);
/// Records come within moments where there are any; this long without one, the client has lost its way.
const PARTITION_STALL: Duration = Duration::from_secs(120);
/// Commit cycles run all the time; this long without a success, scores do not come out.
const COMMIT_STALL: Duration = Duration::from_secs(30);

/// Brokers are asked every few seconds at least; this long without an answer, nothing can be read.
const BROKER_SILENCE: Duration = Duration::from_secs(30);

/// How long the last spans may take to reach the trace collector.
const FLUSH: Duration = Duration::from_secs(3);

/// The answer only refines a setting; it is not worth a long wait.
const RECORD_LIMIT_PATIENCE: Duration = Duration::from_secs(3);

/// Why the worker stops consuming.
enum Ending {
    Asked,
    Failed(WorkerError),
}

/// Scores with the configured checkpoint until `shutdown` resolves, then drains; or until something
/// fails for good.
///
/// Every dependency must answer within `pipeline.start_timeout_ms`, before the model is loaded.
///
/// # Errors
/// [`WorkerError`], whose exit code says what failed.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), WorkerError> {
    work(config, Source::Configured, shutdown).boxed_local().await
}

/// As [`run`], but scores with what `service` resolves to; it is awaited once every dependency has
/// answered.
///
/// # Errors
/// As [`run`], and those of `service`.
pub async fn run_with(
    config: Config,
    service: impl Future<Output = Result<ScoringService, WorkerError>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    work(config, Source::Given(service.boxed_local()), shutdown).boxed_local().await
}

/// Where the worker's models come from.
enum Source<'a> {
    /// `model.checkpoint`.
    Configured,
    /// The caller; it stays as it is.
    Given(LocalBoxFuture<'a, Result<ScoringService, WorkerError>>),
}

async fn work(
    mut config: Config,
    source: Source<'_>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let scale = config.label_scale()?;
    let votes = config.kafka.labels_topic.as_deref().map(|topic| (Arc::<str>::from(topic), scale));
    let metrics = Metrics::new();
    let traces = Traces::start(&config.telemetry, tokio::runtime::Handle::current())?;
    let probes = ProbeSlot::default();
    let page = Page::new(&config.http.page, probes.clone());
    let scoring_api = ScoringApi::new(&config.http.score);
    let routes = page.routes().merge(scoring_api.routes());
    let stop_http = CancellationToken::new();
    let (address, _server) =
        http::serve(config.http.listen, probes.clone(), routes, stop_http.clone().cancelled_owned()).await?;
    tracing::info!(%address, "probes and metrics are served");

    let mut shutdown = pin!(shutdown);
    let starting = async {
        let (store, fetcher) = connect(&config).await?;
        // Before any producer is made: what it may send at once is bounded by the same number.
        let record_limit = kafka::admin::record_limit(&config.kafka, RECORD_LIMIT_PATIENCE).await;
        let serving = model::serve(&config, source, &store, &fetcher).await?;
        Ok::<_, WorkerError>((store, fetcher, record_limit, serving))
    };
    let (store, fetcher, record_limit, serving) = tokio::select! {
        biased;
        () = &mut shutdown => {
            // Nothing was taken yet, and a model may take minutes to load.
            tracing::info!("asked to stop before it had begun");
            return Ok(());
        }
        started = starting => started?,
    };
    config.kafka.max_record_bytes = record_limit;
    let Serving { models, metrics: serving, switching, _checkpoint } = serving;

    let Connection { records, ledger, gate, stats, fatal, control } = kafka::connect(&config.kafka)?;
    let admission = Arc::new(Admission::new(&config.pipeline));
    let abandon = CancellationToken::new();
    let hold = Hold::new(config.pipeline.dead_letter_hold());
    let regulating = tokio::spawn({
        let hold = Arc::clone(&hold);
        async move { hold.regulate(&gate).await }
    });
    let (writer, requests) = mpsc::channel(config.postgres.batch_rows.max(1));
    let writing = tokio::spawn({
        let (store, settings, retry) = (store.clone(), config.postgres.clone(), config.retry.clone());
        let (hold, abandon) = (Arc::clone(&hold), abandon.clone());
        let upsert = move |rows: Vec<ScoreRow>| {
            let (hold, store) = (Arc::clone(&hold), store.clone());
            async move { pipeline::upsert(&hold, &store, &rows).await }
        };
        async move { store::write_batches(upsert, &settings, &retry, requests, abandon).await }
    });
    let (rows, asked_rows) = mpsc::channel(config.pipeline.max_items.max(1));
    let (contents, asked_contents) = mpsc::channel(config.pipeline.max_items.max(1));
    let looking = [
        tokio::spawn({
            let store = store.clone();
            let look_up = move |ids: Vec<ScoreId>| {
                let store = store.clone();
                async move { pipeline::look_up_rows(&store, &ids).await }
            };
            store::look_up_batches(look_up, config.postgres.batch_rows, asked_rows, abandon.clone())
        }),
        tokio::spawn({
            let store = store.clone();
            let look_up = move |keys: Vec<ContentKey>| {
                let store = store.clone();
                async move { store.known_answers(&keys).await }
            };
            store::look_up_batches(look_up, config.postgres.batch_rows, asked_contents, abandon.clone())
        }),
    ];
    let reuse = Reuse::new(&config.reuse, contents).map(Arc::new);
    let (voting, recording) = match votes {
        None => (None, None),
        Some((topic, scale)) => {
            let (writer, requests) = mpsc::channel(config.postgres.batch_rows.max(1));
            let recording = tokio::spawn({
                let (settings, retry) = (config.postgres.clone(), config.retry.clone());
                let (hold, store, abandon) = (Arc::clone(&hold), store.clone(), abandon.clone());
                let write = move |votes: Vec<Vote>| {
                    let (hold, store) = (Arc::clone(&hold), store.clone());
                    async move { pipeline::write_votes(&hold, &store, &votes, &scale).await }
                };
                async move { store::write_batches(write, &settings, &retry, requests, abandon).await }
            });
            let voting = Voting { topic, scale, writer };
            (Some(Arc::new(voting)), Some(recording))
        }
    };
    let pipeline = Pipeline::new(Parts {
        ledger: Arc::clone(&ledger),
        fetcher: fetcher.clone(),
        models: Arc::clone(&models),
        rows,
        reuse: reuse.clone(),
        writer,
        voting,
        admission: Arc::clone(&admission),
        hold: Arc::clone(&hold),
        metrics: Arc::clone(&metrics),
        traces: traces.clone(),
        routes: Routes {
            buckets: config.s3.buckets.clone(),
            output_topic: config.kafka.output_topic.as_str().into(),
            dead_letter_topic: config.kafka.dead_letter_topic.as_str().into(),
            group: config.kafka.group.clone(),
            max_record_bytes: config.kafka.max_record_bytes as usize,
        },
        retry: config.retry.clone(),
        max_image_bytes: config.image.max_bytes,
    });
    let pipeline = tokio::spawn(pipeline.run(records));
    metrics.sample(samples::all(&models, &serving, &stats, &ledger, &admission));
    metrics.sample(samples::quarantine(&serving.quarantine, &ledger));
    metrics.sample(samples::surroundings(&hold, &fetcher));
    metrics.sample(samples::serving(&models, &serving));
    metrics.sample(samples::traces(&traces));
    let (retraining, summary) = watch::channel(None);
    metrics.sample(samples::retraining(&summary));
    let observing = tokio::spawn(observing::observe(
        store.clone(),
        Arc::clone(&metrics.scores),
        retraining,
        config.telemetry.refresh_interval(),
    ));
    metrics.sample(samples::reuse(reuse.as_ref()));
    let requests = scoring_api::Parts {
        models: Arc::clone(&models),
        fetcher: fetcher.clone(),
        store: store.clone(),
        buckets: config.s3.buckets.clone(),
        retry: config.retry.clone(),
        max_image_bytes: config.image.max_bytes,
    };
    scoring_api.open(requests, &metrics);
    page.open(page::Parts {
        postgres: config.postgres.clone(),
        fetcher: fetcher.clone(),
        buckets: config.s3.buckets.clone(),
        scale,
        images: config.image.clone(),
    })?;
    probes.set(checks(&metrics, &stats, &ledger, Arc::clone(&models), hold));
    tracing::info!(topics = ?config.kafka.consumed_topics().collect::<Vec<_>>(), group = config.kafka.group, "consuming");

    let ending = tokio::select! {
        () = &mut shutdown => Ending::Asked,
        failure = models.failed() => Ending::Failed(failure.into()),
        failure = consumer_failed(fatal) => Ending::Failed(failure),
    };
    let patience = match &ending {
        Ending::Asked => config.pipeline.drain(),
        // What is under way cannot end well; what is finished can still be committed.
        Ending::Failed(_) => config.pipeline.drain() / 4,
    };
    let control = match &ending {
        Ending::Failed(WorkerError::Consumer(_)) => control.without_farewell(),
        Ending::Failed(_) | Ending::Asked => control,
    };
    // From here on the intake stays closed, whatever recovers, and the models stay what they are.
    regulating.abort();
    let _ = regulating.await;
    observing.abort();
    let _ = observing.await;
    if let Some(switching) = switching {
        switching.abort();
        let _ = switching.await;
    }
    tracing::info!(in_flight = ledger.in_flight(), "draining");
    let drained = tokio::task::spawn_blocking(move || control.drain(patience)).await;
    admission.close();
    abandon.cancel();
    pipeline.abort();
    // They only fail by being aborted, which is what was wanted.
    let _ = pipeline.await;
    let _ = writing.await;
    for looking in looking {
        let _ = looking.await;
    }
    if let Some(recording) = recording {
        let _ = recording.await;
    }
    stop_http.cancel();
    // After the last commit, with which the last traces end.
    let flushed = tokio::task::spawn_blocking(move || traces.stop(FLUSH));
    let _ = flushed.await;
    let drained = drained.map_err(|error| WorkerError::Drain(error.to_string()))?;
    tracing::info!(
        unfinished = drained.unfinished,
        uncommitted = drained.uncommitted,
        closed = drained.closed,
        "drained"
    );
    match ending {
        Ending::Failed(failure) => Err(failure),
        Ending::Asked => {
            // A model that did not finish in time may hang, and cannot be waited for.
            if drained.closed && drained.unfinished == 0 {
                models.shut_down().await;
                store.close().await;
            }
            Ok(())
        }
    }
}

/// Connects to what the model is not needed for, all at once.
async fn connect(config: &Config) -> Result<(Store, Fetcher), WorkerError> {
    let deadline = config.pipeline.start_timeout();
    let kafka = probe::kafka(config, deadline);
    let postgres = probe::postgres(config, deadline);
    let s3 = probe::s3(config, deadline);
    let ((), store, fetcher) = tokio::try_join!(kafka, postgres, s3)?;
    if config.postgres.migrate_at_start {
        store.migrate().await?;
    }
    Ok((store, fetcher))
}

fn checks(
    metrics: &Arc<Metrics>,
    stats: &Arc<KafkaStats>,
    ledger: &Arc<kafka::Ledger>,
    models: Arc<Models>,
    hold: Arc<Hold>,
) -> Probes {
    let (polling, committing, ledger) = (Arc::clone(stats), Arc::clone(stats), Arc::clone(ledger));
    Probes {
        alive: Box::new(move || {
            let silent = polling.since_poll();
            if silent >= POLL_STALL {
                return Err(format!("Kafka was last polled {} s ago", silent.as_secs()));
            }
            match polling.stalled().filter(|stalled| stalled.silence >= PARTITION_STALL) {
                None => Ok(()),
                Some(Stalled { source, silence }) => {
                    Err(format!("{source} has more records, and none has come for {} s", silence.as_secs()))
                }
            }
        }),
        ready: Box::new(move || {
            models.is_well()?;
            if let Some(trouble) = hold.trouble() {
                return Err(trouble);
            }
            if committing.assigned.load(std::sync::atomic::Ordering::Relaxed) == 0 {
                return Err("no partition has been assigned yet".into());
            }
            let unheard = committing.since_answer();
            if unheard >= BROKER_SILENCE {
                return Err(format!("no Kafka broker has answered for {} s", unheard.as_secs()));
            }
            let silent = committing.since_commit();
            if silent >= COMMIT_STALL && ledger.uncommitted() > 0 {
                let trouble = committing.trouble().unwrap_or_else(|| "no reason known".into());
                return Err(format!("nothing was committed for {} s: {trouble}", silent.as_secs()));
            }
            Ok(())
        }),
        metrics: Arc::clone(metrics),
    }
}

async fn consumer_failed(fatal: oneshot::Receiver<kafka::Fatal>) -> WorkerError {
    match fatal.await {
        Ok(fatal) => WorkerError::Consumer(fatal),
        // The source ended without a failure: only a drain does that, and it is not this one's news.
        Err(_) => std::future::pending().await,
    }
}
