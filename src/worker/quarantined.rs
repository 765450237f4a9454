//! The process in which suspected images are decoded and scored: see [`crate::quarantine`].

use super::{WorkerError, model};
use crate::{
    inference::{InferenceSettings, ScoreFailure, ScoringService},
    quarantine::{Hello, Reply, read_frame, write_reply},
    serving::Duty,
};
use bytes::Bytes;
use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    thread,
};
use tokio::sync::mpsc;

/// What this process and its parent say to each other.
pub struct Conversation {
    hello: Hello,
    requests: Box<dyn Read + Send>,
    replies: File,
}

impl Conversation {
    /// Reads the parent's first words. Whatever a C library prints from here on goes to standard error.
    ///
    /// # Errors
    /// When standard input is not what a worker writes.
    pub fn begin() -> io::Result<Self> {
        let mut requests = Box::new(io::stdin());
        let hello = read_frame(&mut requests)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let hello = serde_json::from_slice(&hello)?;
        let replies = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        // SAFETY: both descriptors are open for as long as the process lives.
        if unsafe { libc::dup2(io::stderr().as_raw_fd(), io::stdout().as_raw_fd()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { hello, requests, replies })
    }

    pub fn hello(&self) -> &Hello {
        &self.hello
    }
}

/// Answers the parent's images, one after the other, until it is gone.
///
/// # Errors
/// [`WorkerError`] when the model cannot be loaded or is beyond use; the parent sees the exit code.
pub async fn run(conversation: Conversation) -> Result<(), WorkerError> {
    let Conversation { hello, requests, mut replies } = conversation;
    volunteer_for_the_kernel();
    let (sender, mut images) = mpsc::channel(1);
    thread::Builder::new()
        .name("quarantine-requests".into())
        .spawn(move || take_requests(requests, &sender))
        .map_err(|error| WorkerError::Model(error.to_string()))?;
    // The parent watches over time, and checks its own device.
    let inference = InferenceSettings {
        batch_size: 1,
        linger_ms: 0,
        decode_threads: 1,
        warm_up: true,
        hang_timeout_ms: 0,
        golden_interval_ms: 0,
        ..hello.inference
    };
    let service = model::load(hello.model, hello.image, inference, Arc::default(), Duty::Live).await?;
    let model = service.model();
    let warm_up_ms = u64::try_from(model.warm_up.as_millis()).unwrap_or(u64::MAX);
    let mut reply = Reply::Ready { version: (*model.version).clone(), warm_up_ms };
    // A parent that reads no more is gone.
    while write_reply(&mut replies, &reply).is_ok() {
        let Some((name, file)) = images.recv().await else { break };
        reply = score(&service, &name, file).await?;
    }
    Ok(())
}

async fn score(service: &ScoringService, name: &str, file: Bytes) -> Result<Reply, WorkerError> {
    match service.score(name, file).await {
        Ok(scored) => Ok(Reply::Scored { answer: scored.answer, width: scored.width, height: scored.height }),
        Err(ScoreFailure::Rejected { error, .. }) => Ok(Reply::Rejected { error }),
        Err(ScoreFailure::Engine(failure)) => Err(failure.into()),
    }
}

/// Passes images on, and ends the process with its parent, whatever it is doing.
fn take_requests(mut requests: impl Read, images: &mpsc::Sender<(String, Bytes)>) {
    let mut next = || -> io::Result<Option<(String, Bytes)>> {
        let Some(name) = read_frame(&mut requests)? else { return Ok(None) };
        let Some(file) = read_frame(&mut requests)? else { return Ok(None) };
        Ok(Some((String::from_utf8_lossy(&name).into_owned(), file.into())))
    };
    while let Ok(Some(image)) = next() {
        if images.blocking_send(image).is_err() {
            return;
        }
    }
    // SAFETY: the call ends the process, which holds nothing that anybody else needs.
    unsafe { libc::_exit(0) }
}

/// Should memory run out, this process is the one to kill, not its parent.
fn volunteer_for_the_kernel() {
    let written = File::create("/proc/self/oom_score_adj").and_then(|mut file| file.write_all(b"900"));
    if let Err(error) = written {
        tracing::debug!(%error, "the kernel was not asked to kill this process first");
    }
}
