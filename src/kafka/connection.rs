//! Starts the threads of this module, and ends them in good order.

use super::client::ClientRole;
use super::committer::{self, CommitRequests, Request};
use super::rebalance::SourceContext;
use super::source::{self, SourceConsumer};
use super::{ConsumedRecord, Error, Fatal, Gate, KafkaSettings, KafkaStats, Ledger, lookup};
use rdkafka::consumer::Consumer;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc as blocking};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// A running consumer and committer.
pub struct Connection {
    /// Input records. Ends once the source has stopped.
    pub records: mpsc::Receiver<ConsumedRecord>,
    pub ledger: Arc<Ledger>,
    pub gate: Arc<Gate>,
    pub stats: Arc<KafkaStats>,
    /// Fires if the consumer fails for good; the process should exit with 72.
    pub fatal: oneshot::Receiver<Fatal>,
    pub control: Control,
}

/// Ends a [`Connection`]. Dropped without [`Control::drain`], it tells the threads to stop and waits
/// for nothing.
pub struct Control {
    ledger: Arc<Ledger>,
    gate: Arc<Gate>,
    requests: CommitRequests,
    stop: Arc<AtomicBool>,
    draining: Arc<AtomicBool>,
    source: Running,
    committer: Running,
    close_timeout: Duration,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Records that had been started and were not finished in time; they will be processed again.
    pub unfinished: usize,
    /// Finished records that could not be committed; their rows exist and will be used again.
    pub uncommitted: usize,
    /// Whether the group was left and the clients were closed. If not, a client hangs: exit at once,
    /// without running destructors.
    pub closed: bool,
}

/// Connects to Kafka and starts consuming.
///
/// Returns before the brokers have answered; [`super::admin::probe`] tells whether they do.
pub fn connect(settings: &KafkaSettings) -> Result<Connection, Error> {
    settings.check()?;
    let stats = Arc::new(KafkaStats::default());
    let gate = Arc::new(Gate::default());
    let stop = Arc::new(AtomicBool::new(false));
    let draining = Arc::new(AtomicBool::new(false));
    let (requests, inbox) = CommitRequests::channel();
    let due = requests.clone();
    let ledger = Arc::new(Ledger::new(settings.commit_outputs, move || due.send(Request::Due)));
    let (lookups, lookup_inbox) = blocking::channel();
    let (opened, opened_inbox) = blocking::channel();
    let (changes, change_inbox) = blocking::channel();
    let (records, record_inbox) = mpsc::channel(settings.queue_records);
    let (fatal, fatal_inbox) = oneshot::channel();

    let context = SourceContext {
        client: super::client::Context::new(ClientRole::Source, settings),
        ledger: Arc::clone(&ledger),
        requests: requests.clone(),
        stats: Arc::clone(&stats),
        changes,
        revoke_drain: settings.revoke_drain(),
        draining: Arc::clone(&draining),
    };
    let consumer: Arc<SourceConsumer> = Arc::new(super::client::source_consumer(settings, context)?);
    let topics: Vec<&str> = settings.consumed_topics().collect();
    consumer.subscribe(&topics).map_err(|source| super::client::refused(settings, source))?;

    let committer = committer::Committer::new(
        settings,
        Arc::clone(&ledger),
        Arc::clone(&stats),
        Arc::downgrade(&consumer),
        inbox,
    );
    let lookup = lookup::Lookup {
        settings: settings.clone(),
        ledger: Arc::clone(&ledger),
        stats: Arc::clone(&stats),
        consumer: super::client::lookup_consumer(settings)?,
        inbox: lookup_inbox,
        opened,
        stalls: super::stall::StallWatch::default(),
    };
    let parts = source::SourceParts {
        consumer,
        settings: settings.clone(),
        ledger: Arc::clone(&ledger),
        gate: Arc::clone(&gate),
        stats: Arc::clone(&stats),
        stop: Arc::clone(&stop),
        requests: requests.clone(),
        records,
        lookups,
        opened: opened_inbox,
        changes: change_inbox,
    };
    let source = source::Source::new(parts, fatal);
    Running::spawn("kafka-lookup", move || lookup.run())?;
    let committer = Running::spawn("kafka-commit", move || committer.run())?;
    let source = Running::spawn("kafka-poll", move || source.run())?;
    let control = Control {
        ledger: Arc::clone(&ledger),
        gate: Arc::clone(&gate),
        requests,
        stop,
        draining,
        source,
        committer,
        close_timeout: Duration::from_millis(settings.close_timeout_ms),
    };
    Ok(Connection { records: record_inbox, ledger, gate, stats, fatal: fatal_inbox, control })
}

impl Control {
    /// For a consumer that has failed for good: it can't leave its group any more, so a drain needn't
    /// wait for that.
    #[must_use]
    pub fn without_farewell(mut self) -> Self {
        self.close_timeout = Duration::ZERO;
        self
    }

    /// Ends intake, waits up to `patience` for what was started, commits it, and leaves the group.
    /// What was only queued is dropped: another member will have it.
    ///
    /// Blocks; takes at most `patience` plus `kafka.close_timeout_ms`.
    pub fn drain(self, patience: Duration) -> Drained {
        // The last of it is kept for what comes after the drain, so that the promised time is kept.
        let deadline = Instant::now() + patience - patience / 20;
        self.ledger.begin_drain();
        self.gate.close();
        // The last commit gets a quarter of the time, if finishing the work leaves no more.
        let unfinished = self.ledger.wait_started(None, deadline - patience / 4);
        if unfinished == 0 {
            self.ledger.settle(None);
        }
        self.requests.cycle(deadline.saturating_duration_since(Instant::now()));
        let uncommitted = self.ledger.uncommitted();
        self.draining.store(true, Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
        let closing = Instant::now() + self.close_timeout;
        let closed = self.source.finished_by(closing) && self.committer.finished_by(closing);
        Drained { unfinished, uncommitted, closed }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.draining.store(true, Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A thread whose end can be awaited for a while, which a `JoinHandle` can't.
struct Running {
    finished: blocking::Receiver<()>,
}

impl Running {
    fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<Self, Error> {
        let (alive, finished) = blocking::channel();
        thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                // Dropped when the body ends or panics, which disconnects the receiver.
                let _alive: blocking::Sender<()> = alive;
                body();
            })
            .map_err(|source| Error::Thread { name, source })?;
        Ok(Self { finished })
    }

    fn finished_by(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        self.finished.recv_timeout(left) == Err(blocking::RecvTimeoutError::Disconnected)
    }
}
