//! One run from its claim to its end.

use super::{
    cache::{CachedPhotos, PhotoCache},
    dataset::Dataset,
    error::RetrainError,
    fetching::{Fetched, PhotoSource},
    finish::Finish,
    judge::Judge,
    lease::{Heartbeat, Watch},
    need::NothingToDo,
    prepare::Preparation,
    publishing::Publisher,
    select,
    training::Training,
};
use crate::{
    config::Config,
    failpoint,
    fetch::{Fetcher, S3Settings},
    labels::{LabelledObject, Scale},
    model::config::ModelConfig,
    registry::{Registry, RegistryError},
    store::{Claim, ClaimedRun, HeldRun, RegisteredVersion, RunKind, RunLease, RunOutcome, RunPlan, Store},
};
use futures_util::FutureExt;
use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
};

/// What runs work with.
pub(super) struct Job<'a> {
    pub config: &'a Config,
    pub store: Store,
    pub publisher: Publisher,
    pub source: PhotoSource,
    pub cache: PhotoCache,
}

/// Trains a challenger on new labels and has it take the champion's place if it is better. When `shutdown`
/// resolves, saves what was done, and the next call goes on from there.
///
/// # Errors
/// [`RetrainError`], whose exit code says what failed.
pub async fn run(config: &Config, shutdown: impl Future<Output = ()>) -> Result<Finish, RetrainError> {
    config.check_retrain()?;
    let job = Job::connect(config).boxed_local().await?;
    let finish = job.claim_and(RunKind::Retrain, shutdown, async |claimed, champion, watch| {
        job.retrain(claimed, champion, watch).boxed_local().await
    });
    // Its type would be as deep as all that it calls.
    let finish = finish.boxed_local().await;
    job.store.close().await;
    Ok(finish?.unwrap_or_else(Finish::Held))
}

impl<'a> Job<'a> {
    pub async fn connect(config: &'a Config) -> Result<Self, RetrainError> {
        let store = Store::connect(&config.postgres).await?;
        if config.postgres.migrate_at_start {
            store.migrate().await?;
        }
        // Labelled photos have been there for long: those that are missing will not appear.
        let s3 = S3Settings { missing_grace_ms: 0, ..config.s3.clone() };
        let fetcher = Fetcher::connect(&s3).await?;
        let registry = Registry::over(fetcher.clone(), &config.registry, &config.retry);
        let cache = PhotoCache::open(&config.retrain.work_dir)?;
        let source = PhotoSource {
            fetcher: fetcher.clone(),
            cache: cache.clone(),
            retry: config.retry.clone(),
            buckets: config.s3.buckets.clone(),
            max_bytes: config.image.max_bytes,
            parallelism: config.s3.parallelism,
        };
        let publisher = Publisher { store: store.clone(), registry, fetcher, retry: config.retry.clone() };
        Ok(Self { config, store, publisher, source, cache })
    }

    /// Does `work` on a run that is this process's, and has it end or wait for the next process; or says who
    /// is at it.
    pub async fn claim_and<T>(
        &self,
        kind: RunKind,
        shutdown: impl Future<Output = ()>,
        work: impl AsyncFnOnce(&ClaimedRun, &RegisteredVersion, &Watch) -> Result<T, RetrainError>,
    ) -> Result<Result<T, HeldRun>, RetrainError> {
        let champion = self.store.champion().await?.ok_or(RegistryError::NoChampion)?;
        let lease = self.config.retrain.lease();
        let claimed = match self.store.claim_run(kind, &holder(), lease).await? {
            Claim::Held(held) => return Ok(Err(held)),
            Claim::Ours(claimed) => claimed,
        };
        let run = claimed.lease.run;
        tracing::info!(run, attempt = claimed.attempts, champion = champion.version, "the run is ours");
        let watch = Watch::new(run);
        let heartbeat = Heartbeat::start(self.store.clone(), claimed.lease, lease, watch.clone());
        // Boxed, since the compiler follows the whole of it to lay out a future that holds it.
        let mut working = Box::pin(work(&claimed, &champion, &watch));
        let done = tokio::select! {
            biased;
            done = &mut working => done,
            () = shutdown => {
                tracing::info!(run, "asked to stop; what is done is kept");
                watch.stop();
                working.await
            }
        };
        drop(heartbeat);
        if let Err(error) = &done
            && !watch.is_lost()
        {
            let ended = match error.is_final() {
                true => {
                    let reason = error.to_string();
                    let champion = Some(champion.version.as_str());
                    self.store.end_run(&claimed.lease, RunOutcome::Failed, &reason, champion).await
                }
                false => self.store.release_run(&claimed.lease).await,
            };
            if let Err(error) = ended {
                tracing::warn!(run, %error, "the run's end is not recorded; it can be taken over once its lease is over");
            }
        }
        done.map(Ok)
    }

    async fn retrain(
        &self,
        claimed: &ClaimedRun,
        champion: &RegisteredVersion,
        watch: &Watch,
    ) -> Result<Finish, RetrainError> {
        let (lease, run) = (&claimed.lease, claimed.lease.run);
        if claimed.accepted.as_ref() == Some(&champion.version) {
            return self.accepted_before(claimed, champion).await;
        }
        let folder = self.run_folder(run)?;
        let planned = match claimed.plan.as_ref().filter(|plan| plan.champion == champion.version) {
            Some(plan) => watch.unless_stopped(self.restore(plan, &folder, watch).boxed_local()).await?,
            None => None,
        };
        let champion_files =
            watch.unless_stopped(async { Ok(self.publisher.registry.version(champion).await?) }).await?;
        let dataset = match planned {
            Some(dataset) => dataset,
            None => {
                let planning = self.plan(lease, champion, &champion_files.folder, &folder, watch);
                match watch.unless_stopped(planning.boxed_local()).await? {
                    Ok(dataset) => dataset,
                    Err(nothing) => {
                        let (reason, champion) = (nothing.to_string(), Some(champion.version.as_str()));
                        self.store.end_run(lease, RunOutcome::NothingToDo, &reason, champion).await?;
                        return Ok(Finish::NothingToDo { run, reason });
                    }
                }
            }
        };
        self.foretell(&dataset);

        let challenger = folder.join("checkpoint");
        self.training(&champion_files.folder, &challenger, &dataset).run(watch).await?;
        failpoint::reach("challenger-trained");
        let judge = self.judge();
        let judging = judge.judge(&champion_files.folder, &challenger, &dataset, watch);
        let judgement = watch.unless_stopped(judging.boxed_local()).await?;
        failpoint::reach("challenger-judged");
        let concluding = self.conclude(lease, champion, &challenger, &dataset, &judgement, watch);
        let finish = watch.unless_stopped(concluding.boxed_local()).await?;
        self.tidy(&folder, &dataset);
        Ok(finish)
    }

    /// The end of a run whose challenger was promoted before the process died.
    async fn accepted_before(
        &self,
        claimed: &ClaimedRun,
        champion: &RegisteredVersion,
    ) -> Result<Finish, RetrainError> {
        let (run, version) = (claimed.lease.run, champion.version.clone());
        let verdict = "accepted and promoted by an attempt that ended then".to_owned();
        self.store.end_run(&claimed.lease, RunOutcome::Accepted, &verdict, None).await?;
        Ok(Finish::Accepted { run, version, verdict, report: String::new() })
    }

    /// Selects, fetches and divides; what speaks against a run.
    async fn plan(
        &self,
        lease: &RunLease,
        champion: &RegisteredVersion,
        champion_files: &Path,
        folder: &Path,
        watch: &Watch,
    ) -> Result<Result<Dataset, NothingToDo>, RetrainError> {
        // Whatever was trained on another selection is of no use.
        clear(folder)?;
        let settings = &self.config.retrain;
        watch.begin("selecting labels", 0);
        let marks = select::watermarks(&self.store, &champion.version).await?;
        if let Some(nothing) = select::refusal(&self.store, &marks, settings).await? {
            return Ok(Err(nothing));
        }
        let scale = scale(champion_files)?;
        let selection = select::select(&self.store, &marks, &scale, settings).await?;
        let usual = self.config.labels.conversation();
        let preparation = self.preparation(lease, scale, &usual);
        let dataset = preparation.dataset(&champion.version, &selection, watch).await?;
        failpoint::reach("photos-placed");
        if dataset.training.is_empty() {
            return Ok(Err(NothingToDo::NoPhotos { labels: selection.new.len() }));
        }
        // The file first: a plan that is recorded can be gone on with.
        dataset.write(folder)?;
        let plan = RunPlan {
            champion: champion.version.clone(),
            after: dataset.after,
            upto: dataset.upto,
            dataset: dataset.digest()?,
        };
        self.store.plan_run(lease, &plan, &serde_json::to_value(dataset.counts)?).await?;
        failpoint::reach("dataset-planned");
        tracing::info!(run = lease.run, dataset = plan.dataset, counts = ?dataset.counts, "selected");
        Ok(Ok(dataset))
    }

    pub fn preparation<'b>(
        &'b self,
        lease: &'b RunLease,
        scale: Scale,
        usual: &'b [crate::labels::Turn],
    ) -> Preparation<'b> {
        Preparation {
            store: &self.store,
            lease,
            source: &self.source,
            settings: &self.config.retrain,
            split: &self.config.split,
            images: &self.config.image,
            scale,
            usual,
        }
    }

    /// What an earlier attempt has planned, with every photo of it; `None` where that can no longer be had.
    async fn restore(
        &self,
        plan: &RunPlan,
        folder: &Path,
        watch: &Watch,
    ) -> Result<Option<Dataset>, RetrainError> {
        let Some(dataset) = Dataset::read(folder, &plan.dataset)? else {
            tracing::warn!(
                "what an earlier attempt has selected is not on this machine; the run begins anew"
            );
            return Ok(None);
        };
        let missing: Vec<_> = dataset.photos().filter(|photo| !self.cache.has(&photo.content)).collect();
        watch.begin("fetching photos again", missing.len() as u64);
        for photo in missing {
            let fetched = match &photo.object {
                Some(place) => self.source.fetch(&LabelledObject::from(place)).await?,
                None => Fetched::Gone,
            };
            if fetched != Fetched::Here(photo.content) {
                tracing::warn!("{}: is no longer what it was; the run begins anew", photo.name);
                return Ok(None);
            }
            watch.advance();
        }
        Ok(Some(dataset))
    }

    /// Warns of sets that the gate will find too small.
    fn foretell(&self, dataset: &Dataset) {
        let gate = &self.config.gate;
        for set in &gate.required {
            let photos = dataset.set(*set).len();
            if photos < gate.min_photos {
                tracing::warn!(
                    photos,
                    needed = gate.min_photos,
                    "the gate will reject: too few photos of the {set}"
                );
            }
        }
    }

    fn training(&self, champion: &Path, output: &Path, dataset: &Dataset) -> Training {
        let contents = dataset.photos().map(|photo| (photo.name.clone(), photo.content)).collect();
        Training {
            champion: champion.to_owned(),
            samples: dataset.training.iter().map(|photo| photo.sample()).collect(),
            photos: CachedPhotos { cache: self.cache.clone(), contents },
            images: self.config.image.clone(),
            output: output.to_owned(),
            options: self.config.train.clone(),
        }
    }

    pub fn judge(&self) -> Judge {
        let Config { model, image, inference, gate, .. } = self.config;
        Judge {
            model: model.clone(),
            images: image.clone(),
            inference: inference.clone(),
            gate: gate.clone(),
            cache: self.cache.clone(),
        }
    }

    /// The folder of a run; those of other runs are removed.
    fn run_folder(&self, run: i64) -> Result<PathBuf, RetrainError> {
        let work_dir = &self.config.retrain.work_dir;
        let name = format!("run-{run}");
        let entries = fs::read_dir(work_dir).map_err(RetrainError::io(work_dir, "listing"))?;
        for entry in entries.flatten() {
            let other = entry.file_name();
            let is_run = other.to_str().is_some_and(|other| other.starts_with("run-") && other != name);
            if is_run {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(RetrainError::io(&path, "removing an older run"))?;
            }
        }
        let folder = work_dir.join(name);
        fs::create_dir_all(&folder).map_err(RetrainError::io(&folder, "creating the folder"))?;
        Ok(folder)
    }

    /// Makes room after a run. What can't be removed is a matter for the next one.
    pub fn tidy(&self, folder: &Path, dataset: &Dataset) {
        let trimmed = clear(folder)
            .and_then(|()| fs::remove_dir(folder).map_err(RetrainError::io(folder, "removing")))
            .and_then(|()| self.cache.trim(self.config.retrain.cache_mib << 20, &dataset.contents()));
        if let Err(error) = trimmed {
            tracing::warn!("{error}");
        }
    }
}

/// What scores and distributions must fit.
pub(super) fn scale(checkpoint: &Path) -> Result<Scale, RetrainError> {
    let config = ModelConfig::read(checkpoint).map_err(|error| RegistryError::Checkpoint(error.into()))?;
    let head = config.score.ok_or(RetrainError::NoScoreHead)?;
    let num_tokens = usize::try_from(head.num_tokens).unwrap_or_default();
    Scale::new(head.min_score, head.max_score, num_tokens).ok_or(RetrainError::NoScoreHead)
}

/// Removes everything in a folder.
fn clear(folder: &Path) -> Result<(), RetrainError> {
    fs::remove_dir_all(folder)
        .and_then(|()| fs::create_dir_all(folder))
        .map_err(RetrainError::io(folder, "clearing the folder"))
}

/// Who works on a run, for people.
fn holder() -> String {
    let name = std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME"));
    format!("{} (process {})", name.unwrap_or_else(|_| "a machine without a name".into()), std::process::id())
}
