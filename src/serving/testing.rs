//! Models for the tests of this module, whose scores say which version they are of.

use super::{
    metrics::ServingMetrics,
    model::ServedModel,
    models::{Lost, Models},
    settings::ServingSettings,
    switch::{Deployed, Duty, Loader, Releases, Switcher},
};
use crate::{
    fault::ItemError,
    image::{Fit, ImageSettings, Preprocessor},
    inference::{
        InferenceSettings, ScoreBatch, ScoreFailure, Scored, Scorer, ScorerError, ScoringService,
        stand_in::StandInScorer,
    },
    model::ModelSettings,
    object::ObjectRef,
    quarantine::Hello,
    registry::{RegistryError, ResolvedCheckpoint},
    score::{Answer, ModelVersion},
    store::{RegisteredVersion, Serving, ShadowPair, StoreError, VersionStatus},
    telemetry::TelemetrySettings,
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use time::OffsetDateTime;

/// What is wrong with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It does not load.
    Build,
    /// It loads, and gives the built-in picture no score.
    Golden,
    /// Loading it does not come to an end.
    Stuck,
    /// It fails for good at its first image.
    Broken,
    /// Each of its batches takes this long, in milliseconds.
    Slow(u64),
}

/// Versions `v1` to `v9`: loads them, and counts those that are loaded.
#[derive(Clone, Default)]
pub struct Shelf(Arc<Mutex<Books>>);

#[derive(Default)]
struct Books {
    flaws: HashMap<String, Flaw>,
    loaded: HashMap<String, usize>,
    most_at_once: usize,
    loads: Vec<(String, Duty)>,
    recorded: Vec<(String, String, ShadowPair)>,
}

impl Shelf {
    pub fn give(&self, version: &str, flaw: Flaw) {
        self.books().flaws.insert(version.into(), flaw);
    }

    pub fn mend(&self, version: &str) {
        self.books().flaws.remove(version);
    }

    /// The versions in memory, each as often as it is.
    pub fn in_memory(&self) -> Vec<String> {
        let books = self.books();
        let each = books.loaded.iter().flat_map(|(version, count)| std::iter::repeat_n(version, *count));
        let mut versions: Vec<String> = each.cloned().collect();
        versions.sort();
        versions
    }

    pub fn most_at_once(&self) -> usize {
        self.books().most_at_once
    }

    /// Every load that was tried.
    pub fn loads(&self) -> Vec<(String, Duty)> {
        self.books().loads.clone()
    }

    /// Candidate, champion and pair, as they were recorded.
    pub fn recorded(&self) -> Vec<(String, String, ShadowPair)> {
        self.books().recorded.clone()
    }

    pub async fn model(&self, version: &str) -> Arc<ServedModel> {
        self.load(Path::new(version), Duty::Live).await.unwrap()
    }

    /// A switcher that serves `champion`.
    pub async fn switcher(
        &self,
        champion: &str,
        settings: ServingSettings,
    ) -> (Switcher<Self, Self>, Arc<Models>, Arc<ServingMetrics>) {
        let model = self.model(champion).await;
        let (models, metrics) = (Models::new(Arc::clone(&model)), Arc::new(ServingMetrics::default()));
        let checkpoint = ResolvedCheckpoint::local(champion);
        let deployed = Deployed { version: champion.into(), checkpoint, model };
        let (own, counted) = (Arc::clone(&models), Arc::clone(&metrics));
        (Switcher::new(own, deployed, self.clone(), self.clone(), settings, counted), models, metrics)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap()
    }
}

impl Releases for Shelf {
    async fn wanted(&self) -> Result<Serving, StoreError> {
        Ok(Serving::default())
    }

    async fn fetch(&self, version: &RegisteredVersion) -> Result<ResolvedCheckpoint, RegistryError> {
        Ok(ResolvedCheckpoint::local(&version.version))
    }

    async fn record_shadow(
        &self,
        candidate: &str,
        champion: &str,
        pairs: &[ShadowPair],
    ) -> Result<(), StoreError> {
        let each = pairs.iter().map(|pair| (candidate.to_owned(), champion.to_owned(), *pair));
        self.books().recorded.extend(each);
        Ok(())
    }
}

impl Loader for Shelf {
    type Error = String;

    async fn load(&self, folder: &Path, duty: Duty) -> Result<Arc<ServedModel>, String> {
        let version = folder.display().to_string();
        let flaw = self.books().flaws.get(&version).copied();
        self.books().loads.push((version.clone(), duty));
        if flaw == Some(Flaw::Stuck) {
            std::future::pending::<()>().await;
        }
        let inference = InferenceSettings {
            batch_size: 2,
            linger_ms: 0,
            decode_threads: 1,
            golden_interval_ms: 60_000,
            ..InferenceSettings::default()
        };
        let build = {
            let (shelf, version) = (self.clone(), version.clone());
            move || match flaw {
                Some(Flaw::Build) => Err(std::io::Error::other("it is damaged")),
                _ => Ok(Box::new(Loaded::new(shelf, &version, flaw)) as Box<dyn Scorer>),
            }
        };
        let images = ImageSettings::default();
        let service = ScoringService::start(build, preprocessor(&version), images.clone(), &inference)
            .await
            .map_err(|error| error.to_string())?;
        let child = Hello {
            model: ModelSettings::default(),
            image: images,
            inference,
            telemetry: TelemetrySettings::default(),
        };
        Ok(ServedModel::new(service, child, Arc::default()))
    }
}

/// Odd versions take larger inputs, and those from `v5` on crop where others pad.
fn preprocessor(version: &str) -> Preprocessor {
    let number = number(version);
    let edge = if number.is_multiple_of(2) { 8 } else { 12 };
    Preprocessor::clip(edge).with_fit(if number < 5 { Fit::Pad } else { Fit::Crop })
}

fn number(version: &str) -> u32 {
    version.strip_prefix('v').and_then(|number| number.parse().ok()).unwrap()
}

/// The score that `version` gives the file.
pub fn expected(version: &str, file: &[u8]) -> f64 {
    let preprocessor = preprocessor(version);
    let mut values = vec![0.0; 3 * preprocessor.image_size().pow(2)];
    preprocessor.read(file, &ImageSettings::default(), &mut values).unwrap();
    of_version(version, &values).score()
}

/// The version's number, and a hundredth of a hash of what the version sees.
fn of_version(version: &str, values: &[f32]) -> Answer {
    let mut answer = StandInScorer::answer(values);
    for value in &mut answer.scores {
        value.score = f64::from(number(version)) + value.score / 100.0;
    }
    answer
}

struct Loaded {
    shelf: Shelf,
    version: ModelVersion,
    edge: usize,
    flaw: Option<Flaw>,
    batches: usize,
}

impl Loaded {
    fn new(shelf: Shelf, version: &str, flaw: Option<Flaw>) -> Self {
        {
            let mut books = shelf.books();
            *books.loaded.entry(version.into()).or_default() += 1;
            let now = books.loaded.values().sum();
            books.most_at_once = books.most_at_once.max(now);
        }
        let edge = preprocessor(version).image_size();
        let version = ModelVersion { model: "test".into(), version: version.into(), preprocess_revision: 1 };
        Self { shelf, version, edge, flaw, batches: 0 }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        *self.shelf.books().loaded.get_mut(&self.version.version).unwrap() -= 1;
    }
}

impl Scorer for Loaded {
    fn image_size(&self) -> usize {
        self.edge
    }

    fn version(&self) -> &ModelVersion {
        &self.version
    }

    fn score_range(&self) -> (f64, f64) {
        (0.0, 10.0)
    }

    fn score(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        self.batches += 1;
        match self.flaw {
            // The first batch is the warm-up, and the second the built-in picture.
            Some(Flaw::Golden) if self.batches == 2 => {
                return Err(ScorerError::Batch { batch: batch.len(), reason: "no score".into() });
            }
            Some(Flaw::Broken) if self.batches > 2 => {
                return Err(ScorerError::OutOfMemory { batch: batch.len(), reason: "no room".into() });
            }
            Some(Flaw::Slow(ms)) => std::thread::sleep(Duration::from_millis(ms)),
            _ => {}
        }
        let answers = batch.slots.iter().map(|slot| {
            assert_eq!(slot.values().len(), 3 * self.edge * self.edge, "of another model's preprocessing");
            Ok(of_version(&self.version.version, slot.values()))
        });
        Ok(answers.collect())
    }
}

/// A row of the registry.
pub fn registered(version: &str) -> RegisteredVersion {
    RegisteredVersion {
        version: version.into(),
        digest: version.into(),
        status: VersionStatus::Candidate,
        parent: None,
        uri: String::new(),
        manifest_sha256: String::new(),
        dataset: None,
        metrics: None,
        code_version: String::new(),
        canary_share: 0.0,
        shadow_share: 0.0,
        created_at: OffsetDateTime::UNIX_EPOCH,
        registered_at: OffsetDateTime::UNIX_EPOCH,
        status_since: OffsetDateTime::UNIX_EPOCH,
    }
}

/// A registry with this champion alone.
pub fn champion(version: &str) -> Serving {
    Serving { champion: Some(registered(version)), ..Serving::default() }
}

/// A picture of its own, not square.
pub fn picture(number: u32) -> Bytes {
    let pixels = image::RgbImage::from_fn(24, 17, |x, y| {
        image::Rgb([(x * 9 + number) as u8, (y * 13 + number / 256) as u8, (number * 31 % 251) as u8])
    });
    let mut file = std::io::Cursor::new(Vec::new());
    pixels.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner().into()
}

/// Scores one image as whoever asks [`Models`] does.
pub async fn score(models: &Models, key: &str, file: &Bytes) -> Result<Scored, ScoreFailure> {
    let object = ObjectRef::new("photos", key);
    loop {
        let model = models.model_for(Some(&object)).await;
        match model.score(key, file.clone(), false).await {
            Err(ScoreFailure::Engine(failure)) if models.lost(&model, &failure) == Lost::TryAgain => {}
            outcome => return outcome,
        }
    }
}
