//! Server processes that end when their handle is dropped, and with this process however it ends.

use crate::dev::DevError;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A running server. Dropping it kills the process and waits for its end.
#[derive(Debug)]
pub struct ManagedChild {
    part: &'static str,
    child: Child,
}

impl ManagedChild {
    /// Starts `command`. Should this process die without running destructors, the kernel sends
    /// `parent_death_signal` to the child.
    pub fn spawn(part: &'static str, command: Command, parent_death_signal: i32) -> Result<Self, DevError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = spawn_from_keeper(command, parent_death_signal)
            .map_err(|error| DevError::Start { part, reason: format!("{program} did not start: {error}") })?;
        Ok(Self { part, child })
    }

    /// The process id, for a signal or a look at `/proc`.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, `None` while it runs.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>, DevError> {
        let part = self.part;
        self.child.try_wait().map_err(|error| DevError::io(part, error))
    }

    /// Sends `signal` and waits; kills the process if it is still there after `patience`.
    pub fn stop(&mut self, signal: i32, patience: Duration) -> Result<(), DevError> {
        if self.exit_status()?.is_some() {
            return Ok(());
        }
        self.signal(signal)?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if self.exit_status()?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.kill()
    }

    /// SIGKILL, then waits for the end.
    pub fn kill(&mut self) -> Result<(), DevError> {
        let part = self.part;
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(drop).map_err(|error| DevError::io(part, error))
    }

    /// Sends `signal`, such as SIGSTOP, to the process.
    pub fn signal(&mut self, signal: i32) -> Result<(), DevError> {
        // A reaped process's id may belong to another one by now.
        if self.exit_status()?.is_some() {
            return Ok(());
        }
        let id = self.child.id().cast_signed();
        // SAFETY: kill(2) takes two integers and touches no memory of ours.
        if unsafe { libc::kill(id, signal) } != 0 {
            return Err(DevError::io(self.part, io::Error::last_os_error()));
        }
        Ok(())
    }
}

impl Drop for ManagedChild {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::debug!(part = self.part, %error, "could not kill a server process");
        }
    }
}

type SpawnRequest = (Command, i32, mpsc::Sender<io::Result<Child>>);

/// Spawns from one thread that lives as long as the process: Linux sends the parent-death signal
/// when the *thread* that forked ends, and test threads end early.
fn spawn_from_keeper(command: Command, parent_death_signal: i32) -> io::Result<Child> {
    static KEEPER: OnceLock<Mutex<mpsc::Sender<SpawnRequest>>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (requests, incoming) = mpsc::channel::<SpawnRequest>();
        thread::spawn(move || {
            for (mut command, signal, reply) in incoming {
                // Ctrl-C is for this process, which stops the servers when it has no more use for them.
                command.process_group(0);
                die_with_parent(&mut command, signal);
                // A caller that went away drops the child's handle; nothing is left to do here.
                let _gone = reply.send(command.spawn());
            }
        });
        Mutex::new(requests)
    });
    let (reply, answer) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts server processes has ended");
    keeper.lock().map_err(|_| gone())?.send((command, parent_death_signal, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command, signal: i32) {
    let signal = libc::c_ulong::from(signal.cast_unsigned());
    // SAFETY: prctl(2) is async-signal-safe and the closure touches no memory of the parent.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command, _signal: i32) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_handle_ends_the_process() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let child = ManagedChild::spawn("sleep", command, libc::SIGKILL).unwrap();
        let id = child.id().cast_signed();
        drop(child);
        // SAFETY: signal 0 only asks whether the process exists.
        assert_eq!(unsafe { libc::kill(id, 0) }, -1);
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut child = thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("600");
            ManagedChild::spawn("sleep", command, libc::SIGKILL).unwrap()
        })
        .join()
        .unwrap();
        thread::sleep(Duration::from_millis(100));
        assert!(child.exit_status().unwrap().is_none());
        child.stop(libc::SIGTERM, Duration::from_secs(5)).unwrap();
        assert!(child.exit_status().unwrap().is_some());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = ManagedChild::spawn("x", Command::new("/no/such/program"), libc::SIGKILL).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
