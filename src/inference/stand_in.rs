//! A scorer without a model, for tests and benchmarks of everything around one.
//!
//! A worker whose environment names a [`Script`] in [`VARIABLE`] scores with it instead of a
//! checkpoint, and fails as the script says. Every row and output of such a worker carries `stand-in`
//! as model and version.

mod script;

pub use script::{Script, ScriptError, ScriptFile};

use super::scorer::{ScoreBatch, Scorer, ScorerError};
use crate::{
    fault::ItemError,
    image::{ImageError, ImageSettings, PREPROCESS_REVISION, Preprocessor},
    score::{Answer, DecodeKind, ModelVersion, ScoreValue},
};
use sha2::{Digest, Sha256};
use std::{path::PathBuf, thread, time::Duration};

/// The environment variable that names a script's file.
pub const VARIABLE: &str = "ROC4MLLM_STAND_IN";

const BINS: usize = 10;
const RANGE: (f64, f64) = (1.0, 10.0);
/// How often a hanging batch looks whether the script still has it hang.
const HANG_CHECK: Duration = Duration::from_millis(20);

/// The file that [`VARIABLE`] names, if it is set.
pub fn configured() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Scores that are a hash of the pixels and nothing else: equal pixels, equal scores.
///
/// Its version is called `stand-in`, so that no row or line of it passes for a model's.
#[derive(Clone, Debug)]
pub struct StandInScorer {
    image_size: usize,
    version: ModelVersion,
    time_per_batch: Duration,
    script: Option<ScriptFile>,
}

/// What the stand-in makes of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Sighting {
    /// What a [`Script`] calls the image.
    pub digest: String,
    /// What the image is answered with while the script has nothing against it.
    pub answer: Answer,
}

/// What a scripted worker will see in a file's `bytes`, preprocessed to `image_size` pixels a side.
///
/// # Errors
/// [`ImageError`] when the file cannot be decoded; then no scorer ever sees it.
pub fn sighting(bytes: &[u8], image_size: usize) -> Result<Sighting, ImageError> {
    let mut values = vec![0.0; 3 * image_size * image_size];
    Preprocessor::clip(image_size).read(bytes, &ImageSettings::default(), &mut values)?;
    Ok(Sighting { digest: digest(&values), answer: StandInScorer::answer(&values) })
}

/// The SHA-256 of one image's pixel values (32-bit floats, little-endian) in hexadecimal.
pub fn digest(values: &[f32]) -> String {
    hash(values).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash(values: &[f32]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for value in values {
        hasher.update(value.to_bits().to_le_bytes());
    }
    hasher.finalize().into()
}

impl StandInScorer {
    /// For square inputs of `image_size` pixels a side, preprocessed by `preprocess_revision`.
    pub fn new(image_size: usize, preprocess_revision: u32) -> Self {
        let version =
            ModelVersion { model: "stand-in".into(), version: "stand-in".into(), preprocess_revision };
        Self { image_size, version, time_per_batch: Duration::ZERO, script: None }
    }

    /// Does what a file says, read again before each batch.
    ///
    /// # Errors
    /// [`ScriptError`] when the file cannot be read or is no script. Later a file that is no script is
    /// passed over, since it may be half written: the last readable one stands.
    pub fn scripted(path: PathBuf) -> Result<Self, ScriptError> {
        let script = ScriptFile::open(path)?;
        let scorer = Self::new(script.now().image_size, PREPROCESS_REVISION);
        Ok(Self { script: Some(script), ..scorer })
    }

    /// Sleeps this long in every batch, as if it computed.
    #[must_use]
    pub fn taking(mut self, time_per_batch: Duration) -> Self {
        self.time_per_batch = time_per_batch;
        self
    }

    /// The answer for one image's pixel values.
    pub fn answer(values: &[f32]) -> Answer {
        let digest = hash(values);
        let weights: Vec<f32> = digest[..BINS].iter().map(|byte| 1.0 + f32::from(*byte)).collect();
        let total: f32 = weights.iter().sum();
        let distribution = weights.iter().map(|weight| weight / total).collect();
        let value = ScoreValue::from_distribution(distribution, RANGE.0, RANGE.1);
        Answer {
            text: format!("Stand-in score {:.4}.", value.score),
            scores: vec![value],
            tokens: Vec::new(),
            decode: DecodeKind::Generated,
            forwards: 1,
        }
    }
}

impl Scorer for StandInScorer {
    fn image_size(&self) -> usize {
        self.image_size
    }

    fn version(&self) -> &ModelVersion {
        &self.version
    }

    fn score_range(&self) -> (f64, f64) {
        RANGE
    }

    fn score(&mut self, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
        thread::sleep(self.time_per_batch);
        match &mut self.script {
            None => Ok(batch.slots.iter().map(|slot| Ok(Self::answer(slot.values()))).collect()),
            Some(script) => play(script, batch),
        }
    }
}

/// One batch as the script has it.
fn play(file: &mut ScriptFile, batch: &ScoreBatch) -> Result<Vec<Result<Answer, ItemError>>, ScorerError> {
    let digests: Vec<String> = batch.slots.iter().map(|slot| digest(slot.values())).collect();
    let size = batch.len();
    let script = file.refresh();
    thread::sleep(script.time_for(size));
    if let Some(fatal) = digests.iter().find(|digest| script.abort.contains(*digest)) {
        eprintln!("stand-in: the process aborts at image {fatal}");
        std::process::abort();
    }
    while file.refresh().hangs_on(&digests) {
        thread::sleep(HANG_CHECK);
    }
    let script = file.now();
    if script.device_error {
        return Err(ScorerError::Device("the script says so".into()));
    }
    if script.out_of_memory_above.is_some_and(|most| size > most) {
        return Err(ScorerError::OutOfMemory { batch: size, reason: "the script says so".into() });
    }
    if let Some(bad) = digests.iter().find(|digest| script.fail.contains(*digest)) {
        return Err(ScorerError::Batch { batch: size, reason: format!("the script has {bad} fail") });
    }
    let answers = batch.slots.iter().zip(&digests).map(|(slot, digest)| {
        let mut answer = StandInScorer::answer(slot.values());
        if script.not_finite.contains(digest) {
            answer.scores.iter_mut().for_each(|value| value.score = f64::NAN);
        }
        Ok(answer)
    });
    Ok(answers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::slot::{Slot, SlotPool};
    use std::fs;

    fn scripted(text: &str) -> (tempfile::NamedTempFile, StandInScorer) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let scorer = StandInScorer::scripted(file.path().to_owned()).unwrap();
        (file, scorer)
    }

    fn batch(greys: &[f32]) -> ScoreBatch {
        let pool = SlotPool::new(greys.len(), 2);
        let slot = |grey: &f32| -> Slot {
            let mut slot = pool.lease();
            slot.values_mut().fill(*grey);
            slot
        };
        ScoreBatch { slots: greys.iter().map(slot).collect() }
    }

    #[test]
    fn the_script_chooses_images_by_digest_and_is_read_again() {
        let (file, mut scorer) = scripted(r#"{"image_size": 2}"#);
        let (good, bad) = (digest(&[0.5; 12]), digest(&[0.25; 12]));
        assert_ne!(good, bad);
        let answers = scorer.score(&batch(&[0.5, 0.25])).unwrap();
        assert_eq!(answers, [Ok(StandInScorer::answer(&[0.5; 12])), Ok(StandInScorer::answer(&[0.25; 12]))]);

        fs::write(file.path(), format!(r#"{{"fail": ["{bad}"]}}"#)).unwrap();
        assert!(matches!(scorer.score(&batch(&[0.5, 0.25])), Err(ScorerError::Batch { batch: 2, .. })));
        assert!(scorer.score(&batch(&[0.5])).is_ok());

        fs::write(file.path(), format!(r#"{{"not_finite": ["{bad}"]}}"#)).unwrap();
        let answers = scorer.score(&batch(&[0.5, 0.25])).unwrap();
        let finite: Vec<bool> =
            answers.iter().map(|answer| answer.as_ref().unwrap().score().is_finite()).collect();
        assert_eq!(finite, [true, false]);

        fs::write(file.path(), r#"{"out_of_memory_above": 1}"#).unwrap();
        assert!(matches!(scorer.score(&batch(&[0.5, 0.25])), Err(ScorerError::OutOfMemory { batch: 2, .. })));
        assert!(scorer.score(&batch(&[0.5])).is_ok());

        fs::write(file.path(), r#"{"device_error": true}"#).unwrap();
        assert!(matches!(scorer.score(&batch(&[0.5])), Err(ScorerError::Device(_))));
    }

    #[test]
    fn a_hanging_batch_goes_on_once_the_script_lets_it() {
        let (file, mut scorer) = scripted(r#"{"hang": true}"#);
        let scoring = thread::spawn(move || scorer.score(&batch(&[0.5])).map(|answers| answers.len()));
        thread::sleep(Duration::from_millis(60));
        assert!(!scoring.is_finished());
        fs::write(file.path(), "{}").unwrap();
        assert_eq!(scoring.join().unwrap().unwrap(), 1);
    }

    #[test]
    fn a_sighting_is_what_the_scorer_sees() {
        let mut file = std::io::Cursor::new(Vec::new());
        let pixels = image::RgbImage::from_fn(9, 5, |x, y| image::Rgb([x as u8 * 20, y as u8 * 40, 7]));
        pixels.write_to(&mut file, image::ImageFormat::Png).unwrap();
        let sighting = sighting(file.get_ref(), 4).unwrap();
        assert_eq!(sighting.digest.len(), 64);
        let mut values = vec![0.0; 48];
        Preprocessor::clip(4).read(file.get_ref(), &ImageSettings::default(), &mut values).unwrap();
        assert_eq!(sighting, Sighting { digest: digest(&values), answer: StandInScorer::answer(&values) });
    }
}
