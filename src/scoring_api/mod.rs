//! `POST /v1/score`: one image or one object, scored while the caller waits.
//!
//! The image goes the way of every other one ([`serving`](crate::serving) decodes and scores it), but neither
//! Kafka nor Postgres is written to: the API answers, and the worker's topics and rows stay what the records
//! make them. A named object that has a row already is answered with the score in that row.

mod document;
mod queue;
mod request;
mod scoring;

use crate::{
    fetch::Fetcher,
    http::{Problem, ScoringApiSettings, answer, body, token},
    retry::RetrySettings,
    serving::Models,
    store::Store,
    telemetry::metrics::{Metrics, Sample, Sampled},
};
use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use queue::Queue;
use request::Kind;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

/// How soon to ask a worker again that is still starting.
const STARTING: Duration = Duration::from_secs(5);

/// What the API needs of a running worker.
pub struct Parts {
    pub models: Arc<Models>,
    pub fetcher: Fetcher,
    pub store: Store,
    /// Buckets that a request may name.
    pub buckets: Vec<String>,
    pub retry: RetrySettings,
    /// Images of more bytes are refused.
    pub max_image_bytes: u64,
}

/// The API of one worker. Cheap to clone; its routes are served before the worker has started, and answer
/// 503 until [`ScoringApi::open`].
#[derive(Clone)]
pub struct ScoringApi {
    inner: Arc<Inner>,
}

struct Inner {
    settings: ScoringApiSettings,
    queue: Queue,
    parts: OnceLock<Parts>,
    answers: Mutex<BTreeMap<u16, u64>>,
}

impl ScoringApi {
    pub fn new(settings: &ScoringApiSettings) -> Self {
        if settings.enabled && settings.token.is_empty() {
            tracing::warn!("POST /v1/score is open to whoever reaches the port; http.score.token closes it");
        }
        let inner = Inner {
            settings: settings.clone(),
            queue: Queue::new(settings.queue),
            parts: OnceLock::new(),
            answers: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Its routes; none where it is turned off.
    pub fn routes(&self) -> Router {
        if !self.inner.settings.enabled {
            return Router::new();
        }
        Router::new()
            .route("/v1/score", post(score))
            .route("/v1/openapi.json", get(openapi))
            .with_state(self.clone())
    }

    /// Takes requests from now on, and counts them in `metrics`.
    pub fn open(&self, parts: Parts, metrics: &Metrics) {
        if !self.inner.settings.enabled || self.inner.parts.set(parts).is_err() {
            return;
        }
        let (answers, places) = (self.clone(), self.clone());
        metrics.sample(vec![
            Sampled {
                name: "score_requests",
                help: "Requests to POST /v1/score, by the status they were answered with",
                read: Box::new(move || {
                    let counts = answers.counts();
                    let labelled =
                        |(status, count): (&u16, &u64)| (vec![("status", status.to_string())], *count as f64);
                    Sample::Totals(counts.iter().map(labelled).collect())
                }),
            },
            Sampled {
                name: "score_requests_in_flight",
                help: "Requests to POST /v1/score that have a place in its queue",
                read: Box::new(move || Sample::Levels(vec![(Vec::new(), places.inner.queue.taken() as f64)])),
            },
        ]);
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, BTreeMap<u16, u64>> {
        self.inner.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request) -> Result<Response, Problem> {
        let Inner { settings, queue, parts, .. } = &*self.inner;
        let (head, content) = request.into_parts();
        if !settings.token.is_empty() && !token::carries(&head.headers, &settings.token) {
            return Err(Problem::unauthorized("http.score.token"));
        }
        let kind = Kind::of(&head.headers)?;
        let Some(parts) = parts.get() else {
            let problem = Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "starting",
                "the worker is starting; try again",
            );
            return Err(problem.retry_after(STARTING));
        };
        // Before the body is read: what waits to be read takes memory as well.
        let _place = queue.enter().map_err(|after| {
            let detail =
                format!("all {} places are taken (http.score.queue); try again later", settings.queue);
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", detail).retry_after(after)
        })?;
        let work = async {
            let content = body::read(&head.headers, content, kind.limit(parts.max_image_bytes)).await?;
            match kind {
                Kind::Image => parts.score_image(content).await,
                Kind::Named => {
                    parts.score_object(request::named_object(&content, &parts.buckets)?, settings).await
                }
            }
        };
        match tokio::time::timeout(settings.timeout(), work).await {
            Ok(scored) => scored.map(|record| answer::json(scoring::status_of(&record), &record)),
            Err(_) => {
                let detail = format!(
                    "no score within {} ms (http.score.timeout_ms); try again later",
                    settings.timeout_ms
                );
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timed_out", detail);
                Err(problem.retry_after(settings.timeout()))
            }
        }
    }
}

async fn score(State(api): State<ScoringApi>, request: Request) -> Response {
    let response = api.answer(request).await.unwrap_or_else(IntoResponse::into_response);
    *api.counts().entry(response.status().as_u16()).or_default() += 1;
    response
}

async fn openapi(State(api): State<ScoringApi>) -> Response {
    let document = document::document(!api.inner.settings.token.is_empty());
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}

#[cfg(all(test, feature = "dev"))]
mod tests;
