//! Identical content is scored once: what has a score under this version of the model gets it again.
//!
//! Each item still has a row and an output of its own. The score comes from memory, from another object's row,
//! or from the item that is scoring the same bytes right now; and never from another version of the model, or
//! from another way of reading pixels, since both are part of what is looked for.

use super::{
    content_cache::{ContentCache, Known},
    in_flight::{Claim, InFlight},
    item::{Abandoned, ItemTask},
    storing,
};
use crate::{
    fault::Stage,
    inference::{ScoreFailure, Scored},
    object::{ContentDigest, ContentKey, ObjectRef},
    score::ModelVersion,
    serving::ServedModel,
    store::{KnownAnswer, LookUp},
    telemetry::metrics::ReuseSource,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{mpsc, oneshot};

/// More bytes than this are digested where no other task waits behind them.
const DIGESTED_HERE: usize = 256 << 10;

/// Configuration section `reuse`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReuseSettings {
    /// Whether content that has a score gets it again rather than another one.
    pub enabled: bool,
    /// Scores kept in memory at most, by number and by bytes. Older ones are found in Postgres.
    pub max_entries: usize,
    pub max_bytes: usize,
}

impl Default for ReuseSettings {
    fn default() -> Self {
        Self { enabled: true, max_entries: 10_000, max_bytes: 16 << 20 }
    }
}

/// What is known of contents, and who is finding out more.
pub struct Reuse {
    cache: Mutex<ContentCache>,
    under_way: InFlight<ContentKey>,
    rows: mpsc::Sender<LookUp<ContentKey, KnownAnswer>>,
}

/// An image's answer, from wherever it came.
pub(super) struct Judged {
    pub answer: Arc<KnownAnswer>,
    pub version: Arc<ModelVersion>,
    pub pixels: Option<(u32, u32)>,
    pub content: Option<ContentDigest>,
    /// `None` if the model was asked.
    pub reused: Option<ReuseSource>,
}

impl Reuse {
    /// `rows` answers what Postgres knows. `None` where `settings` has everything scored.
    pub fn new(
        settings: &ReuseSettings,
        rows: mpsc::Sender<LookUp<ContentKey, KnownAnswer>>,
    ) -> Option<Self> {
        let max_entries = NonZeroUsize::new(settings.max_entries).filter(|_| settings.enabled)?;
        let cache = Mutex::new(ContentCache::new(max_entries, settings.max_bytes));
        Some(Self { cache, under_way: InFlight::default(), rows })
    }

    /// Scores in memory, and the bytes that they take.
    pub fn held(&self) -> (usize, usize) {
        let cache = self.lock();
        (cache.len(), cache.bytes())
    }

    fn recall(&self, key: &ContentKey) -> Option<Known> {
        self.lock().get(key)
    }

    fn remember(&self, key: ContentKey, known: Known) {
        self.lock().insert(key, known);
    }

    fn lock(&self) -> MutexGuard<'_, ContentCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Judged {
    fn known(key: &ContentKey, known: Known, source: ReuseSource) -> Self {
        Self {
            answer: known.answer,
            version: Arc::clone(&key.version),
            pixels: known.pixels,
            content: Some(key.content),
            reused: Some(source),
        }
    }

    fn scored(scored: Scored, content: Option<ContentDigest>) -> Self {
        Self {
            answer: Arc::new((&scored.answer).into()),
            version: scored.version,
            pixels: Some((scored.width, scored.height)),
            content,
            reused: None,
        }
    }
}

impl ItemTask {
    /// The answer for an image: that of the same content, if it has one, else the model's.
    ///
    /// Whoever waits here holds bytes, and waits for an item that holds its own and needs no more room.
    pub(super) async fn judge(
        &self,
        model: &ServedModel,
        object: &ObjectRef,
        bytes: &Bytes,
        suspect: bool,
    ) -> Result<Result<Judged, ScoreFailure>, Abandoned> {
        let ask = || self.ask(model, object, bytes.clone(), suspect);
        let Some(reuse) = &self.parts.reuse else {
            return Ok(ask().await.map(|scored| Judged::scored(scored, None)));
        };
        let content = digest(bytes).await?;
        let key = ContentKey { content, version: Arc::clone(model.version()) };
        let _lead = loop {
            let claim = reuse.under_way.claim(key.clone());
            // Looked for after the claim: a leader that has just ended has put its score there.
            if let Some(known) = reuse.recall(&key) {
                return Ok(Ok(Judged::known(&key, known, ReuseSource::Memory)));
            }
            match claim {
                Claim::Lead(lead) => break lead,
                Claim::Follow(follow) => self.while_ours(follow.leader_done()).await?,
            }
        };
        if let Some(answer) = self.stored_answer(reuse, &key).await {
            let known = Known { answer: Arc::new(answer), pixels: None };
            reuse.remember(key.clone(), known.clone());
            return Ok(Ok(Judged::known(&key, known, ReuseSource::Postgres)));
        }
        let judged = ask().await.map(|scored| Judged::scored(scored, Some(content)));
        if let Ok(judged) = &judged {
            let key = ContentKey { content, version: Arc::clone(&judged.version) };
            reuse.remember(key, Known { answer: Arc::clone(&judged.answer), pixels: judged.pixels });
        }
        Ok(judged)
    }

    /// What Postgres knows of a content. It saves work and no more, so nobody waits for a Postgres that is
    /// broken, and none is the answer to every failure: the image is scored.
    async fn stored_answer(&self, reuse: &Reuse, key: &ContentKey) -> Option<KnownAnswer> {
        let pass = self.parts.hold.postgres.pass_if_well()?;
        let _stage = self.enter(Stage::Lookup);
        let (reply, answer) = oneshot::channel();
        reuse.rows.send(LookUp { key: key.clone(), reply }).await.ok()?;
        match answer.await.ok()? {
            Ok(found) => {
                pass.worked();
                found.filter(|answer| !answer.scores.is_empty())
            }
            Err(error) => {
                storing::failed(pass, &error);
                None
            }
        }
    }
}

/// The digest of a file, without holding up other tasks for a large one.
async fn digest(bytes: &Bytes) -> Result<ContentDigest, Abandoned> {
    if bytes.len() <= DIGESTED_HERE {
        return Ok(ContentDigest::of(bytes));
    }
    let bytes = bytes.clone();
    // It fails only with the runtime itself.
    tokio::task::spawn_blocking(move || ContentDigest::of(&bytes)).await.map_err(|_| Abandoned::Stopping)
}
