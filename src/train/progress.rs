//! How far a run is: a bar on a terminal, a line every few seconds elsewhere.

use super::{
    step_metrics::StepMetrics,
    trainer::{Event, TrainSummary},
};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    path::Path,
    time::{Duration, Instant},
};

const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Shows a run on standard error.
pub struct Progress {
    steps: u64,
    /// Of all steps that are still to be taken.
    images: u64,
    done: u64,
    start: Instant,
    last: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// For a run whose length isn't known yet.
    pub fn new() -> Self {
        let bar = io::stderr().is_terminal().then(ProgressBar::new_spinner);
        let progress = Self { steps: 0, images: 0, done: 0, start: Instant::now(), last: None, bar };
        progress.stage("loading the checkpoint and the samples");
        progress
    }

    /// Shows one event.
    pub fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Prepared { samples, masked, done, steps, images, trained } => {
                for (place, mismatch) in *masked {
                    self.line(&format!(
                        "{place}: questions and answers can't be told apart ({} ids where the whole has {}); \
                         it is left out",
                        mismatch.counted, mismatch.total
                    ));
                }
                self.line(&format!("{samples} samples, {trained} numbers to train, {steps} steps"));
                if *done > 0 {
                    self.line(&format!("going on after step {done}"));
                }
                (self.steps, self.images, self.start) = (*steps, *images, Instant::now());
                if let Some(bar) = &self.bar {
                    begin(bar, *steps, *done);
                }
            }
            Event::Skipped(error) => self.line(&format!("{error}; it is left out")),
            Event::Step { metrics, images, .. } => {
                self.done += images;
                self.step(metrics);
            }
            Event::SavingState => {
                if let Some(bar) = &self.bar {
                    bar.set_message("saving the state");
                }
            }
            Event::Saving => self.stage("writing the checkpoint"),
        }
    }

    /// Removes the bar and says how it went.
    pub fn finish(&self, summary: &TrainSummary, output: &Path) {
        let left_out = match (summary.masked, summary.skipped) {
            (0, 0) => String::new(),
            (masked, skipped) => format!(", {masked} samples and {skipped} images left out"),
        };
        self.line(&format!(
            "{} steps over {} samples in {} ({:.1} images/s){left_out}: {}",
            summary.steps,
            summary.samples,
            HumanDuration(self.start.elapsed()),
            self.rate(),
            output.display()
        ));
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn step(&mut self, metrics: &StepMetrics) {
        let StepMetrics { step, loss, learning_rate, .. } = metrics;
        let rate = self.rate();
        let left = self.images.saturating_sub(self.done) as f64 / rate.max(1e-9);
        let left = HumanDuration(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX));
        let state = format!("loss {loss:.4}  rate {learning_rate:.2e}  {rate:.1} images/s  {left} left");
        match &self.bar {
            Some(bar) => {
                bar.set_position(*step);
                bar.set_message(state);
            }
            None => {
                let last = *step == self.steps;
                if last || self.last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
                    self.last = Some(Instant::now());
                    tracing::info!("step {step} of {}  {state}", self.steps);
                }
            }
        }
    }

    fn stage(&self, message: &'static str) {
        match &self.bar {
            Some(bar) => bar.set_message(message),
            None => tracing::info!("{message}"),
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => tracing::info!("{text}"),
        }
    }

    /// Images a second.
    fn rate(&self) -> f64 {
        self.done as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

fn begin(bar: &ProgressBar, steps: u64, done: u64) {
    bar.set_length(steps);
    // The template is a constant, and a mistake in it only costs the style.
    if let Ok(style) = ProgressStyle::with_template("{bar:32.cyan/dim} {human_pos}/{human_len}  {msg}") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.reset();
    bar.set_position(done);
    bar.enable_steady_tick(Duration::from_millis(200));
}
