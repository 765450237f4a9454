//! The page at `/`: what this worker does, what is in Postgres, and the labelling view.
//!
//! Everything it shows comes from the process's own metrics (`live`) or from Postgres over connections of
//! its own, through caches that all viewers share (`cache`). It is read-only but for votes, which take a
//! token as a bearer header: no cookie, so that no other site can vote with it.

mod assets;
mod cache;
mod exposition;
mod labelling;
mod live;
mod reports;
mod tables;
mod thumbnails;

use crate::{
    fetch::Fetcher,
    http::{PageSettings, ProbeSlot, Problem, answer, body, token},
    image::ImageSettings,
    labels::Scale,
    object::ScoreId,
    store::{PostgresSettings, Store, StoreError},
};
use axum::{
    Router,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use labelling::Labelling;
use live::Readings;
use reports::Reports;
use serde_json::json;
use std::{
    future::Future,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};
use tables::{Document, Tables};
use thumbnails::{Size, Thumbnails};
use uuid::Uuid;

/// Connections of the page's own: one that counts, and one for what is short.
const CONNECTIONS: u32 = 2;
/// A vote is short.
const VOTE_LIMIT: u64 = 64 << 10;
/// How soon to ask a worker again that is still starting.
const STARTING: Duration = Duration::from_secs(2);

/// What the page needs of a running worker.
pub struct Parts {
    pub postgres: PostgresSettings,
    pub fetcher: Fetcher,
    /// Buckets that may be read and voted on.
    pub buckets: Vec<String>,
    pub scale: Scale,
    pub images: ImageSettings,
}

/// The page of one worker. Cheap to clone; it is served before the worker has started, and then says that.
#[derive(Clone)]
pub struct Page {
    inner: Arc<Inner>,
}

struct Inner {
    settings: PageSettings,
    probes: ProbeSlot,
    started: Instant,
    readings: Mutex<Readings>,
    views: OnceLock<Views>,
}

/// What is shown once the worker has started.
struct Views {
    tables: Tables,
    thumbnails: Thumbnails,
    labelling: Labelling,
    reports: Reports,
}

impl Page {
    pub fn new(settings: &PageSettings, probes: ProbeSlot) -> Self {
        let inner = Inner {
            settings: settings.clone(),
            probes,
            started: Instant::now(),
            readings: Mutex::default(),
            views: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Its routes; none where it is turned off.
    pub fn routes(&self) -> Router {
        if !self.inner.settings.enabled {
            return Router::new();
        }
        assets::routes()
            .route("/api/live", get(live))
            .route("/api/scores", get(scores))
            .route("/api/images", get(images))
            .route("/api/failures", get(failures))
            .route("/api/models", get(models))
            .route("/api/photos/{id}/{size}", get(photo))
            .route("/api/runs/{id}/report", get(report))
            .route("/api/label/next", get(next_to_label))
            .route("/api/label/votes", post(vote))
            .with_state(self.clone())
    }

    /// Shows what `parts` lead to from now on, and reads the metrics for as long as the page is there.
    ///
    /// # Errors
    /// When the settings of Postgres make no sense.
    pub fn open(&self, parts: Parts) -> Result<(), StoreError> {
        if !self.inner.settings.enabled {
            return Ok(());
        }
        let Parts { postgres, fetcher, buckets, scale, images } = parts;
        // Not the worker's connections: a viewer must not be in the way of a row.
        let store = Store::lazy(&PostgresSettings { pool_size: CONNECTIONS, ..postgres })?;
        let views = Views {
            tables: Tables::new(store.clone(), scale, self.inner.settings.refresh()),
            thumbnails: Thumbnails::new(store.clone(), fetcher.clone(), buckets.clone(), images),
            labelling: Labelling::new(store.clone(), scale, buckets),
            reports: Reports::new(store, fetcher),
        };
        if self.inner.views.set(views).is_ok() {
            tokio::spawn(read_metrics(Arc::downgrade(&self.inner)));
        }
        Ok(())
    }

    fn views(&self) -> Result<&Views, Problem> {
        self.inner.views.get().ok_or_else(|| {
            let problem = Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "starting",
                "the worker is starting; try again",
            );
            problem.retry_after(STARTING)
        })
    }
}

impl Inner {
    fn readings(&self) -> std::sync::MutexGuard<'_, Readings> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read_metrics(page: Weak<Inner>) {
    let mut ticks = tokio::time::interval(live::EVERY);
    loop {
        ticks.tick().await;
        let Some(page) = page.upgrade() else { return };
        if let Some(probes) = page.probes.get() {
            let scrape = probes.metrics.render();
            page.readings().read(Instant::now(), &scrape);
        }
    }
}

async fn live(State(page): State<Page>) -> Response {
    let Inner { settings, probes, started, .. } = &*page.inner;
    let ready = probes.get().map_or_else(|| Err("starting".into()), |probes| (probes.ready)());
    let now = page.inner.readings().now();
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": started.elapsed().as_secs(),
        "ready": ready.is_ok(),
        "reason": ready.err(),
        "thumbnails": settings.thumbnails,
        "refresh_ms": settings.refresh_ms,
        "now": now,
    });
    answer::json(StatusCode::OK, &body)
}

async fn scores(State(page): State<Page>) -> Response {
    document(&page, |tables| tables.scores()).await
}

async fn images(State(page): State<Page>) -> Response {
    document(&page, |tables| tables.images()).await
}

async fn failures(State(page): State<Page>) -> Response {
    document(&page, |tables| tables.failures()).await
}

async fn models(State(page): State<Page>) -> Response {
    document(&page, |tables| tables.models()).await
}

async fn document<'a, F>(page: &'a Page, read: impl FnOnce(&'a Tables) -> F) -> Response
where
    F: Future<Output = Result<Document, Arc<str>>>,
{
    let tables = match page.views() {
        Ok(views) => &views.tables,
        Err(starting) => return starting.into_response(),
    };
    match read(tables).await {
        Ok(document) => answer::json(StatusCode::OK, &document),
        Err(reason) => {
            let code = "store_unavailable";
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, &*reason);
            problem.retry_after(page.inner.settings.refresh()).into_response()
        }
    }
}

async fn photo(State(page): State<Page>, Path((id, size)): Path<(String, String)>) -> Response {
    let absent = || Problem::new(StatusCode::NOT_FOUND, "no_photo", "there is no such photo");
    let size = match size.as_str() {
        "small" => Some(Size::Small),
        "large" => Some(Size::Large),
        _ => None,
    };
    let (Ok(id), Some(size), true) = (Uuid::parse_str(&id), size, page.inner.settings.thumbnails) else {
        return absent().into_response();
    };
    let found = match page.views() {
        Ok(views) => views.thumbnails.get(ScoreId(id), size).await,
        Err(starting) => Err(starting),
    };
    match found {
        Ok(jpeg) => {
            let mut response = jpeg.into_response();
            let headers = response.headers_mut();
            for (name, value) in [
                (header::CONTENT_TYPE, "image/jpeg"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                // An id is of one content for ever; who may see it is for whoever asks.
                (header::CACHE_CONTROL, "private, max-age=3600"),
                (header::CONTENT_SECURITY_POLICY, "default-src 'none'"),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
            response
        }
        Err(problem) => problem.into_response(),
    }
}

/// A report is a page of its own, that another process wrote: it runs no script here.
const REPORT_POLICY: &str =
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'";

async fn report(State(page): State<Page>, Path(run): Path<String>) -> Response {
    // Reports show photos.
    let run = run.parse::<i64>().ok().filter(|_| page.inner.settings.thumbnails);
    let found = match (run, page.views()) {
        (Some(run), Ok(views)) => views.reports.get(run).await,
        (None, _) => Err(Problem::new(StatusCode::NOT_FOUND, "no_report", "there is no such report")),
        (_, Err(starting)) => Err(starting),
    };
    match found {
        Ok(html) => {
            let mut response = html.into_response();
            let headers = response.headers_mut();
            for (name, value) in [
                (header::CONTENT_TYPE, "text/html; charset=utf-8"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (header::CONTENT_SECURITY_POLICY, REPORT_POLICY),
                (header::CACHE_CONTROL, "no-store"),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
            response
        }
        Err(problem) => problem.into_response(),
    }
}

async fn next_to_label(State(page): State<Page>) -> Response {
    let labelling = match page.views() {
        Ok(views) => &views.labelling,
        Err(starting) => return starting.into_response(),
    };
    match labelling.next().await {
        Ok(mut next) => {
            next["choices"] = json!(labelling.choices());
            next["writable"] = json!(!page.inner.settings.label_token.is_empty());
            next["thumbnails"] = json!(page.inner.settings.thumbnails);
            answer::json(StatusCode::OK, &next)
        }
        Err(problem) => problem.into_response(),
    }
}

async fn vote(State(page): State<Page>, request: Request) -> Response {
    let written = async {
        let (head, content) = request.into_parts();
        let expected = &page.inner.settings.label_token;
        if expected.is_empty() {
            let detail = "this page is read-only; set http.page.label_token to take votes";
            return Err(Problem::new(StatusCode::FORBIDDEN, "read_only", detail));
        }
        if !token::carries(&head.headers, expected) {
            return Err(Problem::unauthorized("http.page.label_token"));
        }
        if body::media_type(&head.headers) != "application/json" {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Problem::new(status, "unsupported_media_type", "send the vote as application/json"));
        }
        let content = body::read(&head.headers, content, VOTE_LIMIT).await?;
        page.views()?.labelling.vote(&content).await
    };
    match written.await {
        Ok((status, stored)) => answer::json(status, &stored),
        Err(problem) => problem.into_response(),
    }
}
