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
    registry::{RegistryError, ResolvedCheckpoint},
    retry::Backoff,
    store::{RegisteredVersion, Serving as Wanted, ShadowPair, StoreError},
};
use std::{
    collections::HashMap,
    fmt::Display,
    mem,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// What is to serve beside the champion.
struct OnTrial {
    canary: Option<RegisteredVersion>,
    shadows: Vec<RegisteredVersion>,
}

impl OnTrial {
    /// A version that serves in a higher role already has no lower one.
    fn of(wanted: Wanted) -> (Option<RegisteredVersion>, Self) {
        let Wanted { champion, canary, mut shadows } = wanted;
        let is = |version: &RegisteredVersion, other: &Option<RegisteredVersion>| {
            other.as_ref().is_some_and(|other| other.version == version.version)
        };
        let canary = canary.filter(|canary| !is(canary, &champion));
        shadows.retain(|shadow| !is(shadow, &champion) && !is(shadow, &canary));
        (champion, Self { canary, shadows })
    }

    fn is_canary(&self, version: &str) -> bool {
        self.canary.as_ref().is_some_and(|canary| canary.version == version)
    }

    fn is_shadow(&self, version: &str) -> bool {
        self.shadows.iter().any(|shadow| shadow.version == version)
    }
}

/// Where versions are registered, and where their files are.
pub trait Releases: Send + Sync + 'static {
    /// What should serve now. No champion leaves the present one.
    ///
    /// # Errors
    /// Postgres does not answer.
    fn wanted(&self) -> impl Future<Output = Result<Wanted, StoreError>> + Send;

    /// The files of `version` on this machine, each of them verified.
    ///
    /// # Errors
    /// [`RegistryError`] when they cannot be had, or are not what was published.
    fn fetch(
        &self,
        version: &RegisteredVersion,
    ) -> impl Future<Output = Result<ResolvedCheckpoint, RegistryError>> + Send;

    /// Keeps what `candidate` and `champion` (versions as in rows) make of the same images.
    ///
    /// # Errors
    /// Postgres does not answer.
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
#[derive(Debug)]
pub struct Deployed {
    /// As the registry names it.
    pub version: String,
    /// What it was loaded from; kept on this machine for as long as this lives.
    pub checkpoint: ResolvedCheckpoint,
    pub model: Arc<ServedModel>,
}

/// Why a version does not serve. What served before still does.
#[derive(Debug, thiserror::Error)]
enum SwitchError {
    #[error(transparent)]
    Fetch(#[from] RegistryError),
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

/// The failed tries to serve a version.
struct Attempts {
    backoff: Backoff,
    /// When it may be tried again; `None`: never in this process.
    next: Option<Instant>,
}

/// Follows a registry, one step after the other.
pub struct Switcher<R, L> {
    models: Arc<Models>,
    releases: Arc<R>,
    loader: L,
    settings: ServingSettings,
    metrics: Arc<ServingMetrics>,
    champion: Deployed,
    canary: Option<Deployed>,
    shadows: Vec<Deployed>,
    /// By version.
    attempts: HashMap<String, Attempts>,
}

impl<R: Releases, L: Loader> Switcher<R, L> {
    /// From `champion`, which `models` serve already.
    pub fn new(
        models: Arc<Models>,
        champion: Deployed,
        releases: R,
        loader: L,
        settings: ServingSettings,
        metrics: Arc<ServingMetrics>,
    ) -> Self {
        let (canary, shadows, attempts) = (None, Vec::new(), HashMap::new());
        let releases = Arc::new(releases);
        Self { models, releases, loader, settings, metrics, champion, canary, shadows, attempts }
    }

    /// Asks the registry every `interval` and does as it says, for as long as this is polled.
    pub async fn run(mut self, interval: Duration) {
        loop {
            match self.releases.wanted().await {
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
        let (champion, trial) = OnTrial::of(wanted);
        let is_champion =
            |version: &str| champion.as_ref().is_some_and(|champion| champion.version == version);
        self.attempts.retain(|version, _| {
            is_champion(version) || trial.is_canary(version) || trial.is_shadow(version)
        });
        self.notice_losses().await;
        self.withdraw(&trial, is_champion).await;
        if let Some(champion) = &champion
            && champion.version != self.champion.version
            && self.may_try(&champion.version)
        {
            self.crown(champion).await;
        }
        match self.settings.switch {
            SwitchMode::Beside => {
                if let Some(canary) = &trial.canary {
                    self.try_canary(canary).await;
                }
                for shadow in &trial.shadows {
                    self.try_shadow(shadow).await;
                }
            }
            SwitchMode::Drain if trial.canary.is_some() || !trial.shadows.is_empty() => {
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
        for Deployed { version, model, checkpoint: _checkpoint } in lost {
            self.free(model).await;
            self.failed(&version, &SwitchError::Lost);
        }
    }

    /// Frees a canary and shadows that are no longer wanted, but for a canary that is to be champion.
    async fn withdraw(&mut self, trial: &OnTrial, is_champion: impl Fn(&str) -> bool) {
        let withdrawn =
            self.canary.take_if(|canary| !trial.is_canary(&canary.version) && !is_champion(&canary.version));
        if let Some(Deployed { version, model, checkpoint: _checkpoint }) = withdrawn {
            tracing::info!(version, "the canary is withdrawn");
            self.models.exchange(|lineup| lineup.canary = None);
            self.free(model).await;
        }
        let withdrawn: Vec<_> =
            self.shadows.extract_if(.., |shadow| !trial.is_shadow(&shadow.version)).collect();
        for Deployed { version, model, checkpoint: _checkpoint } in withdrawn {
            tracing::info!(version, "the shadow is withdrawn");
            self.models.exchange(|lineup| {
                lineup.shadows.retain(|shadow| !Arc::ptr_eq(shadow.model(), &model));
            });
            self.free(model).await;
        }
    }

    /// Has `champion` take the place of the present one.
    async fn crown(&mut self, champion: &RegisteredVersion) {
        let noticed = Instant::now();
        let (from, to) = (self.champion.version.clone(), champion.version.clone());
        tracing::info!(from, to, "there is a new champion");
        let promoted = self.canary.take_if(|canary| canary.version == champion.version);
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
            (None, SwitchMode::Beside) => self.crown_beside(champion).await,
            (None, SwitchMode::Drain) => self.crown_in_place(champion).await,
        };
        match crowned {
            Ok(()) => {
                self.attempts.remove(&champion.version);
                let took = noticed.elapsed();
                self.metrics.switched(took);
                tracing::info!(from, to, ms = took.as_millis() as u64, "the new champion serves");
            }
            Err(error) => self.failed(&champion.version, &error),
        }
    }

    async fn crown_beside(&mut self, champion: &RegisteredVersion) -> Result<(), SwitchError> {
        let next = self.deploy(champion, Duty::Live).await?;
        let model = Arc::clone(&next.model);
        self.models.watch_over(&model);
        self.models.exchange(|lineup| lineup.champion = Some(model));
        let last = mem::replace(&mut self.champion, next);
        self.free(last.model).await;
        Ok(())
    }

    /// The last model goes first; it is loaded again if the next one does not load.
    async fn crown_in_place(&mut self, champion: &RegisteredVersion) -> Result<(), SwitchError> {
        let checkpoint = self.fetch(champion).await?;
        self.models.exchange(|lineup| lineup.champion = None);
        self.free(Arc::clone(&self.champion.model)).await;
        let result = match self.load(&checkpoint, Duty::Live).await {
            Ok(model) => {
                self.champion = Deployed { version: champion.version.clone(), checkpoint, model };
                Ok(())
            }
            Err(error) => match self.load(&self.champion.checkpoint, Duty::Live).await {
                Ok(model) => {
                    self.champion.model = model;
                    Err(error)
                }
                Err(again) => {
                    let (next, last) = (&champion.version, &self.champion.version);
                    let reason = format!("{next}: {error}; {last}: {again}");
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

    async fn try_canary(&mut self, version: &RegisteredVersion) {
        let Some(share) = self.share_of(version, version.canary_share) else { return };
        if self.canary.is_some() {
            self.models.exchange(|lineup| {
                if let Some(canary) = &mut lineup.canary {
                    canary.share = share;
                }
            });
            return;
        }
        if !self.may_try(&version.version) {
            return;
        }
        match self.deploy(version, Duty::Live).await {
            Ok(canary) => {
                let model = Arc::clone(&canary.model);
                self.models.watch_over(&model);
                self.models.exchange(|lineup| lineup.canary = Some(Canary { model, share }));
                self.canary = Some(canary);
                tracing::info!(version = version.version, %share, "a canary serves");
            }
            Err(error) => self.failed(&version.version, &error),
        }
    }

    async fn try_shadow(&mut self, version: &RegisteredVersion) {
        let Some(share) = self.share_of(version, version.shadow_share) else { return };
        if let Some(known) = self.shadows.iter().find(|shadow| shadow.version == version.version) {
            self.models.exchange(|lineup| {
                let of_it = |shadow: &&mut Arc<Shadow>| Arc::ptr_eq(shadow.model(), &known.model);
                if let Some(shadow) = lineup.shadows.iter_mut().find(of_it)
                    && shadow.share() != share
                {
                    *shadow = shadow.with_share(share);
                }
            });
            return;
        }
        if !self.may_try(&version.version) {
            return;
        }
        match self.deploy(version, Duty::Shadow).await {
            Ok(deployed) => {
                let model = Arc::clone(&deployed.model);
                self.models.watch_over(&model);
                let shadow = self.shadow(model, share);
                self.models.exchange(|lineup| lineup.shadows.push(shadow));
                self.shadows.push(deployed);
                tracing::info!(version = version.version, %share, "a shadow scores along");
            }
            Err(error) => self.failed(&version.version, &error),
        }
    }

    /// The table allows no other numbers than shares.
    fn share_of(&self, version: &RegisteredVersion, share: f64) -> Option<Share> {
        let share = Share::new(share);
        if let Err(error) = &share {
            tracing::error!(version = version.version, %error, "a registered version is passed over");
        }
        share.ok()
    }

    fn shadow(&self, model: Arc<ServedModel>, share: Share) -> Arc<Shadow> {
        let models = Arc::downgrade(&self.models);
        let is_busy = move || {
            let champion = models.upgrade().and_then(|models| models.lineup().champion);
            champion.is_none_or(|champion| champion.is_saturated())
        };
        let releases = Arc::clone(&self.releases);
        let record = move |candidate: String, champion: String, pairs: Vec<ShadowPair>| {
            let releases = Arc::clone(&releases);
            async move { releases.record_shadow(&candidate, &champion, &pairs).await }
        };
        Shadow::start(model, share, Arc::clone(&self.metrics.shadow), is_busy, record)
    }

    async fn deploy(&self, version: &RegisteredVersion, duty: Duty) -> Result<Deployed, SwitchError> {
        let checkpoint = self.fetch(version).await?;
        let model = self.load(&checkpoint, duty).await?;
        Ok(Deployed { version: version.version.clone(), checkpoint, model })
    }

    async fn fetch(&self, version: &RegisteredVersion) -> Result<ResolvedCheckpoint, SwitchError> {
        self.metrics.enter(Stage::Fetching);
        Ok(self.releases.fetch(version).await?)
    }

    async fn load(
        &self,
        checkpoint: &ResolvedCheckpoint,
        duty: Duty,
    ) -> Result<Arc<ServedModel>, SwitchError> {
        self.metrics.enter(Stage::Loading);
        let limit = Duration::from_millis(self.settings.load_timeout_ms);
        match tokio::time::timeout(limit, self.loader.load(&checkpoint.folder, duty)).await {
            Ok(loaded) => loaded.map_err(|error| SwitchError::Load(error.to_string())),
            Err(_) => Err(SwitchError::Stuck(limit)),
        }
    }

    async fn free(&self, model: Arc<ServedModel>) {
        self.metrics.enter(Stage::Freeing);
        model.shut_down().await;
        tracing::info!(version = model.version().version, "a model is freed");
    }

    fn may_try(&self, version: &str) -> bool {
        let due = |attempts: &Attempts| attempts.next.is_some_and(|next| Instant::now() >= next);
        self.attempts.get(version).is_none_or(due)
    }

    fn failed(&mut self, version: &str, error: &SwitchError) {
        self.metrics.failures.add(1);
        let first = || Attempts { backoff: self.settings.retry().endless_backoff(), next: None };
        let attempts = self.attempts.entry(version.to_owned()).or_insert_with(first);
        let pause = attempts.backoff.next_delay().unwrap_or_default();
        let stuck = matches!(error, SwitchError::Stuck(_));
        attempts.next = (!stuck).then(|| Instant::now() + pause);
        tracing::error!(
            version, %error, attempts = attempts.backoff.attempts(),
            next_ms = (!stuck).then_some(pause.as_millis() as u64),
            serving = self.champion.version,
            "a registered version cannot be served"
        );
    }
}

#[cfg(all(test, feature = "dev"))]
mod tests;
