//! Rows from many tasks, written together.

use crate::failpoint;
use crate::fault::Disposition;
use crate::object::ScoreId;
use crate::retry::RetrySettings;
use crate::store::error::StoreError;
use crate::store::pool::PostgresSettings;
use crate::store::row::{ScoreRow, StoredScore};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// A row to write, and whom to tell what counts for its id.
#[derive(Debug)]
pub struct WriteRequest {
    pub row: ScoreRow,
    /// Told once the row is durable, or that Postgres refuses this row for ever. Dropped without
    /// a word at shutdown: then nothing is known, and the item must be processed again.
    pub reply: oneshot::Sender<Result<StoredScore, StoreError>>,
}

/// Writes `requests` in batches: `batch_rows` at once, or what came within `batch_linger_ms` of the
/// first one. While Postgres is unwell, waits and tries again; rows never get lost or reordered
/// within an id. If Postgres refuses a batch for its data, halves find the rows that are to blame.
///
/// `upsert` is [`Store::upsert`](super::Store::upsert), which the caller may let wait.
///
/// Ends when every sender is gone and everything is written, or when `shutdown` fires, which
/// abandons what is not.
pub async fn write_batches<F: Future<Output = Result<HashMap<ScoreId, StoredScore>, StoreError>>>(
    upsert: impl Fn(Vec<ScoreRow>) -> F,
    settings: &PostgresSettings,
    retry: &RetrySettings,
    mut requests: mpsc::Receiver<WriteRequest>,
    shutdown: CancellationToken,
) {
    let linger = Duration::from_millis(settings.batch_linger_ms);
    while let Some(batch) = next_batch(&mut requests, settings.batch_rows.max(1), linger).await {
        let writing = write_all(&upsert, retry, batch);
        if shutdown.run_until_cancelled(writing).await.is_none() {
            tracing::warn!(server = settings.server(), "rows not yet in Postgres are left to a replay");
            return;
        }
    }
}

/// `None` once the channel is closed and empty.
async fn next_batch(
    requests: &mut mpsc::Receiver<WriteRequest>,
    limit: usize,
    linger: Duration,
) -> Option<Vec<WriteRequest>> {
    let mut batch = vec![requests.recv().await?];
    let deadline = Instant::now() + linger;
    while batch.len() < limit {
        let missing = limit - batch.len();
        match timeout_at(deadline, requests.recv_many(&mut batch, missing)).await {
            Ok(received) if received > 0 => {}
            _ => break,
        }
    }
    Some(batch)
}

async fn write_all<F: Future<Output = Result<HashMap<ScoreId, StoredScore>, StoreError>>>(
    upsert: &impl Fn(Vec<ScoreRow>) -> F,
    retry: &RetrySettings,
    batch: Vec<WriteRequest>,
) {
    let mut pending = vec![batch];
    let mut backoff = retry.endless_backoff();
    while let Some(mut batch) = pending.pop() {
        let rows: Vec<ScoreRow> = batch.iter().map(|request| request.row.clone()).collect();
        let error = match upsert(rows).await {
            Ok(stored) => {
                failpoint::reach_each("row-durable", batch.len());
                backoff.reset();
                answer(batch, &stored);
                continue;
            }
            Err(error) => error,
        };
        if error.disposition() == Disposition::Reject {
            if batch.len() > 1 {
                let second = batch.split_off(batch.len() / 2);
                pending.extend([second, batch]);
            } else if let Some(request) = batch.pop() {
                // A receiver that went away belongs to a partition that did.
                let _gone = request.reply.send(Err(error));
            }
            continue;
        }
        let delay = backoff.next_delay().unwrap_or_default();
        let (rows, attempts) = (batch.len(), backoff.attempts());
        tracing::warn!(%error, rows, attempts, retry_in = ?delay, "rows are not written yet");
        pending.push(batch);
        tokio::time::sleep(delay).await;
    }
}

/// Several requests may have one id: the first one's row was written, the others found it.
fn answer(batch: Vec<WriteRequest>, stored: &HashMap<ScoreId, StoredScore>) {
    let mut seen = HashSet::with_capacity(batch.len());
    for request in batch {
        let Some(stored) = stored.get(&request.row.id) else {
            // Deleted by hand between the two statements; the dropped reply has it replayed.
            tracing::warn!(id = %request.row.id, "a row vanished while it was written");
            continue;
        };
        let mut stored = stored.clone();
        stored.reused |= !seen.insert(request.row.id);
        let _gone = request.reply.send(Ok(stored));
    }
}
