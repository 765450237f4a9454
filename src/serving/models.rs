//! Which model scores which object now, and what becomes of that when one of them fails.

use super::{
    model::ServedModel,
    shadow::Shadow,
    share::{Purpose, Share},
};
use crate::{inference::EngineFailure, object::ObjectRef};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// The models that are loaded, by what each is for.
#[derive(Clone, Debug, Default)]
pub struct Lineup {
    /// Scores whatever no canary does; `None` only while one model has to go before the next is loaded.
    pub champion: Option<Arc<ServedModel>>,
    pub canary: Option<Canary>,
    /// Score what others publish, and publish nothing.
    pub shadows: Vec<Arc<Shadow>>,
}

/// A model that scores a share of the keys instead of the champion.
#[derive(Clone, Debug)]
pub struct Canary {
    pub model: Arc<ServedModel>,
    pub share: Share,
}

impl Lineup {
    /// The model for an object, or for a record too malformed to name one.
    pub fn model_for(&self, object: Option<&ObjectRef>) -> Option<&Arc<ServedModel>> {
        let canary = self.canary.as_ref().filter(|canary| {
            object.is_some_and(|object| canary.share.holds(Purpose::Canary, &object.bucket, &object.key))
        });
        canary.map(|canary| &canary.model).or(self.champion.as_ref())
    }
}

/// What a failed model means for an image that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Another model scores it.
    TryAgain,
    /// None does: the process ends, and the image is left to a replay.
    Everything,
}

/// The serving models. Whoever scores asks for one, an image at a time, and holds it no longer than
/// that, so that a model that is exchanged is free as soon as its last images are answered.
pub struct Models {
    lineup: watch::Sender<Lineup>,
    failure: watch::Sender<Option<EngineFailure>>,
}

impl Models {
    /// Serving `champion`.
    pub fn new(champion: Arc<ServedModel>) -> Arc<Self> {
        let models = Arc::new(Self { lineup: watch::Sender::default(), failure: watch::Sender::new(None) });
        models.watch_over(&champion);
        models.exchange(|lineup| lineup.champion = Some(champion));
        models
    }

    /// The model for an object now; waits while there is none.
    pub async fn model_for(&self, object: Option<&ObjectRef>) -> Arc<ServedModel> {
        let mut lineup = self.lineup.subscribe();
        // The sender lives as long as this does, so the wait ends with a model or with the caller.
        loop {
            if let Some(model) = lineup.borrow_and_update().model_for(object) {
                return Arc::clone(model);
            }
            if lineup.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The models as they are now.
    pub fn lineup(&self) -> Lineup {
        self.lineup.borrow().clone()
    }

    /// Changes the models in one step: every later image is scored as the new line-up says, and those
    /// under way as the old one did.
    pub fn exchange(&self, change: impl FnOnce(&mut Lineup)) {
        self.lineup.send_modify(change);
    }

    /// Has the failure of `model` noticed, even while no image comes.
    pub fn watch_over(self: &Arc<Self>, model: &Arc<ServedModel>) {
        let (models, model) = (Arc::downgrade(self), Arc::clone(model));
        // The engine fails when it is shut down, so this ends with the model.
        tokio::spawn(async move {
            let failure = model.failed().await;
            if let Some(models) = models.upgrade() {
                models.lost(&model, &failure);
            }
        });
    }

    /// `model` failed on an image, or by itself.
    ///
    /// A champion's failure is everybody's, and so is one of the device, which all models share. A canary
    /// that fails leaves its keys to the champion, and a shadow is missed by nobody. A model that has been
    /// exchanged only took no more images.
    pub fn lost(&self, model: &Arc<ServedModel>, failure: &EngineFailure) -> Lost {
        let shared = matches!(failure, EngineFailure::Device { .. } | EngineFailure::Hung { .. });
        let is = |other: &Arc<ServedModel>| Arc::ptr_eq(other, model);
        let mut fatal = shared;
        self.lineup.send_if_modified(|lineup| {
            fatal |= lineup.champion.as_ref().is_some_and(is);
            if fatal {
                return false;
            }
            let canary = lineup.canary.take_if(|canary| is(&canary.model)).is_some();
            let shadow = lineup.shadows.extract_if(.., |shadow| is(shadow.model())).count() > 0;
            if canary || shadow {
                let version = &model.version().version;
                tracing::error!(version, %failure, canary, shadow, "a model failed, and is served no more");
            }
            canary || shadow
        });
        if fatal {
            self.fail(failure.clone());
            return Lost::Everything;
        }
        Lost::TryAgain
    }

    /// Nothing can be scored any more; the first reason stands.
    pub fn fail(&self, failure: EngineFailure) {
        self.failure.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(failure);
            is_first
        });
    }

    /// Resolves once nothing can be scored any more.
    pub async fn failed(&self) -> EngineFailure {
        let mut failure = self.failure.subscribe();
        loop {
            if let Some(failure) = failure.borrow_and_update().clone() {
                return failure;
            }
            if failure.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Whether live images are scored now.
    ///
    /// # Errors
    /// Why they are not.
    pub fn is_well(&self) -> Result<(), String> {
        match &self.lineup.borrow().champion {
            Some(champion) => champion.is_well(),
            None => Err("the last model is gone and the next one is being loaded".into()),
        }
    }

    /// Preprocessed images that wait for a batch of a model that publishes.
    pub fn waiting(&self) -> usize {
        let lineup = self.lineup.borrow();
        let canary = lineup.canary.as_ref().map(|canary| &canary.model);
        lineup.champion.iter().chain(canary).map(|model| model.waiting()).sum()
    }

    /// How long the longest run of a model that publishes has been under way; `None` between runs.
    pub fn running_for(&self) -> Option<Duration> {
        let lineup = self.lineup.borrow();
        let canary = lineup.canary.as_ref().map(|canary| &canary.model);
        lineup.champion.iter().chain(canary).filter_map(|model| model.running_for()).max()
    }

    /// Frees every model. Images that ask for one from here on wait for ever.
    pub async fn shut_down(&self) {
        let Lineup { champion, canary, shadows } = self.lineup.send_replace(Lineup::default());
        let shadows = shadows.iter().map(|shadow| Arc::clone(shadow.model()));
        for model in shadows.chain(canary.map(|canary| canary.model)).chain(champion) {
            model.shut_down().await;
        }
    }
}

#[cfg(all(test, feature = "dev"))]
mod tests;
