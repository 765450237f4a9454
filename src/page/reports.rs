//! Reports of retraining, read from where `retrain_runs` says that they are.

use crate::{
    fetch::{FetchError, Fetcher},
    http::Problem,
    object::ObjectRef,
    registry::S3Address,
    store::Store,
};
use axum::http::StatusCode;
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::Semaphore;

/// A page with a few thumbnails; anything larger is no report.
const LARGEST: u64 = 32 << 20;
const BUSY: Duration = Duration::from_secs(3);

/// Reads reports, one at a time.
pub struct Reports {
    store: Store,
    fetcher: Fetcher,
    reading: Semaphore,
}

impl Reports {
    pub fn new(store: Store, fetcher: Fetcher) -> Self {
        Self { store, fetcher, reading: Semaphore::new(1) }
    }

    /// The HTML of a run's report. Where it is comes from Postgres: a browser names a run and no address.
    ///
    /// # Errors
    /// 404 where there is none, 503 where it can't be had just now.
    pub async fn get(&self, run: i64) -> Result<Bytes, Problem> {
        let absent = || Problem::new(StatusCode::NOT_FOUND, "no_report", "this run has no report");
        let _reading = self.reading.acquire().await.map_err(|_| absent())?;
        let report = self.store.retrain_report(run).await.map_err(|error| unavailable(&error))?;
        let object = report.as_deref().and_then(object).ok_or_else(absent)?;
        match self.fetcher.fetch(&object, LARGEST).await {
            Ok(report) => Ok(report.bytes),
            Err(FetchError::Missing { .. } | FetchError::TooLarge { .. }) => Err(absent()),
            Err(error) => Err(unavailable(&error)),
        }
    }
}

/// The object of `s3://bucket/prefix/name`.
fn object(address: &str) -> Option<ObjectRef> {
    let (folder, name) = address.rsplit_once('/')?;
    let folder: S3Address = folder.parse().ok()?;
    (!name.is_empty()).then(|| folder.object(name))
}

fn unavailable(error: &dyn std::error::Error) -> Problem {
    tracing::debug!(%error, "a report for the page could not be read");
    let detail = "the report cannot be read just now; try again";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "report_unavailable", detail).retry_after(BUSY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_an_object_and_nothing_else() {
        let found = object("s3://models/roc4mllm/sha256-01/report.html").unwrap();
        assert_eq!(found.to_string(), "models/roc4mllm/sha256-01/report.html");
        for none in ["", "/etc/passwd", "http://169.254.169.254/x", "s3://models/", "file:///etc/passwd"] {
            assert_eq!(object(none), None, "{none}");
        }
    }
}
