//! The faults of a soak, each brought about and mended within a few seconds.

use super::START;
use super::memory::Memory;
use crate::proxy::Mode;
use crate::proxy::tcp::TcpProxy;
use crate::random::Random;
use crate::run::Run;
use crate::worker::Worker;
use anyhow::Result;
use roc4mllm::dev::Fault as S3Fault;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Scores that a worker keeps for reuse; at half the load it has as many in half a minute.
const REUSED: i64 = 2_000;

/// The worker that lives through everything, and the one that is killed and stopped.
pub const STEADY: &str = "steady";
const VICTIM: &str = "victim";
const GUEST: &str = "guest";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Kill,
    Stop,
    SlowDown,
    CutS3,
    CutPostgres,
    CutKafka,
    Rebalance,
}

impl Fault {
    const ALL: [Self; 7] = [
        Self::Kill,
        Self::Stop,
        Self::SlowDown,
        Self::CutS3,
        Self::CutPostgres,
        Self::CutKafka,
        Self::Rebalance,
    ];

    /// All of them, in an order that the seed decides.
    pub fn shuffled(random: &mut Random) -> Vec<Self> {
        let mut left = Self::ALL.to_vec();
        let mut order = Vec::new();
        while !left.is_empty() {
            order.push(left.swap_remove(random.below(left.len())));
        }
        order
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kill => "a worker is killed and restarted",
            Self::Stop => "a worker sleeps through its session",
            Self::SlowDown => "S3 answers every other request with SlowDown",
            Self::CutS3 => "S3 refuses connections",
            Self::CutPostgres => "Postgres refuses connections",
            Self::CutKafka => "the broker refuses connections",
            Self::Rebalance => "a worker joins and leaves",
        })
    }
}

/// The workers, and what stands between them and their servers.
pub struct Bench {
    steady: Worker,
    victim: Worker,
    memory: Memory,
    postgres: TcpProxy,
    s3: TcpProxy,
    /// When the load can begin, on the memory's clock.
    pub started: Duration,
}

impl Bench {
    pub fn new(run: &mut Run, memory: Memory, postgres: TcpProxy, s3: TcpProxy) -> Result<Self> {
        let steady = worker(run, &memory, STEADY)?;
        let victim = worker(run, &memory, VICTIM)?;
        for worker in [&steady, &victim] {
            worker.wait_ready(START)?;
        }
        let started = memory.elapsed();
        Ok(Self { steady, victim, memory, postgres, s3, started })
    }

    pub fn steady_runs(&self) -> Result<bool> {
        self.steady.is_running()
    }

    pub fn bring_about(&mut self, run: &mut Run, fault: Fault) -> Result<()> {
        let wait = |seconds| thread::sleep(Duration::from_secs(seconds));
        match fault {
            Fault::Kill => {
                self.victim.kill()?;
                wait(2);
                self.victim = worker(run, &self.memory, VICTIM)?;
            }
            Fault::Stop => {
                self.victim.signal(libc::SIGSTOP)?;
                // The session ends after six.
                wait(9);
                self.victim.signal(libc::SIGCONT)?;
            }
            Fault::SlowDown => {
                let requests = AtomicUsize::new(0);
                run.s3.set_faults(move |_| {
                    let turn = requests.fetch_add(1, Ordering::Relaxed);
                    turn.is_multiple_of(2).then_some(S3Fault::Refuse { status: 503, code: "SlowDown" })
                });
                wait(8);
                run.s3.clear_faults();
            }
            Fault::CutS3 => refuse_for(3, |mode| self.s3.set_mode(mode)),
            Fault::CutPostgres => refuse_for(3, |mode| self.postgres.set_mode(mode)),
            Fault::CutKafka => refuse_for(3, |mode| run.site.proxy.set_mode(mode)),
            Fault::Rebalance => {
                let guest = worker(run, &self.memory, GUEST)?;
                guest.wait_ready(START)?;
                wait(4);
                guest.signal(libc::SIGTERM)?;
            }
        }
        Ok(())
    }
}

fn worker(run: &mut Run, memory: &Memory, name: &str) -> Result<Worker> {
    // Full before memory counts: that a bounded cache fills is no leak. And a worker that starts lists the bucket
    // once, for which the embedded server walks over every photo that was uploaded so far.
    let setup =
        run.worker(name).set("reuse.max_entries", REUSED).set("pipeline.start_timeout_ms", 60_000_i64);
    let worker = run.spawn(setup)?;
    memory.watch(name, worker.id);
    Ok(worker)
}

fn refuse_for(seconds: u64, set_mode: impl Fn(Mode)) {
    set_mode(Mode::Refusing);
    thread::sleep(Duration::from_secs(seconds));
    set_mode(Mode::Open);
}
