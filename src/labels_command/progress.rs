//! How far a command about labels is: a bar on a terminal, a line every few seconds elsewhere.

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Counts what is done.
pub(super) struct Progress {
    /// What is done to each, such as `imported`.
    verb: &'static str,
    total: Option<u64>,
    done: u64,
    start: Instant,
    last: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `total` is `None` where it would have to be counted first.
    pub fn new(verb: &'static str, total: Option<u64>) -> Self {
        let now = Instant::now();
        let bar = io::stderr().is_terminal().then(|| bar(verb, total));
        Self { verb, total, done: 0, start: now, last: now, bar }
    }

    pub fn advance(&mut self, count: u64) {
        self.done += count;
        let (done, verb) = (self.done, self.verb);
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.last.elapsed() >= LOG_INTERVAL => {
                self.last = Instant::now();
                let rate = done as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
                match self.total {
                    Some(total) => {
                        let left = total.saturating_sub(done) as f64 / rate.max(1e-9);
                        let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
                        tracing::info!("{done} of {total} {verb}, {rate:.0}/s, {} left", HumanDuration(left));
                    }
                    None => tracing::info!("{done} {verb}, {rate:.0}/s"),
                }
            }
            None => {}
        }
    }

    /// Calls `write` with the bar out of the way, since both may be on one terminal.
    pub fn suspended<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(verb: &'static str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{bar:32.cyan/dim} {human_pos}/{human_len} {msg}  {per_sec}  {eta} left",
        ),
        None => (ProgressBar::no_length(), "{spinner} {human_pos} {msg}  {per_sec}"),
    };
    // The templates are constants, and a mistake in one only costs the style.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.set_message(verb);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
