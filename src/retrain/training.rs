//! The challenger: trained from the champion on a thread of its own, and stopped so that it can be gone on
//! with.

use super::{cache::CachedPhotos, error::RetrainError, lease::Watch};
use crate::{
    failpoint,
    image::ImageSettings,
    labels::Sample,
    train::{Event, TrainError, TrainJob, TrainOptions, is_finished, progress::Progress, train},
};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Steps from one saved state to the next where `train.save_every` says none: any run may be stopped.
const SAVE_EVERY: u64 = 100;

/// What to train.
pub struct Training {
    /// The champion's folder.
    pub champion: PathBuf,
    pub samples: Vec<Sample>,
    pub photos: CachedPhotos,
    pub images: ImageSettings,
    /// Folder that the challenger appears in, whole.
    pub output: PathBuf,
    pub options: TrainOptions,
}

impl Training {
    /// Trains, going on from the last saved state; nothing if the challenger is there. When it is to stop, it
    /// saves its state first.
    ///
    /// # Errors
    /// [`RetrainError::Train`], and why it is to stop.
    pub async fn run(self, watch: &Watch) -> Result<(), RetrainError> {
        watch.begin("training", 0);
        let cancelled = Arc::new(AtomicBool::new(false));
        let (seen, watching) = (Arc::clone(&cancelled), watch.clone());
        let mut training = tokio::task::spawn_blocking(move || self.train(&watching, &seen));
        let (ended, stopped) = tokio::select! {
            biased;
            ended = &mut training => (ended, None),
            stopped = watch.stopped() => {
                cancelled.store(true, Ordering::Relaxed);
                (training.await, Some(stopped))
            }
        };
        match (ended, stopped) {
            (Err(error), _) => Err(RetrainError::Thread(error.to_string())),
            (Ok(Err(TrainError::Cancelled { .. })), Some(stopped)) => Err(stopped),
            (Ok(trained), _) => Ok(trained?),
        }
    }

    fn train(self, watch: &Watch, cancelled: &AtomicBool) -> Result<(), TrainError> {
        if is_finished(&self.output)? {
            tracing::info!("the challenger was trained before");
            return Ok(());
        }
        let save_every = if self.options.save_every == 0 { SAVE_EVERY } else { self.options.save_every };
        let options = TrainOptions { save_every, ..self.options };
        let job = TrainJob {
            checkpoint: &self.champion,
            growth: None,
            samples: &self.samples,
            images: &self.photos,
            image_settings: self.images,
            output: &self.output,
            resume: true,
            options: &options,
        };
        let mut progress = Progress::new();
        let mut steps = 0;
        let summary = train(
            &job,
            &mut |event| {
                progress.show(&event);
                match event {
                    Event::Prepared { done, steps: total, .. } => {
                        steps = total;
                        watch.reach(done, total);
                    }
                    Event::Step { metrics, .. } => {
                        watch.reach(metrics.step, steps);
                        failpoint::reach("step-taken");
                    }
                    Event::Skipped(_) | Event::SavingState | Event::Saving => {}
                }
            },
            cancelled,
        )?;
        progress.finish(&summary, &self.output);
        Ok(())
    }
}
