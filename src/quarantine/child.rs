//! The child process as its parent sees it.

use super::protocol::{Hello, Reply, frame};
use crate::score::ModelVersion;
use bytes::Bytes;
use std::{
    fmt,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child as Process, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The hidden command that the child runs.
const COMMAND: &str = "quarantine-child";
/// The exit code of a model that does not fit into memory.
const OUT_OF_MEMORY: i32 = 75;
/// How long a process that has closed its output may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A child process; killed with its handle.
pub(super) struct Child {
    process: Option<Process>,
    /// To the thread that writes to it: a pipe that is full would block the caller.
    frames: Sender<Bytes>,
    /// Ends when the child's output does.
    replies: UnboundedReceiver<Reply>,
    warm_up: Duration,
}

/// How a child ended.
#[derive(Debug)]
pub(super) enum Death {
    /// By itself, or by somebody else's hand.
    Ended(ExitStatus),
    /// It gave no answer in this time, and was killed.
    Silent(Duration),
    /// It closed its output and lives on, or cannot be asked.
    Unclear,
}

impl Death {
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Ended(status) if status.code() == Some(OUT_OF_MEMORY))
    }
}

impl fmt::Display for Death {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(status) => write!(formatter, "ended with {status}"),
            Self::Silent(limit) => write!(formatter, "gave no answer within {} s", limit.as_secs_f32()),
            Self::Unclear => formatter.write_str("broke off without a word"),
        }
    }
}

impl Child {
    /// Starts this very program again.
    pub fn start(hello: &Hello) -> io::Result<Self> {
        let hello = frame(&serde_json::to_vec(hello)?)?;
        let mut process = Command::new(program()?)
            .arg(COMMAND)
            // What is to happen to the parent at some point is not meant for its child.
            .env_remove("FAILPOINTS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A terminal's interrupt is for the parent, which ends its child in its own time.
            .process_group(0)
            .spawn()?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::Error::other("its pipes are missing"));
        };
        let (frames, outgoing) = channel();
        let (incoming, replies) = unbounded_channel();
        let child = Self { process: Some(process), frames, replies, warm_up: Duration::ZERO };
        thread::Builder::new().name("quarantine-write".into()).spawn(move || write(input, &outgoing))?;
        thread::Builder::new().name("quarantine-read".into()).spawn(move || read(output, &incoming))?;
        // Fails with the child, which shows in the replies.
        let _ = child.frames.send(hello.into());
        Ok(child)
    }

    /// Waits until it has loaded the model; which one that is.
    pub async fn ready(mut self, within: Duration) -> Result<(Self, ModelVersion), Death> {
        match self.reply(Some(within)).await? {
            Reply::Ready { version, warm_up_ms } => {
                self.warm_up = Duration::from_millis(warm_up_ms);
                Ok((self, version))
            }
            _ => Err(Death::Unclear),
        }
    }

    /// How long it took for a blank image.
    pub fn warm_up(&self) -> Duration {
        self.warm_up
    }

    /// Has it decode and score one file. After an error it is of no more use.
    pub async fn score(&mut self, name: &str, file: Bytes, within: Option<Duration>) -> Result<Reply, Death> {
        let framed = |content: &[u8]| frame(content).map(Bytes::from).map_err(|_| Death::Unclear);
        for content in [framed(name.as_bytes())?, framed(&file)?] {
            // Fails with the child, which shows in the replies.
            let _ = self.frames.send(content);
        }
        self.reply(within).await
    }

    async fn reply(&mut self, within: Option<Duration>) -> Result<Reply, Death> {
        let reply = match within {
            None => self.replies.recv().await,
            Some(within) => match tokio::time::timeout(within, self.replies.recv()).await {
                Ok(reply) => reply,
                Err(_) => return Err(Death::Silent(within)),
            },
        };
        match reply {
            Some(reply) => Ok(reply),
            None => Err(self.ended().await),
        }
    }

    async fn ended(&mut self) -> Death {
        let Some(process) = &mut self.process else { return Death::Unclear };
        let step = END_TIMEOUT / 100;
        for _ in 0..100 {
            match process.try_wait() {
                Ok(Some(status)) => return Death::Ended(status),
                Ok(None) => tokio::time::sleep(step).await,
                Err(_) => break,
            }
        }
        Death::Unclear
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // Fails only for one that has ended.
        let _ = process.kill();
        // Even a killed process takes its time while a driver holds it; without a thread it stays a
        // zombie until its parent ends.
        let reap = thread::Builder::new().name("quarantine-reap".into());
        if let Err(error) = reap.spawn(move || process.wait().map(drop)) {
            tracing::debug!(%error, "an ended child process stays listed");
        }
    }
}

/// The file that this process was started from, even if another has taken its name since.
fn program() -> io::Result<PathBuf> {
    let this = PathBuf::from("/proc/self/exe");
    if this.exists() { Ok(this) } else { std::env::current_exe() }
}

fn write(mut input: impl Write, frames: &Receiver<Bytes>) {
    while let Ok(frame) = frames.recv() {
        // A child that takes no more has ended or will be ended.
        if input.write_all(&frame).and_then(|()| input.flush()).is_err() {
            return;
        }
    }
}

fn read(output: impl io::Read, replies: &UnboundedSender<Reply>) {
    for line in BufReader::new(output).split(b'\n') {
        let reply = line.ok().and_then(|line| serde_json::from_slice(&line).ok());
        // A line that is no reply ends the conversation: what comes after it cannot be matched.
        let Some(reply) = reply else { return };
        if replies.send(reply).is_err() {
            return;
        }
    }
}
