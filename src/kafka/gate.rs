//! Admission: whether the pipeline wants more records just now.

use std::sync::atomic::{AtomicBool, Ordering};

/// Tells the poll thread to pause or resume intake, for reasons beside a full queue (too many bytes
/// or pixels in flight, Postgres down). Closing it never loses a record, and polling goes on.
#[derive(Debug, Default)]
pub struct Gate {
    closed: AtomicBool,
}

impl Gate {
    /// No more records, from the poll thread's next turn on; what is queued stays queued.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// More records.
    pub fn open(&self) {
        self.closed.store(false, Ordering::Relaxed);
    }

    /// Whether records may come.
    pub fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }
}
