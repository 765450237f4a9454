//! Rows 26 and 27: a Postgres that dies, is full, is fought over, or sits behind pgbouncer.

use crate::outcome::letters;
use crate::proxy::tcp::TcpProxy;
use crate::row::{Broker, Row};
use crate::run::{Run, START};
use anyhow::{Context, Result, bail, ensure};
use roc4mllm::dev::{ManagedChild, Postgres};
use roc4mllm::failpoint::Rule;
use roc4mllm::object::{ObjectRef, ScoreId};
use roc4mllm::score::{ItemStatus, ModelVersion};
use roc4mllm::secret::Secret;
use roc4mllm::store::{PostgresSettings, ScoreRow, Store};
use sqlx::{Connection, PgConnection, Row as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use url::Url;

const ITEMS: usize = 500;
const PER_SECOND: f64 = 150.0;
/// How long a worker may take to see that Postgres is gone: the wait for a connection, twice, and some.
const NOTICED: Duration = Duration::from_secs(15);
/// The variant with the eight writers.
const WRITERS: u64 = 2;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new(26, "Postgres trouble", Broker::Apache, trouble)
            .variants(4)
            .short(&[1, 3])
            .notices_in(WRITERS, Rule::Sort),
        Row::new(27, "pgbouncer, transaction mode", Broker::Apache, pgbouncer).short(&[1]),
    ]
}

fn trouble(run: &mut Run) -> Result<()> {
    match run.variant() {
        0 => killed_at_commit(run),
        1 => restarted(run),
        WRITERS => writers(run),
        _ => full(run),
    }
}

/// One number out of the run's database.
fn number(run: &Run, statement: &'static str) -> Result<i64> {
    run.runtime.block_on(async {
        let mut connection = PgConnection::connect(&run.database).await?;
        let row = sqlx::query(statement).fetch_one(&mut connection).await?;
        Ok(row.try_get(0)?)
    })
}

/// Puts `body` in the way of every row's insertion or, if deferred, of the commit that holds it.
fn trigger(run: &Run, deferred: bool, body: &str) -> Result<()> {
    let statement = if deferred {
        "CREATE CONSTRAINT TRIGGER fault AFTER INSERT ON scores DEFERRABLE INITIALLY DEFERRED"
    } else {
        "CREATE TRIGGER fault BEFORE INSERT ON scores"
    };
    run.sql(format!(
        "CREATE SEQUENCE fault_count;
         CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;
         {statement} FOR EACH ROW EXECUTE FUNCTION fault()"
    ))
}

fn address(url: &str) -> Result<(Url, SocketAddr)> {
    let url = Url::parse(url)?;
    let port = url.port().context("the database's address has no port")?;
    Ok((url, SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

/// The server's process ends just as a batch is committed, and connections are cut on their way, so
/// that nobody knows whether a batch that was sent is there.
fn killed_at_commit(run: &mut Run) -> Result<()> {
    run.describe("Postgres backend killed at COMMIT");
    let (mut url, server) = address(&run.database)?;
    let proxy = TcpProxy::start(server)?;
    ensure!(url.set_port(Some(proxy.address().port())).is_ok(), "{url} takes no port");
    run.postgres_url = url.into();
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    // A sequence keeps its value through what is rolled back. A large batch would be hit nearly every
    // time, so there is an end to it.
    trigger(
        run,
        true,
        "IF random() < 0.02 AND (SELECT last_value FROM fault_count) < 8 THEN
             PERFORM nextval('fault_count'); PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1);
         END IF;",
    )?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item / 2, START)?;
    let (mut cuts, deadline) = (0, Instant::now() + START);
    while run.tail.items() < run.at_item || cuts < 10 {
        ensure!(Instant::now() < deadline, "{} of {} items are committed", run.tail.items(), run.at_item);
        thread::sleep(Duration::from_millis(40 + run.random.below(120) as u64));
        proxy.cut();
        cuts += 1;
    }
    flow.join()?;
    run.sql("DROP TRIGGER fault ON scores")?;
    run.heal();
    run.settle()?;
    let killed =
        number(run, "SELECT last_value FROM fault_count WHERE is_called UNION ALL SELECT 0 LIMIT 1")?;
    run.at_least("backends killed at COMMIT", killed as f64, 1.0);
    run.at_least("connections cut", cuts as f64, 1.0);
    run.fired(usize::try_from(killed)? + cuts);
    run.rows_are_ids()
}

/// A server of the run's own goes away for some seconds and comes back.
fn restarted(run: &mut Run) -> Result<()> {
    run.describe("Postgres restarts");
    let mut server = Postgres::start()?;
    run.use_database(&server.url())?;
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    server.stop()?;
    run.fired(1);
    // A connection is waited for up to `postgres.connect_timeout_ms`, and twenty failures are what counts.
    let deadline = Instant::now() + NOTICED;
    while worker.is_ready() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    // What was stored before may still be committed.
    thread::sleep(Duration::from_secs(3));
    let before = run.tail.items();
    thread::sleep(Duration::from_secs(3));
    run.equal("outputs committed without Postgres", run.tail.items() - before, 0);
    run.equal("ready without Postgres", worker.is_ready(), false);
    run.equal("alive without Postgres", worker.is_alive(), true);
    server.restart()?;
    run.heal();
    flow.join()?;
    run.settle_running()?;
    worker.wait_ready(START)?;
    let evidence = run.settle()?;
    run.equal("dead letters with class dead", letters(&evidence, "dead"), 0);
    run.rows_are_ids()
}

/// Eight writers with the same ids, each in an order of its own, beside the worker.
fn writers(run: &mut Run) -> Result<()> {
    run.describe("eight writers of the same rows");
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    // Rows of a schema of their own, so that the oracle counts the worker's alone.
    run.sql("CREATE SCHEMA contended; CREATE TABLE contended.scores (LIKE public.scores INCLUDING ALL)")?;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let before = number(run, deadlocks)?;
    let mut url = Url::parse(&run.database)?;
    url.query_pairs_mut().append_pair("options", "-csearch_path=contended");
    // The failpoint takes the rule from every worker of the run; these writers live in this process.
    if run.breaks(Rule::Sort) {
        fail::cfg(Rule::Sort.failpoint(), "return").map_err(|reason| anyhow::anyhow!(reason))?;
    }
    let written = contend(url.as_str(), run.random.next());
    fail::remove(Rule::Sort.failpoint());
    let written = written?;
    flow.join()?;
    run.heal();
    run.settle()?;
    // Backends report what they counted when they end, a moment later.
    thread::sleep(Duration::from_secs(1));
    run.fired(written);
    run.equal("deadlocks", number(run, deadlocks)? - before, 0);
    let rows = number(run, "SELECT count(*) FROM contended.scores")?;
    run.equal("rows of the eight writers", rows, CONTENDED_ROWS);
    run.rows_are_ids()
}

const CONTENDED_ROWS: usize = 300;
const ROUNDS: usize = 40;
/// Far more than writers need that take their turns.
const CONTENTION: Duration = Duration::from_secs(30);

/// Batches written by all eight writers together.
fn contend(url: &str, seed: u64) -> Result<usize> {
    let threads: Vec<_> = (0..8_u64)
        .map(|writer| {
            let settings =
                PostgresSettings { url: Secret::from(url), pool_size: 1, ..PostgresSettings::default() };
            thread::spawn(move || -> Result<usize> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let mut random = crate::random::Random::new(seed ^ writer << 40);
                runtime.block_on(async {
                    let store = Store::connect(&settings).await?;
                    let deadline = Instant::now() + CONTENTION;
                    for round in 0..ROUNDS {
                        let mut rows: Vec<ScoreRow> = (0..CONTENDED_ROWS).map(contended_row).collect();
                        for index in (1..rows.len()).rev() {
                            rows.swap(index, random.below(index + 1));
                        }
                        // A removal touches rows that exist, so every batch locks all of them.
                        while let Err(error) = store.upsert(&rows).await {
                            ensure!(error.disposition() == roc4mllm::fault::Disposition::Retry, "{error}");
                            // Writers that deadlock come to no end; the count of deadlocks says why.
                            if Instant::now() > deadline {
                                return Ok(round);
                            }
                        }
                    }
                    Ok(ROUNDS)
                })
            })
        })
        .collect();
    let mut written = 0;
    for thread in threads {
        written += thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    }
    Ok(written)
}

fn contended_row(number: usize) -> ScoreRow {
    let model = ModelVersion { model: "none".into(), version: "none".into(), preprocess_revision: 0 };
    let object = ObjectRef::new("contended", format!("{number}.png"));
    let id = ScoreId::derive(&object, &model);
    ScoreRow::unscored(id, Some(object), &model, ItemStatus::Gone, None, None)
}

/// The disk is full for a while, as far as Postgres is concerned.
fn full(run: &mut Run) -> Result<()> {
    run.describe("Postgres' disk is full");
    let setup = run.worker("a");
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    trigger(
        run,
        false,
        "IF EXISTS (SELECT FROM disk WHERE full_up) THEN
             PERFORM nextval('fault_count');
             RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
         END IF;",
    )?;
    run.sql("CREATE TABLE disk (full_up boolean); INSERT INTO disk VALUES (false)")?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    run.sql("UPDATE disk SET full_up = true")?;
    thread::sleep(Duration::from_secs(3));
    let before = run.tail.items();
    thread::sleep(Duration::from_secs(4));
    run.equal("outputs committed with a full disk", run.tail.items() - before, 0);
    run.equal("alive with a full disk", worker.is_alive(), true);
    run.sql("UPDATE disk SET full_up = false")?;
    run.heal();
    flow.join()?;
    let evidence = run.settle()?;
    let refused =
        number(run, "SELECT last_value FROM fault_count WHERE is_called UNION ALL SELECT 0 LIMIT 1")?;
    run.fired(usize::try_from(refused)?);
    run.equal("dead letters with class dead", letters(&evidence, "dead"), 0);
    run.rows_are_ids()
}

/// The worker and another one through a pgbouncer that gives every transaction another connection.
fn pgbouncer(run: &mut Run) -> Result<()> {
    let (url, server) = address(&run.database)?;
    let (bouncer, port) = start_pgbouncer(run, &url, server)?;
    let mut through = url;
    ensure!(through.set_port(Some(port)).is_ok(), "{through} takes no port");
    run.postgres_url = through.into();
    let setup = run.worker("a");
    run.spawn(setup)?.wait_ready(START)?;
    let flow = run.loader.flow(ITEMS, run.seed, PER_SECOND);
    run.tail.wait_items(run.at_item, START)?;
    let setup = run.worker("b");
    run.spawn(setup)?.wait_ready(START)?;
    flow.join()?;
    run.heal();
    run.settle()?;
    let log = std::fs::read_to_string(run.folder.join("pgbouncer.log")).unwrap_or_default();
    let logins = log.lines().filter(|line| line.contains("login attempt")).count();
    run.at_least("connections of workers to pgbouncer", logins as f64, 2.0);
    run.fired(logins);
    drop(bouncer);
    run.rows_are_ids()
}

fn start_pgbouncer(run: &Run, url: &Url, server: SocketAddr) -> Result<(ManagedChild, u16)> {
    let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
        .map(PathBuf::from)
        .into_iter()
        .find(|program| program.is_file())
        .context("no pgbouncer; run `make setup`, or install your system's pgbouncer")?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let folder = tempfile::Builder::new().prefix("pgbouncer").tempdir()?.keep();
    let config = folder.join("pgbouncer.ini");
    std::fs::write(
        &config,
        format!(
            "[databases]\n* = host=127.0.0.1 port={} user={} password={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 3\nlog_connections = 1\n",
            server.port(),
            url.username(),
            url.password().unwrap_or_default(),
        ),
    )?;
    let log = std::fs::File::create(run.folder.join("pgbouncer.log"))?;
    let mut command = Command::new(program);
    // SAFETY: geteuid(2) cannot fail and touches no memory.
    if unsafe { libc::geteuid() } == 0 {
        // It refuses to stay root.
        command.args(["-u", "nobody"]);
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&folder, readable)?;
    }
    command.arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let bouncer = ManagedChild::spawn("pgbouncer", command, libc::SIGKILL)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if Instant::now() > deadline {
            bail!("pgbouncer does not listen; see pgbouncer.log");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok((bouncer, port))
}
