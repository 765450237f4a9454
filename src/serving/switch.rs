//! Follows the registry: loads what it says should serve, and frees what should no longer.

use super::{
    metrics::{ServingMetrics, Stage},
    model::ServedModel,
    models::{Canary, Models},
    settings::{ServingSettings, SwitchMode},
    shadow::Shadow,
    share::Share,
};
use crate::{
    inference::EngineFailure,
    retry::Backoff,
    store::{ShadowPair, StoreError},
};
use std::{
    collections::HashMap,
    fmt::Display,
    mem,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// A published version of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// As the registry names it; equal versions have equal files.
    pub version: String,
    /// Where its files are.
    pub uri: String,
    /// The SHA-256 of their manifest, in hexadecimal.
    pub manifest_sha256: String,
}

/// What the registry says should serve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// `None` leaves the present champion.
    pub champion: Option<Release>,
    pub canary: Option<(Release, Share)>,
    pub shadows: Vec<(Release, Share)>,
}

impl Wanted {
    /// Without canary and shadows that are there already in a higher role.
    fn resolved(mut self) -> Self {
        let champion = self.champion.clone();
        let is = |version: &str, other: &Option<Release>| {
            other.as_ref().is_some_and(|release| release.version == version)
        };
        self.canary.take_if(|(canary, share)| is(&canary.version, &champion) || share.get() == 0.0);
        let canary = self.canary.as_ref().map(|(release, _)| release.clone());
        self.shadows.retain(|(shadow, share)| {
            !is(&shadow.version, &champion) && !is(&shadow.version, &canary) && share.get() > 0.0
        });
        self
    }

    fn names(&self, version: &str) -> bool {
        let others = self.shadows.iter().chain(&self.canary).map(|(release, _)| release);
        self.champion.iter().chain(others).any(|release| release.version == version)
    }
}

/// Where versions are registered and their files are.
pub trait Registry: Send + Sync + 'static {
    type Error: Display + Send;

    /// What should serve now.
    fn wanted(&self) -> impl Future<Output = Result<Wanted, Self::Error>> + Send;

    /// A folder on this machine with the files of `release`, each of them verified.
    fn fetch(&self, release: &Release) -> impl Future<Output = Result<PathBuf, Self::Error>> + Send;

    /// Keeps what `candidate` and `champion` (versions as in rows) make of the same images.
    fn record_shadow(
        &self,
        candidate: &str,
        champion: &str,
        pairs: &[ShadowPair],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// What a model is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// It publishes: champion or canary.
    Live,
    /// It yields to whatever publishes.
    Shadow,
}

/// Makes a checkpoint folder a model that serves.
pub trait Loader: Send + Sync + 'static {
    type Error: Display + Send;

    /// Loads, warms up and has the built-in picture scored, on threads of its own.
    fn load(
        &self,
        folder: &Path,
        duty: Duty,
    ) -> impl Future<Output = Result<Arc<ServedModel>, Self::Error>> + Send;
}

/// A version that is loaded.
#[derive(Clone, Debug)]
pub struct Deployed {
    pub release: Release,
    /// Where it was loaded from.
    pub folder: PathBuf,
    pub model: Arc<ServedModel>,
}

/// Why a version does not serve. What served before still does.
#[derive(Debug, thiserror::Error)]
enum SwitchError {
    #[error("{0}")]
    Fetch(String),
    #[error("{0}")]
    Load(String),
    /// Its threads cannot be ended, and a second try would leave more of them.
    #[error(
        "it was not loaded within {} s; it is given up until the process is restarted: look at the device, \
         or raise serving.load_timeout_ms if it is only slow",
        .0.as_secs()
    )]
    Stuck(Duration),
    #[error("it failed while it scored; the log says how")]
    Lost,
}

/// When a version that could not be served may be tried again.
struct Trial {
    backoff: Backoff,
    /// `None`: never in this process.
    not_before: Option<Instant>,
}

/// Follows a registry, one step after the other.
pub struct Switcher<R, L> {
    models: Arc<Models>,
    registry: Arc<R>,
    loader: L,
    settings: ServingSettings,
    metrics: Arc<ServingMetrics>,
    champion: Deployed,
    canary: Option<Deployed>,
    shadows: Vec<Deployed>,
    /// By version.
    trials: HashMap<String, Trial>,
}

impl<R: Registry, L: Loader> Switcher<R, L> {
    /// From `champion`, which `models` serve already.
    pub fn new(
        models: Arc<Models>,
        champion: Deployed,
        registry: R,
        loader: L,
        settings: ServingSettings,
        metrics: Arc<ServingMetrics>,
    ) -> Self {
        let (canary, shadows, trials) = (None, Vec::new(), HashMap::new());
        let registry = Arc::new(registry);
        Self { models, registry, loader, settings, metrics, champion, canary, shadows, trials }
    }

    /// Asks the registry every `interval` and does as it says, for as long as this is polled.
    pub async fn run(mut self, interval: Duration) {
        loop {
            match self.registry.wanted().await {
                Ok(wanted) => self.follow(wanted).await,
                Err(error) => {
                    self.metrics.unanswered.add(1);
                    tracing::warn!(%error, "the registry of models does not answer; what serves goes on");
                }
            }
            tokio::time::sleep(interval).await;
        }
    }

    /// One look: loads and frees until what serves is what is `wanted`, as far as it can be had.
    pub async fn follow(&mut self, wanted: Wanted) {
        let wanted = wanted.resolved();
        self.trials.retain(|version, _| wanted.names(version));
        self.notice_losses().await;
        self.withdraw(&wanted).await;
        if let Some(release) = &wanted.champion
            && release.version != self.champion.release.version
            && self.may_try(release)
        {
            self.crown(release).await;
        }
        match self.settings.switch {
            SwitchMode::Beside => {
                if let Some((release, share)) = &wanted.canary {
                    self.try_canary(release, *share).await;
                }
                for (release, share) in &wanted.shadows {
                    self.try_shadow(release, *share).await;
                }
            }
            SwitchMode::Drain if wanted.canary.is_some() || !wanted.shadows.is_empty() => {
                tracing::warn!(
                    "canaries and shadows need room for a second model; serving.switch = \"drain\" has none"
                );
            }
            SwitchMode::Drain => {}
        }
        self.metrics.enter(Stage::Idle);
    }

    /// Frees a canary and shadows that failed, and lets them rest.
    async fn notice_losses(&mut self) {
        let lineup = self.models.lineup();
        let serves = |deployed: &mut Deployed| {
            let is = |model: &Arc<ServedModel>| Arc::ptr_eq(model, &deployed.model);
            lineup.canary.as_ref().is_some_and(|canary| is(&canary.model))
                || lineup.shadows.iter().any(|shadow| is(shadow.model()))
        };
        let canary = self.canary.take_if(|canary| !serves(canary));
        let shadows = self.shadows.extract_if(.., |shadow| !serves(shadow));
        let lost: Vec<Deployed> = shadows.chain(canary).collect();
        drop(lineup);
        for Deployed { release, model, .. } in lost {
            self.free(model).await;
            self.failed(&release, &SwitchError::Lost);
        }
    }

    /// Frees a canary and shadows that are no longer wanted, but for a canary that is to be champion.
    async fn withdraw(&mut self, wanted: &Wanted) {
        let stays = |deployed: &Deployed, release: Option<&Release>| {
            release.is_some_and(|release| release.version == deployed.release.version)
        };
        let canary = wanted.canary.as_ref().map(|(release, _)| release);
        let withdrawn = self.canary.take_if(|deployed| {
            !stays(deployed, canary) && !stays(deployed, wanted.champion.as_ref())
        });
        if let Some(Deployed { release, model, .. }) = withdrawn {
            tracing::info!(version = release.version, "the canary is withdrawn");
            self.models.exchange(|lineup| lineup.canary = None);
            self.free(model).await;
        }
        let is_wanted = |deployed: &Deployed| {
            wanted.shadows.iter().any(|(release, _)| stays(deployed, Some(release)))
        };
        let withdrawn: Vec<_> = self.shadows.extract_if(.., |shadow| !is_wanted(shadow)).collect();
        for Deployed { release, model, .. } in withdrawn {
            tracing::info!(version = release.version, "the shadow is withdrawn");
            self.models.exchange(|lineup| {
                lineup.shadows.retain(|shadow| !Arc::ptr_eq(shadow.model(), &model));
            });
            self.free(model).await;
        }
    }

    /// Has `release` take the champion's place.
    async fn crown(&mut self, release: &Release) {
        let noticed = Instant::now();
        let (from, to) = (self.champion.release.version.clone(), release.version.clone());
        tracing::info!(from, to, "there is a new champion");
        let promoted = self.canary.take_if(|canary| canary.release.version == release.version);
        let crowned = match (promoted, self.settings.switch) {
            (Some(canary), _) => {
                self.models.exchange(|lineup| {
                    lineup.canary = None;
                    lineup.champion = Some(Arc::clone(&canary.model));
                });
                let last = mem::replace(&mut self.champion, canary);
                self.free(last.model).await;
                Ok(())
            }
            (None, SwitchMode::Beside) => self.crown_beside(release).await,
            (None, SwitchMode::Drain) => self.crown_in_place(release).await,
        };
        match crowned {
            Ok(()) => {
                self.trials.remove(&release.version);
                let took = noticed.elapsed();
                self.metrics.switched(took);
                tracing::info!(from, to, ms = took.as_millis() as u64, "the new champion serves");
            }
            Err(error) => self.failed(release, &error),
        }
    }

    async fn crown_beside(&mut self, release: &Release) -> Result<(), SwitchError> {
        let next = self.deploy(release, Duty::Live).await?;
        let model = Arc::clone(&next.model);
        self.models.watch_over(&model);
        self.models.exchange(|lineup| lineup.champion = Some(model));
        let last = mem::replace(&mut self.champion, next);
        self.free(last.model).await;
        Ok(())
    }

    /// The last model goes first; it is loaded again if the next one does not load.
    async fn crown_in_place(&mut self, release: &Release) -> Result<(), SwitchError> {
        let folder = self.fetch(release).await?;
        self.models.exchange(|lineup| lineup.champion = None);
        self.free(Arc::clone(&self.champion.model)).await;
        let result = match self.load(&folder, Duty::Live).await {
            Ok(model) => {
                self.champion = Deployed { release: release.clone(), folder, model };
                Ok(())
            }
            Err(error) => match self.load(&self.champion.folder, Duty::Live).await {
                Ok(model) => {
                    self.champion.model = model;
                    Err(error)
                }
                Err(again) => {
                    let reason = format!("{}: {error}; {}: {again}", release.version, self.champion.release.version);
                    self.models.fail(EngineFailure::Switch { reason: reason.into() });
                    return Err(error);
                }
            },
        };
        let model = Arc::clone(&self.champion.model);
        self.models.watch_over(&model);
        self.models.exchange(|lineup| lineup.champion = Some(model));
        result
    }

    async fn try_canary(&mut self, release: &Release, share: Share) {
        if self.canary.is_some() {
            self.models.exchange(|lineup| {
                if let Some(canary) = &mut lineup.canary {
                    canary.share = share;
                }
            });
            return;
        }
        if !self.may_try(release) {
            return;
        }
        match self.deploy(release, Duty::Live).await {
            Ok(canary) => {
                let model = Arc::clone(&canary.model);
                self.models.watch_over(&model);
                self.models.exchange(|lineup| lineup.canary = Some(Canary { model, share }));
                self.canary = Some(canary);
                tracing::info!(version = release.version, %share, "a canary serves");
            }
            Err(error) => self.failed(release, &error),
        }
    }

    async fn try_shadow(&mut self, release: &Release, share: Share) {
        if let Some(known) = self.shadows.iter().find(|shadow| shadow.release.version == release.version) {
            self.models.exchange(|lineup| {
                let of_it = |shadow: &&mut Arc<Shadow>| Arc::ptr_eq(shadow.model(), &known.model);
                if let Some(shadow) = lineup.shadows.iter_mut().find(of_it) {
                    *shadow = shadow.with_share(share);
                }
            });
            return;
        }
        if !self.may_try(release) {
            return;
        }
        match self.deploy(release, Duty::Shadow).await {
            Ok(deployed) => {
                let model = Arc::clone(&deployed.model);
                self.models.watch_over(&model);
                let shadow = self.shadow(model, share);
                self.models.exchange(|lineup| lineup.shadows.push(shadow));
                self.shadows.push(deployed);
                tracing::info!(version = release.version, %share, "a shadow scores along");
            }
            Err(error) => self.failed(release, &error),
        }
    }

    fn shadow(&self, model: Arc<ServedModel>, share: Share) -> Arc<Shadow> {
        let models = Arc::downgrade(&self.models);
        let is_busy = move || {
            let champion = models.upgrade().and_then(|models| models.lineup().champion);
            champion.is_none_or(|champion| champion.is_saturated())
        };
        let registry = Arc::clone(&self.registry);
        let record = move |candidate: String, champion: String, pairs: Vec<ShadowPair>| {
            let registry = Arc::clone(&registry);
            async move { registry.record_shadow(&candidate, &champion, &pairs).await }
        };
        Shadow::start(model, share, Arc::clone(&self.metrics.shadow), is_busy, record)
    }

    async fn deploy(&self, release: &Release, duty: Duty) -> Result<Deployed, SwitchError> {
        let folder = self.fetch(release).await?;
        let model = self.load(&folder, duty).await?;
        Ok(Deployed { release: release.clone(), folder, model })
    }

    async fn fetch(&self, release: &Release) -> Result<PathBuf, SwitchError> {
        self.metrics.enter(Stage::Fetching);
        self.registry.fetch(release).await.map_err(|error| SwitchError::Fetch(error.to_string()))
    }

    async fn load(&self, folder: &Path, duty: Duty) -> Result<Arc<ServedModel>, SwitchError> {
        self.metrics.enter(Stage::Loading);
        let limit = Duration::from_millis(self.settings.load_timeout_ms);
        match tokio::time::timeout(limit, self.loader.load(folder, duty)).await {
            Ok(loaded) => loaded.map_err(|error| SwitchError::Load(error.to_string())),
            Err(_) => Err(SwitchError::Stuck(limit)),
        }
    }

    async fn free(&self, model: Arc<ServedModel>) {
        self.metrics.enter(Stage::Freeing);
        model.shut_down().await;
        tracing::info!(version = model.version().version, "a model is freed");
    }

    fn may_try(&self, release: &Release) -> bool {
        self.trials
            .get(&release.version)
            .is_none_or(|trial| trial.not_before.is_some_and(|moment| Instant::now() >= moment))
    }

    fn failed(&mut self, release: &Release, error: &SwitchError) {
        self.metrics.failures.add(1);
        let new = || Trial { backoff: self.settings.retry().endless_backoff(), not_before: None };
        let trial = self.trials.entry(release.version.clone()).or_insert_with(new);
        let pause = trial.backoff.next_delay().unwrap_or_default();
        let stuck = matches!(error, SwitchError::Stuck(_));
        trial.not_before = (!stuck).then(|| Instant::now() + pause);
        tracing::error!(
            version = release.version, %error, attempts = trial.backoff.attempts(),
            next_ms = (!stuck).then_some(pause.as_millis() as u64),
            serving = self.champion.release.version,
            "a registered version cannot be served"
        );
    }
}

#[cfg(all(test, feature = "dev"))]
mod tests;
