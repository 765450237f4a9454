//! Contenders as processes of their own, so that what each costs can be told from what the servers do.

use super::servers::{BUCKET, Servers};
use crate::support::{
    free,
    python::{folder, interpreter},
    topics::Anything,
};
use roc4mllm::{config, dev::S3Server, worker};
use std::{
    env, fs,
    io::Read,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Has a process of this program be something else than the benchmark.
pub const ROLE: &str = "ROC4MLLM_BENCH_ROLE";
/// The configuration of such a process: a JSON list of keys and values.
pub const SETTINGS: &str = "ROC4MLLM_BENCH_SETTINGS";

/// How long a contender may take to end once it is asked to.
const FAREWELL: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Ours,
    Python,
}

/// Where one run takes place.
pub struct Place {
    pub group: String,
    pub input: String,
    pub output: String,
    pub dead_letters: String,
    pub database: String,
}

/// A running contender; killed with its handle.
pub struct Process {
    child: Child,
    contender: Contender,
}

/// What a process has taken so far.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub cpu_s: f64,
    pub peak_bytes: u64,
}

/// Settings of a worker, or of its stages, in a place.
pub fn settings(servers: &Servers, place: &Place) -> Vec<(String, String)> {
    [
        ("kafka.brokers", servers.kafka.bootstrap().to_owned()),
        ("kafka.group", place.group.clone()),
        ("kafka.input_topics", format!("[{:?}]", place.input)),
        ("kafka.output_topic", place.output.clone()),
        ("kafka.dead_letter_topic", place.dead_letters.clone()),
        ("s3.endpoint", servers.s3.endpoint()),
        ("s3.buckets", format!("[{BUCKET:?}]")),
        ("s3.access_key_id", S3Server::ACCESS_KEY.to_owned()),
        ("s3.secret_access_key", S3Server::SECRET_KEY.to_owned()),
        ("postgres.url", place.database.clone()),
        ("http.listen", "127.0.0.1:0".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// A process of this program in another role.
pub fn in_role(role: &str, settings: &[(String, String)]) -> Result<Command, Anything> {
    let mut command = Command::new(env::current_exe()?);
    command.env(ROLE, role).env(SETTINGS, serde_json::to_string(settings)?);
    Ok(command)
}

/// The configuration that such a process was given.
pub fn configuration() -> Result<config::Config, Anything> {
    let settings: Vec<(String, String)> = serde_json::from_str(&env::var(SETTINGS)?)?;
    Ok(config::load(None, &settings)?)
}

/// The role `worker`: the real worker but for its model, until standard input ends.
pub async fn work() -> Result<(), Anything> {
    let config = configuration()?;
    let service = free::service(config.inference.clone(), config.image.clone());
    let ended = async {
        // Ended or broken, nobody wants more.
        let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await;
    };
    Ok(worker::run_with(config, service, ended).await?)
}

impl Process {
    pub fn start(contender: Contender, servers: &Servers, place: &Place) -> Result<Self, Anything> {
        let mut command = match contender {
            Contender::Ours => in_role("worker", &settings(servers, place))?,
            Contender::Python => {
                let mut command = Command::new(interpreter()?);
                command.arg(folder().join("worker.py"));
                let kafka = servers.kafka.bootstrap();
                for (flag, value) in [
                    ("--brokers", kafka),
                    ("--group", &place.group),
                    ("--input", &place.input),
                    ("--output", &place.output),
                    ("--endpoint", &servers.s3.endpoint()),
                    ("--database", &place.database),
                ] {
                    command.arg(flag).arg(value);
                }
                command
                    .env("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY)
                    .env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY);
                command
            }
        };
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        Ok(Self { child, contender })
    }

    /// # Errors
    /// When it has ended.
    pub fn taken(&mut self) -> Result<Taken, Anything> {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("{:?} ended early: {status}", self.contender).into());
        }
        taken(self.child.id())
    }

    /// Has it end by itself.
    pub fn stop(mut self) -> Result<(), Anything> {
        match self.contender {
            Contender::Ours => drop(self.child.stdin.take()),
            Contender::Python => {
                let pid = i32::try_from(self.child.id())?;
                // SAFETY: the call takes no pointers, and the child has not been waited for.
                unsafe { libc::kill(pid, libc::SIGTERM) };
            }
        }
        let deadline = Instant::now() + FAREWELL;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("{:?} ended with {status}", self.contender).into()),
                None if Instant::now() > deadline => {
                    return Err(format!("{:?} does not end", self.contender).into());
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may have ended just now.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn taken(pid: u32) -> Result<Taken, Anything> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold spaces; what follows its parenthesis does not.
    let fields: Vec<&str> = stat.rsplit_once(')').ok_or("no name")?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11).ok_or("no user time")?.parse::<f64>()?
        + fields.get(12).ok_or("no system time")?.parse::<f64>()?;
    // SAFETY: the call takes no pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no peak")?;
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    Ok(Taken { cpu_s: ticks / per_second, peak_bytes: peak_kib * 1024 })
}
