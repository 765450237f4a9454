//! Images of samples, read and preprocessed as for scoring.

use super::dataset::{Example, Place};
use crate::image::{ImageError, ImageSettings, Preprocessor};
use bytes::Bytes;
use std::{
    fs, io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

/// Where the images that samples name come from.
pub trait ImageSource: Sync {
    /// The whole file of the image `name`, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// [`SourceError`]; only [`SourceError::Image`] concerns this image alone.
    fn read(&self, name: &str, limit: u64) -> Result<Bytes, SourceError>;
}

/// Why an image has no bytes.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// This image can't be had, and asking again won't help.
    #[error("{0}")]
    Image(String),
    /// The place where all images are can't be reached.
    #[error("{0}")]
    Unavailable(String),
}

/// A folder of images, which samples name by paths below it.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    pub path: PathBuf,
}

impl ImageSource for ImageFolder {
    fn read(&self, name: &str, limit: u64) -> Result<Bytes, SourceError> {
        let path = self.path.join(name);
        let unreadable = |error: io::Error| {
            let reason = "check that it is there and may be read";
            SourceError::Image(format!("{}: cannot be read ({error}); {reason}", path.display()))
        };
        let bytes = fs::metadata(&path).map_err(unreadable)?.len();
        if bytes > limit {
            let error = ImageError::TooLarge { bytes, limit };
            return Err(SourceError::Image(format!("{}: {error}", path.display())));
        }
        fs::read(&path).map(Bytes::from).map_err(unreadable)
    }
}

/// Why an example has no pixel values.
#[derive(Debug, thiserror::Error)]
pub enum PixelError {
    #[error("{place}: {reason}")]
    Source { place: Place, reason: SourceError },
    #[error("{place}: {reason}")]
    Image { place: Place, reason: ImageError },
}

impl PixelError {
    /// Whether other images may still be had.
    pub fn is_of_this_image_alone(&self) -> bool {
        !matches!(self, Self::Source { reason: SourceError::Unavailable(_), .. })
    }
}

/// Makes pixel values of images, several at a time.
pub struct PixelLoader<'a> {
    pub source: &'a dyn ImageSource,
    pub preprocessor: &'a Preprocessor,
    pub settings: &'a ImageSettings,
}

/// Examples of one batch and their pixel values `[3, edge, edge]`, one after the other.
pub struct LoadedBatch<'a> {
    pub examples: Vec<&'a Example>,
    pub pixels: Vec<f32>,
}

impl PixelLoader<'_> {
    /// The batches of one step, given by indices into `examples`. Examples whose image can't be had are
    /// left out of theirs, and a batch that loses all is left out as a whole.
    pub fn load<'a>(
        &self,
        examples: &'a [Example],
        batches: &[Vec<usize>],
    ) -> (Vec<LoadedBatch<'a>>, Vec<PixelError>) {
        let flat: Vec<&Example> = batches.iter().flatten().map(|&index| &examples[index]).collect();
        let mut pixels = self.load_each(&flat).into_iter();
        let (mut loaded, mut failed) = (Vec::with_capacity(batches.len()), Vec::new());
        for batch in batches {
            let mut whole = LoadedBatch { examples: Vec::with_capacity(batch.len()), pixels: Vec::new() };
            for (&index, result) in batch.iter().zip(&mut pixels) {
                match result {
                    Ok(values) => {
                        whole.examples.push(&examples[index]);
                        whole.pixels.extend(values);
                    }
                    Err(error) => failed.push(error),
                }
            }
            if !whole.examples.is_empty() {
                loaded.push(whole);
            }
        }
        (loaded, failed)
    }

    /// The pixel values of each example's image, in the examples' order.
    fn load_each(&self, examples: &[&Example]) -> Vec<Result<Vec<f32>, PixelError>> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(examples.len());
        let queue = Mutex::new(examples.iter().enumerate());
        let done = Mutex::new(Vec::with_capacity(examples.len()));
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let next = lock(&queue).next();
                        let Some((index, example)) = next else { break };
                        let pixels = self.load_one(example);
                        lock(&done).push((index, pixels));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, pixels)| pixels).collect()
    }

    fn load_one(&self, example: &Example) -> Result<Vec<f32>, PixelError> {
        let bytes = self
            .source
            .read(&example.image, self.settings.max_bytes)
            .map_err(|reason| PixelError::Source { place: example.place(), reason })?;
        let edge = self.preprocessor.image_size();
        let mut pixels = vec![0.0; 3 * edge * edge];
        self.preprocessor
            .read(&bytes, self.settings, &mut pixels)
            .map_err(|reason| PixelError::Image { place: example.place(), reason })?;
        Ok(pixels)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
