//! How assignments end: with what was started waited for, or at once.

use super::Ledger;
use crate::failpoint::Rule;
use crate::kafka::crash_loop::CrashLoop;
use crate::kafka::receipt::Epoch;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

impl Ledger {
    /// Nothing more is started under these epochs.
    pub(in crate::kafka) fn begin_revoke(&self, epochs: &[Epoch]) {
        let mut state = self.lock();
        for epoch in epochs {
            if let Some(assignment) = state.assignments.get_mut(epoch) {
                assignment.revoking = true;
            }
        }
    }

    /// Nothing more is started at all.
    pub(in crate::kafka) fn begin_drain(&self) {
        self.lock().draining = true;
    }

    /// Waits until what was started under these epochs (all, if `None`) is finished. Returns how
    /// many records were not when the time was up.
    pub(in crate::kafka) fn wait_started(&self, epochs: Option<&[Epoch]>, deadline: Instant) -> usize {
        let mut state = self.lock();
        loop {
            let unfinished = state.started_unfinished(epochs);
            let left = deadline.saturating_duration_since(Instant::now());
            if unfinished == 0 || left == Duration::ZERO {
                return unfinished;
            }
            state = self.finished.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// These epochs' partitions are given up in good order: nobody died of them.
    pub(in crate::kafka) fn settle(&self, epochs: Option<&[Epoch]>) {
        self.end_holding(epochs, CrashLoop::settle);
    }

    /// These epochs' partitions are given up with work undone, though nobody has died of them yet.
    pub(in crate::kafka) fn hand_over(&self, epochs: &[Epoch]) {
        self.end_holding(Some(epochs), CrashLoop::hand_over);
    }

    fn end_holding(&self, epochs: Option<&[Epoch]>, end: impl Fn(&mut CrashLoop)) {
        let mut state = self.lock();
        for (epoch, assignment) in &mut state.assignments {
            if epochs.is_none_or(|epochs| epochs.contains(epoch))
                && let Some(tracker) = &mut assignment.tracker
            {
                end(tracker.crash_loop_mut());
            }
        }
    }

    /// The end of these epochs: whatever still comes for them is dropped.
    pub(in crate::kafka) fn kill(&self, epochs: &[Epoch]) {
        if !Rule::Epoch.holds() {
            return;
        }
        let mut state = self.lock();
        for epoch in epochs {
            state.remove(*epoch);
        }
        drop(state);
        self.finished.notify_all();
    }

    /// The end of every epoch: the group no longer knows this member.
    pub(in crate::kafka) fn kill_all(&self) {
        if !Rule::Epoch.holds() {
            return;
        }
        let mut state = self.lock();
        state.assignments.clear();
        state.waiting = 0;
        drop(state);
        self.finished.notify_all();
    }
}
