//! Small copies of scored images, read from S3 by the worker.

use crate::{
    fetch::{FetchError, Fetcher},
    http::Problem,
    image::{self, ImageSettings},
    object::{ObjectRef, ScoreId},
    store::Store,
};
use axum::http::StatusCode;
use bytes::Bytes;
use lru::LruCache;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::Semaphore;

/// Copies in memory, in bytes.
const KEPT: usize = 32 << 20;
/// Photos fetched and decoded at once: the page must not be in the way of scoring.
const AT_ONCE: usize = 2;
/// Viewers that wait for a photo; more are sent away.
const WAITING: usize = 256;
const BUSY: Duration = Duration::from_secs(3);

/// How large a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Size {
    /// For lists.
    Small,
    /// For looking at one photo.
    Large,
}

impl Size {
    /// The longest edge, in pixels.
    fn edge(self) -> u32 {
        match self {
            Self::Small => 480,
            Self::Large => 1_400,
        }
    }
}

/// Makes small copies, and keeps those that were asked for last.
pub struct Thumbnails {
    store: Store,
    fetcher: Fetcher,
    /// Buckets that may be read; empty, all.
    buckets: Vec<String>,
    settings: ImageSettings,
    kept: Mutex<Kept>,
    working: Semaphore,
    waiting: Semaphore,
}

struct Kept {
    copies: LruCache<(ScoreId, Size), Bytes>,
    bytes: usize,
}

impl Thumbnails {
    pub fn new(store: Store, fetcher: Fetcher, buckets: Vec<String>, settings: ImageSettings) -> Self {
        Self {
            store,
            fetcher,
            buckets,
            settings,
            kept: Mutex::new(Kept { copies: LruCache::unbounded(), bytes: 0 }),
            working: Semaphore::new(AT_ONCE),
            waiting: Semaphore::new(WAITING),
        }
    }

    /// A JPEG of the photo that a scored row is of. Only such rows have one, so that a browser can name no
    /// object that the worker has not read before.
    ///
    /// # Errors
    /// 404 where there is nothing to show, 503 where it can't be had just now.
    pub async fn get(&self, id: ScoreId, size: Size) -> Result<Bytes, Problem> {
        if let Some(copy) = self.kept().copies.get(&(id, size)) {
            return Ok(copy.clone());
        }
        let busy = || unavailable("too many photos are asked for at once").retry_after(BUSY);
        let _waiting = self.waiting.try_acquire().map_err(|_| busy())?;
        let _working = self.working.acquire().await.map_err(|_| busy())?;
        let object = self.store.scored_object(id).await;
        let object = object.map_err(|error| unavailable(&error.to_string()).retry_after(BUSY))?;
        let object = object.ok_or_else(|| absent("no scored image has this id"))?;
        let copy = self.make(&object, size).await?;
        self.kept().put((id, size), copy.clone());
        Ok(copy)
    }

    async fn make(&self, object: &ObjectRef, size: Size) -> Result<Bytes, Problem> {
        if !self.buckets.is_empty() && !self.buckets.contains(&object.bucket) {
            return Err(absent("its bucket is no longer in s3.buckets"));
        }
        let fetched = self.fetcher.fetch(object, self.settings.max_bytes).await;
        let image = fetched.map_err(|error| match error {
            FetchError::Missing { .. } | FetchError::Superseded { .. } | FetchError::TooLarge { .. } => {
                absent("the photo has been removed or replaced since")
            }
            error => {
                tracing::debug!(%error, "a photo for the page could not be read");
                unavailable("the photo cannot be read just now").retry_after(BUSY)
            }
        })?;
        let settings = self.settings.clone();
        let making =
            tokio::task::spawn_blocking(move || image::thumbnail(&image.bytes, &settings, size.edge()));
        match making.await {
            Ok(Ok(jpeg)) => Ok(jpeg.into()),
            Ok(Err(_)) | Err(_) => Err(absent("no smaller copy of the photo can be made")),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn put(&mut self, name: (ScoreId, Size), copy: Bytes) {
        self.bytes += copy.len();
        if let Some(replaced) = self.copies.put(name, copy) {
            self.bytes -= replaced.len();
        }
        while self.bytes > KEPT {
            let Some((_, oldest)) = self.copies.pop_lru() else { break };
            self.bytes -= oldest.len();
        }
    }
}

fn absent(reason: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_photo", reason)
}

fn unavailable(reason: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "photo_unavailable", format!("{reason}; try again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let mut kept = Kept { copies: LruCache::unbounded(), bytes: 0 };
        let name = |number: u128| (ScoreId(Uuid::from_u128(number)), Size::Small);
        let copy = Bytes::from(vec![0; KEPT / 4]);
        for number in 0..4 {
            kept.put(name(number), copy.clone());
        }
        kept.put(name(3), copy.clone());
        assert_eq!((kept.bytes, kept.copies.len()), (KEPT, 4));
        assert!(kept.copies.get(&name(0)).is_some());
        kept.put(name(4), copy);
        assert_eq!((kept.bytes, kept.copies.len()), (KEPT, 4));
        assert!(kept.copies.contains(&name(0)) && !kept.copies.contains(&name(1)));
    }
}
