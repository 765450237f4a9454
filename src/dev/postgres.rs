//! A throwaway Postgres in a temporary folder.

use crate::dev::child::ManagedChild;
use crate::dev::{DevError, free_port, scratch};
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PART: &str = "postgres";
const ROLE: &str = "roc4mllm";
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Another process may take the free port before Postgres does.
const PORT_ATTEMPTS: usize = 5;

/// A server of its own on a free loopback port. Nothing is synced to disk, so it is fast and
/// survives no power cut; it stops, and its folder goes, when the handle is dropped.
#[derive(Debug)]
pub struct Postgres {
    // Dropped before the folder it works in.
    server: ManagedChild,
    port: u16,
    binaries: PathBuf,
    account: Option<Account>,
    folder: TempDir,
}

/// Whom the server runs as where this process is root: `initdb` refuses root.
#[derive(Clone, Copy, Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Postgres {
    /// Creates a cluster and waits until it accepts connections (1 to 3 s). Blocks the thread.
    pub fn start() -> Result<Self, DevError> {
        let binaries = find_binaries()?;
        let account = unprivileged_account()?;
        let folder = scratch::folder(PART)?;
        if let Some(Account { uid, gid }) = account {
            chown(folder.path(), Some(uid), Some(gid)).map_err(|error| DevError::io(PART, error))?;
        }
        initialise(&binaries, account, folder.path())?;
        let mut attempt = 1;
        loop {
            let port = free_port(PART)?;
            match launch(&binaries, account, folder.path(), port) {
                Ok(server) => return Ok(Self { server, port, binaries, account, folder }),
                Err(_) if attempt < PORT_ATTEMPTS && port_in_use(folder.path()) => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// The connection address of a superuser; the password in it guards nothing of value.
    pub fn url(&self) -> String {
        format!("postgres://{ROLE}:{ROLE}@127.0.0.1:{}/postgres", self.port)
    }

    /// Shuts the server down and keeps its data, for [`Self::restart`].
    pub fn stop(&mut self) -> Result<(), DevError> {
        // SIGINT is Postgres' fast shutdown: sessions are cut, data is flushed.
        self.server.stop(libc::SIGINT, STOP_PATIENCE)
    }

    /// Starts the server again on the same port with the same data.
    pub fn restart(&mut self) -> Result<(), DevError> {
        self.stop()?;
        self.server = launch(&self.binaries, self.account, self.folder.path(), self.port)?;
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::debug!(%error, "Postgres did not shut down");
        }
    }
}

/// The folder of `initdb` and `postgres`: what `pg_config` says, else the newest of Debian's
/// versions, else `PATH`.
fn find_binaries() -> Result<PathBuf, DevError> {
    let has_both = |folder: &Path| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    let configured = Command::new("pg_config").arg("--bindir").output().ok();
    let configured = configured.filter(|output| output.status.success());
    let configured = configured.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    debian.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let path = std::env::var_os("PATH").unwrap_or_default();
    configured
        .into_iter()
        .chain(debian.into_iter().map(|(_, folder)| folder))
        .chain(std::env::split_paths(&path))
        .find(|folder| has_both(folder))
        .ok_or(DevError::Absent {
            part: PART,
            what: "initdb and postgres",
            remedy: "run `make setup`, or install your system's postgresql package",
        })
}

/// `None` unless this process is root; then the account `postgres`, or `nobody`.
fn unprivileged_account() -> Result<Option<Account>, DevError> {
    // SAFETY: geteuid(2) cannot fail and touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(None);
    }
    let accounts = fs::read_to_string("/etc/passwd").map_err(|error| DevError::io(PART, error))?;
    let find = |name: &str| {
        accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then_some(())?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some(Account { uid, gid: fields.next()?.parse().ok()? })
        })
    };
    find("postgres").or_else(|| find("nobody")).map(Some).ok_or(DevError::Absent {
        part: PART,
        what: "an account that is not root",
        remedy: "run as an ordinary user, or create the system user postgres",
    })
}

fn initialise(binaries: &Path, account: Option<Account>, folder: &Path) -> Result<(), DevError> {
    let password = folder.join("password");
    fs::write(&password, ROLE).map_err(|error| DevError::io(PART, error))?;
    let mut command = server_command(binaries, "initdb", account, folder);
    command.args(["--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256"]);
    command.args(["--wal-segsize=1", "--username", ROLE]);
    command.arg(format!("--pwfile={}", password.display())).arg(data_folder(folder));
    let output = command.output().map_err(|error| DevError::io(PART, error))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
        return Err(DevError::Start { part: PART, reason: format!("initdb failed: {reason}") });
    }
    Ok(())
}

fn launch(
    binaries: &Path,
    account: Option<Account>,
    folder: &Path,
    port: u16,
) -> Result<ManagedChild, DevError> {
    let log = File::create(log_file(folder)).map_err(|error| DevError::io(PART, error))?;
    let errors = log.try_clone().map_err(|error| DevError::io(PART, error))?;
    let mut command = server_command(binaries, "postgres", account, folder);
    command.arg("-D").arg(data_folder(folder)).arg("-p").arg(port.to_string());
    command.args(["-h", "127.0.0.1", "-k", "", "-F"]);
    for setting in
        ["full_page_writes=off", "synchronous_commit=off", "shared_buffers=32MB", "max_wal_size=64MB"]
    {
        command.arg("-c").arg(setting);
    }
    command.stdin(std::process::Stdio::null()).stdout(log).stderr(errors);
    // SIGQUIT is Postgres' immediate shutdown.
    let mut server = ManagedChild::spawn(PART, command, libc::SIGQUIT)?;
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if is_ready(folder) {
            return Ok(server);
        }
        let ended = server.exit_status()?;
        if ended.is_some() || Instant::now() > deadline {
            let reason = match ended {
                Some(status) => format!("it ended with {status}: {}", last_line(folder)),
                None => format!("not ready after {START_DEADLINE:?}: {}", last_line(folder)),
            };
            return Err(DevError::Start { part: PART, reason });
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn server_command(binaries: &Path, program: &str, account: Option<Account>, folder: &Path) -> Command {
    let mut command = Command::new(binaries.join(program));
    command.current_dir(folder);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    if let Some(Account { uid, gid }) = account {
        command.uid(uid).gid(gid);
    }
    command
}

/// The eighth line of `postmaster.pid` is the state that `pg_ctl` waits for.
fn is_ready(folder: &Path) -> bool {
    fs::read_to_string(data_folder(folder).join("postmaster.pid"))
        .is_ok_and(|state| state.lines().nth(7).is_some_and(|line| line.trim() == "ready"))
}

fn port_in_use(folder: &Path) -> bool {
    fs::read_to_string(log_file(folder)).is_ok_and(|log| log.contains("Address already in use"))
}

fn last_line(folder: &Path) -> String {
    let log = fs::read_to_string(log_file(folder)).unwrap_or_default();
    log.lines().last().unwrap_or("no log").to_owned()
}

fn data_folder(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("log")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::{Connection, PgConnection};

    #[tokio::test]
    async fn data_survives_a_restart_on_the_same_address() {
        let mut server = tokio::task::spawn_blocking(Postgres::start).await.unwrap().unwrap();
        let url = server.url();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("CREATE TABLE t AS SELECT 42 AS n").execute(&mut connection).await.unwrap();
        drop(connection);
        server.restart().unwrap();
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let (n,): (i32,) = sqlx::query_as("SELECT n FROM t").fetch_one(&mut connection).await.unwrap();
        assert_eq!(n, 42);
        let folder = server.folder.path().to_owned();
        drop(server);
        assert!(PgConnection::connect(&url).await.is_err());
        assert!(!folder.exists());
    }
}
