//! The servers that all runs share: one Apache Kafka behind its proxy, one Postgres.

use crate::proxy::frames::FrameProxy;
use anyhow::{Context, Result};
use roc4mllm::dev::{ApacheKafka, Postgres};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The broker looks for transactions past their time every ten seconds; a session of 6 s instead of
/// 30 s wants that scaled too.
const BROKER_SETTINGS: &str = "transaction.abort.timed.out.transaction.cleanup.interval.ms=1000\n\
    group.initial.rebalance.delay.ms=0\n";

pub struct Site {
    /// Between proxied rows' workers and the broker.
    pub proxy: FrameProxy,
    proxy_taken: Mutex<()>,
    kafka: ApacheKafka,
    postgres: Postgres,
    /// Where runs keep their folders and the report goes.
    pub folder: PathBuf,
}

impl Site {
    pub fn start(folder: PathBuf) -> Result<Self> {
        let proxy = FrameProxy::start().context("the Kafka proxy")?;
        let port = proxy.address().port();
        let kafka = ApacheKafka::start_behind(&ApacheKafka::default_libraries(), port, BROKER_SETTINGS)?;
        proxy.forward_to(kafka.behind_proxy().context("the broker has a second listener")?);
        let postgres = Postgres::start()?;
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { proxy, proxy_taken: Mutex::default(), kafka, postgres, folder })
    }

    /// The broker without the proxy.
    pub fn kafka(&self) -> &str {
        self.kafka.bootstrap()
    }

    /// The Postgres server's address, as a superuser, with its database `postgres`.
    pub fn postgres(&self) -> String {
        self.postgres.url()
    }

    /// The proxy's sole use, as good as new.
    pub fn take_proxy(&self) -> MutexGuard<'_, ()> {
        let taken = self.proxy_taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.proxy.reset();
        taken
    }
}

/// The folder that cargo builds into.
pub fn target() -> PathBuf {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    scratch.parent().unwrap_or(scratch).to_owned()
}
