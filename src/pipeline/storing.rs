//! Postgres as the items and the writer use it: one at a time may ask while it is broken.

use super::hold::{Hold, Pass};
use crate::{
    fault::Disposition,
    labels::{Scale, Vote},
    object::ScoreId,
    store::{Answers, ScoreRow, Store, StoreError, StoredScore, VoteOutcome},
};

/// Postgres' breaker asks for no agreement of several, so all are one.
const ASKER: u64 = 0;

/// [`Store::upsert_rows`], once Postgres may be asked.
///
/// # Errors
/// As the store's.
pub async fn upsert(hold: &Hold, store: &Store, rows: &[ScoreRow]) -> Answers<StoredScore> {
    let pass = hold.postgres.pass().await;
    judged(pass, store.upsert_rows(rows).await)
}

/// [`Store::lookup`], with an answer an id in order. Whoever asks has leave to.
///
/// # Errors
/// As the store's.
pub async fn look_up_rows(store: &Store, ids: &[ScoreId]) -> Answers<StoredScore> {
    let rows = store.lookup(ids).await?;
    Ok(ids.iter().map(|id| rows.get(id).cloned()).collect())
}

/// [`Store::write_votes`], once Postgres may be asked.
///
/// # Errors
/// As the store's.
pub async fn write_votes(hold: &Hold, store: &Store, votes: &[Vote], scale: &Scale) -> Answers<VoteOutcome> {
    let pass = hold.postgres.pass().await;
    let outcomes = judged(pass, store.write_votes(votes, scale).await)?;
    Ok(outcomes.into_iter().map(Some).collect())
}

/// Tells Postgres' breaker how an attempt went.
pub(super) fn judged<T>(pass: Pass<'_>, result: Result<T, StoreError>) -> Result<T, StoreError> {
    match &result {
        Ok(_) => pass.worked(),
        Err(error) => failed(pass, error),
    }
    result
}

/// Tells Postgres' breaker of an attempt that failed.
pub(super) fn failed(pass: Pass<'_>, error: &StoreError) {
    // It answered: it is a row that it does not want, or two workers were in each other's way.
    if error.disposition() == Disposition::Reject || error.is_contention() {
        pass.worked();
    } else {
        pass.failed(ASKER, error);
    }
}
