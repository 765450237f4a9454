//! Loads what the worker scores with.

use super::{Source, WorkerError};
use crate::{
    config::Config,
    fetch::Fetcher,
    image::{self, Fit, ImageSettings, Preprocessor},
    inference::{InferenceSettings, Scorer, ScoringService, StartError, metrics::InferenceMetrics},
    model::{ModelError, ModelSettings, TorchScorer},
    quarantine::Hello,
    registry::{CheckpointSource, Registry, RegistryError, ResolvedCheckpoint, resolve},
    serving::{Deployed, Duty, Loader, Models, Releases, ServedModel, ServingMetrics, Switcher},
    store::{RegisteredVersion, ShadowPair, Store, StoreError},
};
use std::{path::Path, sync::Arc};
use tokio::task::JoinHandle;

/// Below every thread of the live models; 19 is the lowest there is.
const SHADOW_NICENESS: i32 = 10;

/// The models of a worker.
pub(super) struct Serving {
    pub models: Arc<Models>,
    pub metrics: Arc<ServingMetrics>,
    /// Follows the registry, if there is one to follow.
    pub switching: Option<JoinHandle<()>>,
    /// Keeps the files of a model that is not exchanged.
    pub _checkpoint: Option<ResolvedCheckpoint>,
}

/// Loads what `source` names, and follows the registry where it names that.
pub(super) async fn serve(
    config: &Config,
    source: Source<'_>,
    store: &Store,
    fetcher: &Fetcher,
) -> Result<Serving, WorkerError> {
    let serving = match source {
        Source::Given(service) => {
            let service = service.await?;
            let metrics = Arc::new(ServingMetrics::counting_in(Arc::clone(service.metrics())));
            let loader = CheckpointLoader::new(config, Arc::clone(&metrics));
            let model = loader.served(service, Path::new(&config.model.checkpoint));
            Serving { models: Models::new(model), metrics, switching: None, _checkpoint: None }
        }
        Source::Configured if follows_registry(config) => follow(config, store, fetcher).await?,
        Source::Configured => {
            let checkpoint = resolve(config).await?;
            let metrics = Arc::new(ServingMetrics::default());
            let loader = CheckpointLoader::new(config, Arc::clone(&metrics));
            let models = Models::new(loader.load(&checkpoint.folder, Duty::Live).await?);
            Serving { models, metrics, switching: None, _checkpoint: Some(checkpoint) }
        }
    };
    if let Some(champion) = &serving.models.lineup().champion {
        let version = champion.version();
        tracing::info!(model = version.model, version = version.version, "the model is ready");
    }
    Ok(serving)
}

fn follows_registry(config: &Config) -> bool {
    #[cfg(feature = "dev")]
    if crate::inference::stand_in::configured().is_some() {
        return false;
    }
    matches!(config.model.checkpoint.parse(), Ok(CheckpointSource::Champion))
}

/// Loads the registered champion, and whatever is registered later.
async fn follow(config: &Config, store: &Store, fetcher: &Fetcher) -> Result<Serving, WorkerError> {
    let registry = Registry::over(fetcher.clone(), &config.registry, &config.retry);
    let releases = RegisteredReleases { store: store.clone(), registry };
    let metrics = Arc::new(ServingMetrics::default());
    let loader = CheckpointLoader::new(config, Arc::clone(&metrics));
    let champion = releases.wanted().await?.champion.ok_or(RegistryError::NoChampion)?;
    let checkpoint = releases.fetch(&champion).await?;
    let model = loader.load(&checkpoint.folder, Duty::Live).await?;
    let models = Models::new(Arc::clone(&model));
    let deployed = Deployed { version: champion.version, checkpoint, model };
    let switcher = Switcher::new(
        Arc::clone(&models),
        deployed,
        releases,
        loader,
        config.serving.clone(),
        Arc::clone(&metrics),
    );
    let switching = tokio::spawn(switcher.run(config.registry.poll_interval()));
    Ok(Serving { models, metrics, switching: Some(switching), _checkpoint: None })
}

/// Rows in Postgres, files in S3.
struct RegisteredReleases {
    store: Store,
    registry: Registry,
}

impl Releases for RegisteredReleases {
    async fn wanted(&self) -> Result<crate::store::Serving, StoreError> {
        self.store.serving().await
    }

    async fn fetch(&self, version: &RegisteredVersion) -> Result<ResolvedCheckpoint, RegistryError> {
        self.registry.version(version).await
    }

    async fn record_shadow(
        &self,
        candidate: &str,
        champion: &str,
        pairs: &[ShadowPair],
    ) -> Result<(), StoreError> {
        self.store.record_shadow(candidate, champion, pairs).await
    }
}

/// Loads checkpoint folders as the configuration says.
struct CheckpointLoader {
    settings: Hello,
    metrics: Arc<ServingMetrics>,
}

impl CheckpointLoader {
    fn new(config: &Config, metrics: Arc<ServingMetrics>) -> Self {
        let settings = Hello {
            model: config.model.clone(),
            image: config.image.clone(),
            inference: config.inference.clone(),
            telemetry: config.telemetry.clone(),
        };
        Self { settings, metrics }
    }

    /// `service`, loaded from `folder`, with a child process that loads the same.
    fn served(&self, service: ScoringService, folder: &Path) -> Arc<ServedModel> {
        ServedModel::new(service, self.settings_for(folder), Arc::clone(&self.metrics.quarantine))
    }

    fn settings_for(&self, folder: &Path) -> Hello {
        let mut settings = self.settings.clone();
        settings.model.checkpoint = folder.display().to_string();
        settings
    }
}

impl Loader for CheckpointLoader {
    type Error = WorkerError;

    async fn load(&self, folder: &Path, duty: Duty) -> Result<Arc<ServedModel>, WorkerError> {
        let Hello { model, image, inference, .. } = self.settings_for(folder);
        let (inference, metrics) = match duty {
            Duty::Live => (inference, Arc::clone(&self.metrics.inference)),
            // One image at a time: it must not be in the way of a batch, nor hold much memory.
            Duty::Shadow => {
                let inference = InferenceSettings {
                    batch_size: 1,
                    linger_ms: 0,
                    decode_threads: 1,
                    decoded_megapixels: 1,
                    max_in_flight: 1,
                    ..inference
                };
                (inference, Arc::default())
            }
        };
        let service = load(model, image, inference, metrics, duty).await?;
        Ok(self.served(service, folder))
    }
}

/// The model and its preprocessing, from one checkpoint folder.
///
/// With the feature `dev`, a stand-in where the environment asks for one.
pub(super) async fn load(
    model: ModelSettings,
    images: ImageSettings,
    inference: InferenceSettings,
    metrics: Arc<InferenceMetrics>,
    duty: Duty,
) -> Result<ScoringService, WorkerError> {
    #[cfg(feature = "dev")]
    if let Some(script) = crate::inference::stand_in::configured() {
        return load_stand_in(script, images, inference, metrics).await;
    }
    let preprocessor = Preprocessor::open(Path::new(&model.checkpoint))?.with_fit(Fit::Pad);
    let build = move || {
        if duty == Duty::Shadow {
            lower_priority();
        }
        TorchScorer::load(&model, image::PREPROCESS_REVISION)
            .map(|scorer| Box::new(scorer) as Box<dyn Scorer>)
    };
    ScoringService::start_counting_in(metrics, build, preprocessor, images, &inference)
        .await
        .map_err(|error: StartError<ModelError>| refused(error))
}

/// Has this thread, and those that it starts, get the processor after all others.
fn lower_priority() {
    // SAFETY: the call touches no memory; on Linux 0 is the calling thread alone.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, SHADOW_NICENESS) } != 0 {
        tracing::debug!("the shadow's thread keeps its priority");
    }
}

#[cfg(feature = "dev")]
async fn load_stand_in(
    script: std::path::PathBuf,
    images: ImageSettings,
    inference: InferenceSettings,
    metrics: Arc<InferenceMetrics>,
) -> Result<ScoringService, WorkerError> {
    use crate::inference::stand_in::{self, StandInScorer};
    tracing::warn!(
        script = %script.display(),
        "no model is loaded: {} makes up every score; this is for tests alone",
        stand_in::VARIABLE
    );
    let scorer = StandInScorer::scripted(script).map_err(|error| WorkerError::Model(error.to_string()))?;
    let preprocessor = Preprocessor::clip(scorer.image_size());
    let build = move || Ok(Box::new(scorer) as Box<dyn Scorer>);
    ScoringService::start_counting_in(metrics, build, preprocessor, images, &inference)
        .await
        .map_err(|error: StartError<std::convert::Infallible>| refused(error))
}

fn refused<E: std::error::Error>(error: StartError<E>) -> WorkerError {
    match error {
        StartError::Engine(failure) => WorkerError::Engine(failure),
        error => WorkerError::Model(error.to_string()),
    }
}
