//! The worker's own HTTP server: start, liveness, readiness, metrics, and the routes that other parts add.

pub mod answer;
pub mod body;
mod listen;
mod settings;
pub mod token;

pub use answer::Problem;
pub use listen::Listen;
pub use settings::{HttpSettings, PageSettings, ScoringApiSettings};

use crate::telemetry::metrics::Metrics;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// A reason not to be ready or alive, or none.
pub type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the probes ask and the scrape renders.
pub struct Probes {
    /// Liveness: whether the process makes progress. Never asks a dependency, since a restart
    /// would not mend one.
    pub alive: Check,
    /// Readiness: whether records can be scored now.
    pub ready: Check,
    pub metrics: Arc<Metrics>,
}

/// No address could be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen} (http.listen): {reason}; free the port or choose another")]
pub struct ListenError {
    listen: String,
    reason: String,
}

/// Probes that can be exchanged while the server runs: none exist before the worker has started.
#[derive(Clone, Default)]
pub struct ProbeSlot(Arc<Mutex<Option<Arc<Probes>>>>);

impl ProbeSlot {
    pub fn set(&self, probes: Probes) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(Arc::new(probes));
    }

    /// `None` while the worker starts.
    pub fn get(&self) -> Option<Arc<Probes>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// Serves the probes, and `routes` beside them, until `shutdown` resolves. Returns the bound address and
/// the server's task.
///
/// # Errors
/// [`ListenError`] when no address of `listen` can be bound.
pub async fn serve(
    listen: Listen,
    probes: ProbeSlot,
    routes: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(SocketAddr, JoinHandle<()>), ListenError> {
    let failed =
        |error: std::io::Error| ListenError { listen: listen.to_string(), reason: error.to_string() };
    let listener = bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let router = Router::new()
        .route("/startupz", get(startupz))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probes)
        .merge(routes);
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(shutdown).await {
            tracing::error!(%error, "the HTTP server stopped");
        }
    });
    Ok((address, task))
}

async fn bind(listen: Listen) -> std::io::Result<TcpListener> {
    let mut refused = None;
    for address in listen.candidates() {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into()))
}

fn answer(check: Result<(), String>) -> (StatusCode, String) {
    match check {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn startupz(State(probes): State<ProbeSlot>) -> impl IntoResponse {
    answer(probes.get().map(drop).ok_or_else(|| "starting".into()))
}

async fn healthz(State(probes): State<ProbeSlot>) -> impl IntoResponse {
    // Starting up is alive: a long model load must not be restarted.
    answer(probes.get().map_or(Ok(()), |probes| (probes.alive)()))
}

async fn readyz(State(probes): State<ProbeSlot>) -> impl IntoResponse {
    answer(probes.get().map_or(Err("starting".into()), |probes| (probes.ready)()))
}

async fn metrics(State(probes): State<ProbeSlot>) -> impl IntoResponse {
    let text = probes.get().map_or_else(|| "# EOF\n".into(), |probes| probes.metrics.render());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn ready_only_once_the_worker_says_so() {
        let slot = ProbeSlot::default();
        let listen = "127.0.0.1:0".parse().unwrap();
        let (address, _task) =
            serve(listen, slot.clone(), Router::new(), std::future::pending()).await.unwrap();
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/startupz").await.starts_with("HTTP/1.1 503"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        slot.set(Probes {
            alive: Box::new(|| Err("the poll thread stands still".into())),
            ready: Box::new(|| Ok(())),
            metrics: Metrics::new(),
        });
        assert!(get(address, "/startupz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/healthz").await.contains("the poll thread stands still"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/metrics").await.contains("roc4mllm_build_info"));
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen: Listen = taken.local_addr().unwrap().to_string().parse().unwrap();
        let error =
            serve(listen, ProbeSlot::default(), Router::new(), std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("http.listen"), "{error}");
    }
}
