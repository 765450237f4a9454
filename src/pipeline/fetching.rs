//! An object's bytes: tried until they are here, the item's time is over, or there is nothing to have.

use super::{
    Parts,
    admission::BytesPermit,
    item::{Abandoned, ItemTask},
    outcome::{self, Facts},
    patience::{Next, Patience},
};
use crate::{
    fault::{Disposition, ErrorCode, ItemError, Stage},
    fetch::{FetchError, FetchedImage},
    object::ObjectRef,
    score::ItemStatus,
};
use std::time::{Duration, Instant};

/// Fetched bytes with leave to hold them, or the status and error that the item ends with.
pub(super) type Fetch = Result<(FetchedImage, BytesPermit), (ItemStatus, ItemError)>;

impl ItemTask {
    /// Fetches the object. While S3 is held, so is the item: it has no bytes, and its time stands still.
    pub(super) async fn fetch(&self, object: &ObjectRef, facts: &mut Facts) -> Result<Fetch, Abandoned> {
        let Parts { hold, fetcher, metrics, retry, .. } = &*self.parts;
        let stage = self.enter(Stage::Fetch);
        let mut backoff = retry.endless_backoff();
        let mut patience = Patience::new(Duration::from_millis(retry.deadline_ms));
        loop {
            let pass = self.pass(&hold.s3).await?;
            let Some(attempt) = self.attempt(object, || pass.is_current()).await? else { continue };
            let error = match attempt.result {
                Ok(fetched) => {
                    pass.worked();
                    return Ok(Ok(fetched));
                }
                Err(error) => error,
            };
            patience.spend(attempt.took);
            let step = fetcher.next_step(&error, patience.spent());
            match error.disposition() {
                Disposition::Hold => pass.failed(self.asker(), &error),
                Disposition::Reject => pass.worked(),
                Disposition::Retry | Disposition::Stop => drop(pass),
            }
            facts.attempts = backoff.attempts() + 1;
            facts.first_failed_ms.get_or_insert_with(outcome::now_ms);
            let pause = backoff.next_delay().unwrap_or_default();
            match patience.next(step, hold.s3.is_open(), pause) {
                Next::Hold => metrics.retry(Stage::Fetch),
                Next::Again(pause) => {
                    metrics.retry(Stage::Fetch);
                    tracing::debug!(%error, ?pause, "fetching failed; trying again");
                    tokio::time::sleep(pause).await;
                    patience.spend(pause);
                }
                Next::GiveUp => {
                    let message = format!("{error}; gave up after {} attempts", facts.attempts);
                    let error = ItemError::new(ErrorCode::RetryExhausted, Stage::Fetch, message);
                    stage.fail(&error);
                    return Ok(Err((ItemStatus::Dead, error)));
                }
                Next::Final => {
                    stage.fail(&error);
                    return Ok(Err((error.status(), error.item_error())));
                }
            }
        }
    }

    /// One attempt, in a place among the fetches and with leave for the bytes; `None` if it may no
    /// longer begin by the time it has both.
    async fn attempt(
        &self,
        object: &ObjectRef,
        may_begin: impl Fn() -> bool,
    ) -> Result<Option<Attempt>, Abandoned> {
        let Parts { fetcher, admission, max_image_bytes, .. } = &*self.parts;
        let expected = object.size.unwrap_or(*max_image_bytes).min(*max_image_bytes);
        let mut bytes = admission.bytes(expected).await.ok_or(Abandoned::Stopping)?;
        let slot = fetcher.slot().await;
        self.still_ours()?;
        if !may_begin() {
            return Ok(None);
        }
        let begun = Instant::now();
        let room = || admission.spare_bytes(expected);
        let result = fetcher.fetch_in(slot, object, *max_image_bytes, room).await.map(|image| {
            bytes.shrink_to(image.size);
            (image, bytes)
        });
        Ok(Some(Attempt { result, took: begun.elapsed() }))
    }
}

/// One attempt's result, and how long it took once it had begun.
struct Attempt {
    result: Result<(FetchedImage, BytesPermit), FetchError>,
    took: Duration,
}
