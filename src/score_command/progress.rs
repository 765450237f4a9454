//! How far the command is: a bar on a terminal, a line every few seconds elsewhere.

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Counts what is done and shows it on standard error.
pub struct Progress {
    total: u64,
    scored: u64,
    rejected: u64,
    start: Instant,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Log { last: Instant },
}

impl Progress {
    /// For `total` inputs.
    pub fn new(total: usize) -> Self {
        let total = total as u64;
        let start = Instant::now();
        let display = match io::stderr().is_terminal() {
            true => Display::Bar(bar(total)),
            false => Display::Log { last: start },
        };
        Self { total, scored: 0, rejected: 0, start, display }
    }

    /// Shows what goes on before the first image is done.
    pub fn stage(&self, message: &'static str) {
        match &self.display {
            Display::Bar(bar) => bar.set_message(message),
            Display::Log { .. } => tracing::info!(images = self.total, "{message}"),
        }
    }

    /// Starts the clock that rate and remaining time are told by: loading the model is not in them.
    pub fn begin(&mut self) {
        self.start = Instant::now();
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_message("");
                bar.reset();
            }
            Display::Log { last } => *last = self.start,
        }
    }

    /// One more input is done.
    pub fn advance(&mut self, scored: bool) {
        match scored {
            true => self.scored += 1,
            false => self.rejected += 1,
        }
        let (rejected, total, rate) = (self.rejected, self.total, self.rate());
        let done = self.scored + rejected;
        match &mut self.display {
            Display::Bar(bar) => {
                bar.inc(1);
                if rejected > 0 {
                    bar.set_message(format!("{rejected} rejected"));
                }
            }
            Display::Log { last } if last.elapsed() >= LOG_INTERVAL => {
                *last = Instant::now();
                let left = (total - done.min(total)) as f64 / rate.max(1e-9);
                let remaining = HumanDuration(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX));
                tracing::info!("{done} of {total} done, {rejected} rejected, {rate:.1}/s, {remaining} left");
            }
            Display::Log { .. } => {}
        }
    }

    /// Calls `write` with the bar out of the way, since both may be on one terminal.
    pub fn suspended<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.display {
            Display::Bar(bar) => bar.suspend(write),
            Display::Log { .. } => write(),
        }
    }

    /// Removes the bar and says how it went.
    pub fn finish(&self) {
        let summary = format!(
            "{} scored, {} rejected in {} ({:.1}/s)",
            self.scored,
            self.rejected,
            HumanDuration(self.elapsed()),
            self.rate()
        );
        match &self.display {
            Display::Bar(bar) => {
                bar.finish_and_clear();
                eprintln!("{summary}");
            }
            Display::Log { .. } => tracing::info!("{summary}"),
        }
    }

    /// Images a second since [`begin`](Self::begin).
    pub fn rate(&self) -> f64 {
        (self.scored + self.rejected) as f64 / self.start.elapsed().as_secs_f64().max(1e-9)
    }

    /// Since [`begin`](Self::begin).
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    // The template is a constant, and a mistake in it only costs the style.
    if let Ok(style) = ProgressStyle::with_template(
        "{bar:32.cyan/dim} {human_pos}/{human_len}  {per_sec}  {eta} left  {msg:.yellow}",
    ) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
