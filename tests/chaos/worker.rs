//! The real binary as a child process.

use anyhow::{Context, Result, bail};
use roc4mllm::dev::ManagedChild;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const HTTP_PATIENCE: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(20);

/// A worker yet to be started: settings, failpoints, variables.
pub struct WorkerSetup {
    pub(crate) settings: BTreeMap<String, toml::Value>,
    pub(crate) failpoints: Vec<String>,
    pub(crate) variables: BTreeMap<String, String>,
}

impl WorkerSetup {
    /// Overrides one key, `section.key`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    /// Adds `name=action` in the words of the `fail` crate.
    #[must_use]
    pub fn failpoint(mut self, failpoint: impl Into<String>) -> Self {
        self.failpoints.push(failpoint.into());
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// The configuration file's text.
    fn toml(&self, port: u16) -> Result<String> {
        let mut sections: BTreeMap<String, toml::Table> = BTreeMap::new();
        for (key, value) in &self.settings {
            let (section, key) = key.split_once('.').with_context(|| format!("{key} names no section"))?;
            sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.clone());
        }
        sections
            .entry("http".to_owned())
            .or_default()
            .insert("listen".to_owned(), format!("127.0.0.1:{port}").into());
        Ok(toml::to_string(&sections)?)
    }

    /// Starts it as worker `number` of the run in `folder`.
    pub(crate) fn spawn(self, folder: &Path, number: usize) -> Result<Worker> {
        // A port that was free a moment ago; the worker says so if it no longer is.
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = folder.join(format!("worker-{number}.toml"));
        std::fs::write(&config, self.toml(http.port())?)?;
        let log = folder.join(format!("worker-{number}.log"));
        let stderr = File::create(&log)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_roc4mllm"));
        command.args(["--log-format", "json", "worker", "-c"]).arg(&config);
        command.env("FAILPOINTS", self.failpoints.join(";")).envs(&self.variables);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = ManagedChild::spawn("worker", command, libc::SIGKILL)?;
        let (id, child) = (child.id(), Arc::new(Mutex::new(child)));
        Ok(Worker { number, id, http, log, child })
    }
}

/// A worker process. Handles are cheap to clone, and the run kills what is left at its end.
#[derive(Clone)]
pub struct Worker {
    pub number: usize,
    pub id: u32,
    http: SocketAddr,
    log: PathBuf,
    child: Arc<Mutex<ManagedChild>>,
}

impl Worker {
    fn child(&self) -> MutexGuard<'_, ManagedChild> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SIGKILL, and its end.
    pub fn kill(&self) -> Result<()> {
        Ok(self.child().kill()?)
    }

    /// Sends a signal, such as SIGTERM, SIGSTOP or SIGCONT, and does not wait.
    pub fn signal(&self, signal: i32) -> Result<()> {
        Ok(self.child().signal(signal)?)
    }

    pub fn is_running(&self) -> Result<bool> {
        Ok(self.child().exit_status()?.is_none())
    }

    /// Waits for the process to end by itself: its exit code, or `None` if a signal ended it.
    pub fn wait_exit(&self, within: Duration) -> Result<Option<i32>> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child().exit_status()? {
                return Ok(status.code());
            }
            if Instant::now() > deadline {
                bail!("worker-{} runs on after {within:?}; see its log", self.number);
            }
            thread::sleep(GLANCE);
        }
    }

    /// The body and status of a GET, if the worker answers.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.http, HTTP_PATIENCE)?;
        stream.set_read_timeout(Some(HTTP_PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        Ok((status.context("no status line")?, body.unwrap_or_default()))
    }

    pub fn is_ready(&self) -> bool {
        self.get("/readyz").is_ok_and(|(status, _)| status == 200)
    }

    pub fn is_alive(&self) -> bool {
        self.get("/healthz").is_ok_and(|(status, _)| status == 200)
    }

    pub fn wait_ready(&self, within: Duration) -> Result<()> {
        self.wait_until("ready", within, |worker| Ok(worker.is_ready()))
    }

    /// Waits for something about a worker that must not end meanwhile.
    pub fn wait_until(
        &self,
        what: &str,
        within: Duration,
        condition: impl Fn(&Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + within;
        while !condition(self)? {
            if !self.is_running()? {
                bail!("worker-{} ended before it was {what}: {}", self.number, self.last_line());
            }
            if Instant::now() > deadline {
                bail!("worker-{} is not {what} after {within:?}", self.number);
            }
            thread::sleep(GLANCE * 3);
        }
        Ok(())
    }

    /// One sample of `/metrics`, by its full name with labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        sample(&self.get("/metrics").ok()?.1, name)
    }

    /// The log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How many lines of the log contain `words`.
    pub fn log_count(&self, words: &str) -> usize {
        self.log().lines().filter(|line| line.contains(words)).count()
    }

    fn last_line(&self) -> String {
        self.log().lines().last().unwrap_or("no log").to_owned()
    }
}

/// The value of one sample in the Prometheus text format.
fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split(' ').next()?.parse().ok())
}
