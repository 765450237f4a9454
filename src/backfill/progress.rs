//! How far the backfill is: a bar on a terminal, a line every few seconds elsewhere.

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Shows what is enqueued, and what is left once the total has been counted.
pub(super) struct Progress {
    /// Enqueued by earlier runs.
    before: u64,
    done: u64,
    total: Arc<OnceLock<u64>>,
    start: Instant,
    last: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `total` may become known later.
    pub fn new(before: u64, total: Arc<OnceLock<u64>>) -> Self {
        let now = Instant::now();
        let bar = io::stderr().is_terminal().then(|| spinner(before));
        Self { before, done: 0, total, start: now, last: now, bar }
    }

    pub fn advance(&mut self, count: u64) {
        self.done += count;
        let (enqueued, total) = (self.before + self.done, self.total.get().copied());
        match &self.bar {
            Some(bar) => {
                if let Some(total) = total
                    && bar.length() != Some(total)
                {
                    bar.set_length(total);
                    with_length(bar);
                }
                bar.set_position(enqueued);
            }
            None if self.last.elapsed() >= LOG_INTERVAL => {
                self.last = Instant::now();
                let rate = self.rate();
                match total {
                    Some(total) => {
                        let left = total.saturating_sub(enqueued) as f64 / rate.max(1e-9);
                        let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
                        tracing::info!(
                            "{enqueued} of {total} enqueued, {rate:.1}/s, {} left",
                            HumanDuration(left)
                        );
                    }
                    None => tracing::info!("{enqueued} enqueued, {rate:.1}/s; what is left is being counted"),
                }
            }
            None => {}
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn rate(&self) -> f64 {
        self.done as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }
}

// The templates are constants, and a mistake in one only costs the style.
fn spinner(before: u64) -> ProgressBar {
    let bar = ProgressBar::no_length().with_position(before);
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {human_pos} enqueued  {per_sec}  counting what is left")
    {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn with_length(bar: &ProgressBar) {
    if let Ok(style) =
        ProgressStyle::with_template("{bar:32.cyan/dim} {human_pos}/{human_len}  {per_sec}  {eta} left")
    {
        bar.set_style(style.progress_chars("━╸─"));
    }
}
