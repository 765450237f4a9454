//! Rows from many tasks, written together.

use crate::failpoint;
use crate::fault::Disposition;
use crate::retry::RetrySettings;
use crate::store::error::StoreError;
use crate::store::pool::PostgresSettings;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// A row to write, and whom to tell what counts now.
#[derive(Debug)]
pub struct WriteRequest<Row, Answer> {
    pub row: Row,
    /// Told once the row is durable, or that Postgres refuses this row for ever. Dropped without
    /// a word at shutdown: then nothing is known, and the item must be processed again.
    pub reply: oneshot::Sender<Result<Answer, StoreError>>,
}

/// What became of each row of a batch, in order.
pub type Answers<Answer> = Result<Vec<Option<Answer>>, StoreError>;

/// Writes `requests` in batches: `batch_rows` at once, or what came within `batch_linger_ms` of the
/// first one. While Postgres is unwell, waits and tries again; rows never get lost or reordered
/// within an id. If Postgres refuses a batch for its data, halves find the rows that are to blame.
///
/// `write` gives an answer a row, in order; it is [`Store::upsert_rows`](super::Store::upsert_rows) or
/// [`Store::write_votes`](super::Store::write_votes), which the caller may let wait. A row without an
/// answer vanished while it was written, and its reply is dropped.
///
/// Ends when every sender is gone and everything is written, or when `shutdown` fires, which
/// abandons what is not.
pub async fn write_batches<Row: Clone, Answer, F: Future<Output = Answers<Answer>>>(
    write: impl Fn(Vec<Row>) -> F,
    settings: &PostgresSettings,
    retry: &RetrySettings,
    mut requests: mpsc::Receiver<WriteRequest<Row, Answer>>,
    shutdown: CancellationToken,
) {
    let linger = Duration::from_millis(settings.batch_linger_ms);
    while let Some(batch) = next_batch(&mut requests, settings.batch_rows.max(1), linger).await {
        let writing = write_all(&write, retry, batch);
        if shutdown.run_until_cancelled(writing).await.is_none() {
            tracing::warn!(server = settings.server(), "rows not yet in Postgres are left to a replay");
            return;
        }
    }
}

/// `None` once the channel is closed and empty.
async fn next_batch<Request>(
    requests: &mut mpsc::Receiver<Request>,
    limit: usize,
    linger: Duration,
) -> Option<Vec<Request>> {
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

async fn write_all<Row: Clone, Answer, F: Future<Output = Answers<Answer>>>(
    write: &impl Fn(Vec<Row>) -> F,
    retry: &RetrySettings,
    batch: Vec<WriteRequest<Row, Answer>>,
) {
    let mut pending = vec![batch];
    let mut backoff = retry.endless_backoff();
    while let Some(mut batch) = pending.pop() {
        let rows: Vec<Row> = batch.iter().map(|request| request.row.clone()).collect();
        let error = match write(rows).await {
            Ok(answers) => {
                failpoint::reach_each("row-durable", batch.len());
                backoff.reset();
                for (request, answer) in batch.into_iter().zip(answers) {
                    if let Some(answer) = answer {
                        // A receiver that went away belongs to a partition that did.
                        let _gone = request.reply.send(Ok(answer));
                    }
                }
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
