//! How far a transfer is: a bar on a terminal, a line every few seconds elsewhere.

use indicatif::{DecimalBytes, HumanDuration, ProgressBar, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Counts bytes and shows them on standard error.
pub(super) struct Progress {
    doing: &'static str,
    total: u64,
    done: AtomicU64,
    start: Instant,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Log { last: Mutex<Instant> },
}

impl Progress {
    /// Of `total` bytes; `doing` is a word such as `uploading`.
    pub fn new(doing: &'static str, total: u64) -> Self {
        let start = Instant::now();
        let display = match io::stderr().is_terminal() {
            true => Display::Bar(bar(doing, total)),
            false => Display::Log { last: Mutex::new(start) },
        };
        Self { doing, total, done: AtomicU64::new(0), start, display }
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match &self.display {
            Display::Bar(bar) => bar.set_position(done),
            Display::Log { last } => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() < LOG_INTERVAL {
                    return;
                }
                *last = Instant::now();
                let rate = done as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
                let left = self.total.saturating_sub(done) as f64 / rate.max(1.0);
                let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
                tracing::info!(
                    "{}: {} of {}, {}/s, {} left",
                    self.doing,
                    DecimalBytes(done),
                    DecimalBytes(self.total),
                    DecimalBytes(rate as u64),
                    HumanDuration(left)
                );
            }
        }
    }

    /// Takes back what was counted of a transfer that begins again.
    pub fn retreat(&self, bytes: u64) {
        let done = self.done.fetch_sub(bytes, Ordering::Relaxed).saturating_sub(bytes);
        if let Display::Bar(bar) = &self.display {
            bar.set_position(done);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

fn bar(doing: &'static str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(doing);
    // The template is a constant, and a mistake in it only costs the style.
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} {bar:32.cyan/dim} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left",
    ) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
