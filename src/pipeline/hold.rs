//! What waits while something that it needs is broken, and how long.

use super::{
    breaker::{Asked, Breaker, BreakerPolicy, Change, Leave, Told},
    dead_letter_guard::DeadLetterGuard,
};
use crate::kafka::Gate;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// How often the intake is halted or let go.
const REGULATED_EVERY: Duration = Duration::from_millis(100);

/// The breakers of all dependencies, and the guard over dead letters.
pub struct Hold {
    pub s3: Dependency,
    pub postgres: Dependency,
    pub model: Dependency,
    dead_letters: Mutex<Letters>,
    letters_held: AtomicUsize,
}

/// Something outside the pipeline that every item needs.
pub struct Dependency {
    name: &'static str,
    state: Mutex<State>,
    /// Those who wait, in the order in which they will probe: an item that fails for a reason of its
    /// own must not be the only one to ask.
    line: tokio::sync::Mutex<()>,
    changed: watch::Sender<()>,
    held: AtomicUsize,
    /// Intake goes on until so many items wait, since a fresh one may find that all is well.
    company: usize,
}

struct State {
    breaker: Breaker,
    last_error: String,
}

struct Letters {
    guard: DeadLetterGuard,
    /// The end of the hold that was logged last.
    announced: Option<Instant>,
}

/// Leave for one attempt. Dropped without a word, it says nothing of the dependency.
#[must_use]
pub(super) struct Pass<'a> {
    dependency: &'a Dependency,
    // `None` only once it is used up.
    leave: Option<Leave>,
}

impl Hold {
    /// Nothing is held yet; dead letters will be for `dead_letter_hold` at a time.
    pub fn new(dead_letter_hold: Duration) -> Arc<Self> {
        Arc::new(Self {
            s3: Dependency::new("s3", BreakerPolicy::S3, BreakerPolicy::S3.in_a_row),
            postgres: Dependency::new("postgres", BreakerPolicy::POSTGRES, 0),
            model: Dependency::new("model", BreakerPolicy::MODEL, BreakerPolicy::S3.in_a_row),
            dead_letters: Mutex::new(Letters {
                guard: DeadLetterGuard::new(dead_letter_hold),
                announced: None,
            }),
            letters_held: AtomicUsize::new(0),
        })
    }

    pub fn dependencies(&self) -> [&Dependency; 3] {
        [&self.s3, &self.postgres, &self.model]
    }

    /// Why the worker cannot score just now, with the remedy; `None` while nothing is broken.
    pub fn trouble(&self) -> Option<String> {
        let broken = self.dependencies().into_iter().find_map(Dependency::trouble);
        broken.or_else(|| {
            let now = Instant::now();
            let holding = self.letters().guard.holding(now)?;
            Some(format!(
                "dead letters are held: {} of the last {} outcomes were some. Look at roc4mllm_item_errors_total \
                 and the dead-letter topic for what they have in common; the hold ends in {} s \
                 (pipeline.dead_letter_hold_ms), or with a restart",
                holding.dead,
                holding.of,
                holding.until.saturating_duration_since(now).as_secs()
            ))
        })
    }

    /// Items that wait for a dependency or with a dead letter.
    pub fn items_held(&self) -> usize {
        let waiting: usize = self.dependencies().iter().map(|dependency| dependency.held()).sum();
        waiting + self.letters_held.load(Ordering::Relaxed)
    }

    /// Whether dead letters are held now.
    pub fn holds_dead_letters(&self) -> bool {
        self.letters().guard.holding(Instant::now()).is_some()
    }

    /// Closes `gate` while records would only pile up, for as long as it is polled.
    pub async fn regulate(&self, gate: &Gate) {
        let mut halted = false;
        loop {
            let halt = self.holds_dead_letters() || self.dependencies().iter().any(|one| one.halts_intake());
            if halt != halted {
                halted = halt;
                if halt { gate.close() } else { gate.open() }
            }
            tokio::time::sleep(REGULATED_EVERY).await;
        }
    }

    /// Counts an outcome that is no dead letter.
    pub(super) fn scored(&self) {
        self.letters().guard.scored();
    }

    /// Waits until one more dead letter may be written.
    pub(super) async fn dead_letter(&self) {
        let mut waiting = None;
        loop {
            let holding = {
                let mut letters = self.letters();
                match letters.guard.dead_letter(Instant::now()) {
                    Ok(()) => return,
                    Err(holding) => {
                        if letters.announced != Some(holding.until) {
                            letters.announced = Some(holding.until);
                            let (dead, of) = (holding.dead, holding.of);
                            tracing::error!(
                                dead,
                                of,
                                "too many dead letters; they are held and intake is paused"
                            );
                        }
                        holding
                    }
                }
            };
            waiting.get_or_insert_with(|| Counted::new(&self.letters_held));
            tokio::time::sleep_until(holding.until.into()).await;
        }
    }

    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.dead_letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dependency {
    fn new(name: &'static str, policy: BreakerPolicy, company: usize) -> Self {
        Self {
            name,
            state: Mutex::new(State { breaker: Breaker::new(policy), last_error: String::new() }),
            line: tokio::sync::Mutex::new(()),
            changed: watch::Sender::new(()),
            held: AtomicUsize::new(0),
            company,
        }
    }

    /// As metrics and messages call it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether its breaker is open.
    pub fn is_open(&self) -> bool {
        self.lock().breaker.is_open()
    }

    /// Items that wait for it.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// What is wrong with it while its breaker is open.
    pub fn trouble(&self) -> Option<String> {
        let state = self.lock();
        let since = state.breaker.open_since()?;
        Some(format!(
            "{} is broken for {} s, {} items wait: {}",
            self.name,
            since.elapsed().as_secs(),
            self.held(),
            state.last_error
        ))
    }

    fn halts_intake(&self) -> bool {
        self.is_open() && self.held() >= self.company
    }

    /// Leave for one attempt. While the breaker is open this waits, for the breaker to close or for
    /// its turn to probe.
    pub(super) async fn pass(&self) -> Pass<'_> {
        if let Asked::Go(leave) = self.ask() {
            return Pass { dependency: self, leave: Some(leave) };
        }
        let _held = Counted::new(&self.held);
        let probing = async {
            let _head = self.line.lock().await;
            let mut changed = self.changed.subscribe();
            loop {
                // The sender lives as long as `self`, so a change is all that can end the waiting.
                match self.ask() {
                    Asked::Go(leave) => return leave,
                    Asked::At(at) => drop(tokio::time::timeout_at(at.into(), changed.changed()).await),
                    Asked::AfterProbe => drop(changed.changed().await),
                }
            }
        };
        let closed = async {
            let mut changed = self.changed.subscribe();
            loop {
                if !self.is_open()
                    && let Asked::Go(leave) = self.ask()
                {
                    return leave;
                }
                drop(changed.changed().await);
            }
        };
        let leave = tokio::select! {
            leave = probing => leave,
            leave = closed => leave,
        };
        Pass { dependency: self, leave: Some(leave) }
    }

    /// Leave for one attempt that nothing depends on; `None` while the breaker is open, whose probes are
    /// for those who wait.
    pub(super) fn pass_if_well(&self) -> Option<Pass<'_>> {
        if self.is_open() {
            return None;
        }
        match self.ask() {
            Asked::Go(leave) => Some(Pass { dependency: self, leave: Some(leave) }),
            Asked::At(_) | Asked::AfterProbe => None,
        }
    }

    fn ask(&self) -> Asked {
        self.lock().breaker.ask(Instant::now())
    }

    fn tell(&self, leave: Leave, told: Told, error: Option<&dyn std::fmt::Display>) {
        let mut state = self.lock();
        let probe = leave.is_probe();
        let was_open = state.breaker.open_since();
        if let Some(error) = error {
            state.last_error = error.to_string();
        }
        let change = state.breaker.tell(leave, told, Instant::now());
        let error = if change == Change::Opened { state.last_error.clone() } else { String::new() };
        drop(state);
        match change {
            Change::Opened => {
                tracing::error!(dependency = self.name, error, "broken; everything that needs it is held");
            }
            Change::Closed => {
                let seconds = was_open.map(|since| since.elapsed().as_secs());
                tracing::info!(dependency = self.name, seconds, held = self.held(), "works again");
            }
            Change::None => {}
        }
        if probe || change != Change::None {
            self.changed.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// Whether the attempt may still begin; a breaker may have opened since.
    pub fn is_current(&self) -> bool {
        self.leave.as_ref().is_some_and(|leave| self.dependency.lock().breaker.is_current(leave))
    }

    /// Whether everybody else waits for this attempt.
    pub fn is_probe(&self) -> bool {
        self.leave.as_ref().is_some_and(Leave::is_probe)
    }

    /// The dependency answered.
    pub fn worked(mut self) {
        self.tell(Told::Success, None);
    }

    /// The dependency is broken, as far as `asker` can see.
    pub fn failed(mut self, asker: u64, error: &dyn std::fmt::Display) {
        self.tell(Told::Failure { asker }, Some(error));
    }

    fn tell(&mut self, told: Told, error: Option<&dyn std::fmt::Display>) {
        if let Some(leave) = self.leave.take() {
            self.dependency.tell(leave, told, error);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.tell(Told::Nothing, None);
    }
}

/// One in a count, for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn break_it(dependency: &Dependency) {
        for asker in 0..20 {
            if !dependency.is_open() {
                dependency.pass().await.failed(asker, &"HTTP 403");
            }
        }
        assert!(dependency.is_open());
    }

    #[tokio::test]
    async fn those_held_probe_in_turn_and_all_go_on_together() {
        let hold = Hold::new(Duration::ZERO);
        break_it(&hold.s3).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for asker in 0..30_u64 {
            let (hold, order) = (Arc::clone(&hold), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                loop {
                    let pass = hold.s3.pass().await;
                    order.lock().unwrap().push(asker);
                    // The first one's object is refused for a reason of its own.
                    if asker == 0 && order.lock().unwrap().len() < 10 {
                        pass.failed(asker, &"HTTP 403");
                    } else {
                        pass.worked();
                        return;
                    }
                }
            }));
            tokio::task::yield_now().await;
        }
        assert_eq!((hold.items_held(), order.lock().unwrap().len()), (30, 0));
        assert!(hold.trouble().unwrap().contains("HTTP 403"));
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(60), task).await.unwrap().unwrap();
        }
        assert_eq!(order.lock().unwrap()[..2], [0, 1], "another one probes after the first");
        assert_eq!((hold.items_held(), hold.trouble()), (0, None));
    }

    #[tokio::test]
    async fn a_probe_that_is_given_up_leaves_the_turn_to_another() {
        let hold = Hold::new(Duration::ZERO);
        break_it(&hold.postgres).await;
        let probe = hold.postgres.pass().await;
        let other = tokio::spawn({
            let hold = Arc::clone(&hold);
            async move { hold.postgres.pass().await.worked() }
        });
        tokio::task::yield_now().await;
        drop(probe);
        tokio::time::timeout(Duration::from_secs(60), other).await.unwrap().unwrap();
        assert!(!hold.postgres.is_open());
    }

    #[tokio::test]
    async fn intake_halts_while_postgres_is_broken_and_goes_on_afterwards() {
        let (hold, gate) = (Hold::new(Duration::ZERO), Gate::default());
        let scenario = async {
            break_it(&hold.postgres).await;
            tokio::time::sleep(3 * REGULATED_EVERY).await;
            assert!(!gate.is_open());
            hold.postgres.pass().await.worked();
            tokio::time::sleep(3 * REGULATED_EVERY).await;
            assert!(gate.is_open());
        };
        tokio::select! {
            () = hold.regulate(&gate) => {}
            () = scenario => {}
        }
    }

    #[tokio::test]
    async fn the_hundredth_dead_letter_waits_and_the_trouble_says_how_long() {
        let hold = Hold::new(Duration::from_secs(2));
        for _ in 0..99 {
            hold.dead_letter().await;
        }
        let started = Instant::now();
        let waiting = tokio::spawn({
            let hold = Arc::clone(&hold);
            async move { hold.dead_letter().await }
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(hold.holds_dead_letters());
        assert_eq!(hold.items_held(), 1);
        assert!(hold.trouble().unwrap().contains("100 of the last 100"), "{:?}", hold.trouble());
        waiting.await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(2));
        assert_eq!((hold.items_held(), hold.trouble()), (0, None));
    }
}
