//! When a dependency counts as broken, and who may ask it meanwhile.
//!
//! Pure: time is an argument, and waiting is the caller's business.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

/// Attempts count for this long.
const WINDOW: Duration = Duration::from_secs(30);

/// When a breaker opens, and how often it lets somebody try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// This many failures without a success between them open it.
    pub in_a_row: usize,
    /// So does a share of failures above this, in percent of the attempts of the last 30 s...
    pub percent: usize,
    /// ...once there are this many.
    pub minimum: usize,
    /// Failures of fewer different askers never open it: their own objects may be to blame.
    pub askers: usize,
    /// The pause before the first probe; each failed one doubles it, up to `longest_pause`.
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl BreakerPolicy {
    /// 20 in a row or more than half of the last 30 s. S3 answers 403 for a single missing object if
    /// listing is not allowed, so several objects must agree.
    pub const S3: Self = Self {
        in_a_row: 20,
        percent: 50,
        minimum: 20,
        askers: 5,
        first_pause: Duration::from_secs(1),
        longest_pause: Duration::from_secs(10),
    };
    /// No item can be to blame for what counts here, so few failures suffice.
    pub const POSTGRES: Self = Self { in_a_row: 5, minimum: 3, askers: 1, ..Self::S3 };
    /// More than 5% of scores are no finite numbers, or a few in a row are.
    pub const MODEL: Self = Self { in_a_row: 5, percent: 5, askers: 2, ..Self::S3 };
}

/// What an attempt told of the dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It works.
    Success,
    /// It is broken. `asker` tells whose attempt this was.
    Failure { asker: u64 },
    /// Neither: it was slow, or the attempt was given up. Counts as no attempt.
    Nothing,
}

/// Leave to make one attempt, to be handed back with [`Breaker::tell`].
#[derive(Debug)]
#[must_use]
pub struct Leave {
    /// Of the times that the breaker has opened or closed, how many were before this leave.
    turn: u64,
    probe: bool,
}

impl Leave {
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

/// The answer to who asks for leave.
#[derive(Debug)]
pub enum Asked {
    Go(Leave),
    /// Ask again then.
    At(Instant),
    /// A probe is under way: ask again at its end.
    AfterProbe,
}

/// What telling changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Opened,
    Closed,
    None,
}

/// One dependency's breaker.
#[derive(Debug)]
pub struct Breaker {
    policy: BreakerPolicy,
    /// The window's attempts; of the failed ones, whose they were.
    recent: VecDeque<(Instant, Option<u64>)>,
    failed: usize,
    /// Askers of the failures since the last success, and how many failures those are.
    run: HashSet<u64>,
    run_length: usize,
    turn: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    pause: Duration,
    next_probe: Instant,
    probing: bool,
}

impl Breaker {
    pub fn new(policy: BreakerPolicy) -> Self {
        Self {
            policy,
            recent: VecDeque::new(),
            failed: 0,
            run: HashSet::new(),
            run_length: 0,
            turn: 0,
            open: None,
        }
    }

    /// Asks to make an attempt at `now`. While open, one at a time may, after a pause.
    pub fn ask(&mut self, now: Instant) -> Asked {
        let turn = self.turn;
        match &mut self.open {
            None => Asked::Go(Leave { turn, probe: false }),
            Some(open) if open.probing => Asked::AfterProbe,
            Some(open) if now < open.next_probe => Asked::At(open.next_probe),
            Some(open) => {
                open.probing = true;
                Asked::Go(Leave { turn, probe: true })
            }
        }
    }

    /// Whether an attempt may still begin on `leave`, which was given a while ago.
    pub fn is_current(&self, leave: &Leave) -> bool {
        leave.probe || (self.open.is_none() && leave.turn == self.turn)
    }

    /// Takes note of an attempt's result. While open, only the probe's counts.
    pub fn tell(&mut self, leave: Leave, told: Told, now: Instant) -> Change {
        let policy = self.policy;
        if let Some(open) = &mut self.open {
            if !leave.probe || leave.turn != self.turn {
                return Change::None;
            }
            open.probing = false;
            match told {
                Told::Success => {
                    self.turn += 1;
                    self.open = None;
                    return Change::Closed;
                }
                Told::Failure { .. } => {
                    open.pause = (open.pause * 2).min(policy.longest_pause);
                    open.next_probe = now + open.pause;
                }
                // The probe said nothing, so the next one need not wait longer than it would have.
                Told::Nothing => open.next_probe = now + policy.first_pause.min(open.pause),
            }
            return Change::None;
        }
        // An attempt from before the last opening says nothing about the time after it.
        if leave.turn != self.turn {
            return Change::None;
        }
        self.forget(now);
        match told {
            Told::Success => {
                self.recent.push_back((now, None));
                self.run.clear();
                self.run_length = 0;
            }
            Told::Failure { asker } => {
                self.recent.push_back((now, Some(asker)));
                self.failed += 1;
                self.run.insert(asker);
                self.run_length += 1;
            }
            Told::Nothing => {}
        }
        if !matches!(told, Told::Failure { .. }) || !self.is_broken() {
            return Change::None;
        }
        self.turn += 1;
        self.recent.clear();
        self.failed = 0;
        self.run.clear();
        self.run_length = 0;
        let next_probe = now + policy.first_pause;
        self.open = Some(Open { since: now, pause: policy.first_pause, next_probe, probing: false });
        Change::Opened
    }

    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Since when it has been open.
    pub fn open_since(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.since)
    }

    fn is_broken(&self) -> bool {
        let BreakerPolicy { in_a_row, percent, minimum, askers, .. } = self.policy;
        if self.run_length >= in_a_row && self.run.len() >= askers {
            return true;
        }
        if self.recent.len() < minimum || self.failed * 100 <= percent * self.recent.len() {
            return false;
        }
        let distinct: HashSet<u64> = self.recent.iter().filter_map(|(_, asker)| *asker).collect();
        distinct.len() >= askers
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, asker)) = self.recent.front() {
            if now.saturating_duration_since(*at) <= WINDOW {
                break;
            }
            self.failed -= usize::from(asker.is_some());
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
