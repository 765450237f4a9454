//! Brings the schema up to date: files one after the other, each once, by one process at a time.

use crate::store::error::StoreError;
use crate::store::pool::Store;
use sqlx::migrate::{Migrate, MigrateError, Migration, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use std::borrow::Cow;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The number is nobody else's.
const LOCK: i64 = 7_095_321_847_265;
const LOCK_TRIED_EVERY: Duration = Duration::from_millis(50);
/// For the files that run in one transaction.
const DEADLINE: Duration = Duration::from_secs(300);
/// For a file that runs outside a transaction, such as an index on a large table, and for another process that
/// runs one.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Indexes whose building was interrupted. They cost writes, serve no query, and would pass for the index of
/// their name.
const INVALID_INDEXES: &str = "
SELECT class.relname::text, format('%I.%I', namespace.nspname, class.relname)
FROM pg_index index
JOIN pg_class class ON class.oid = index.indexrelid
JOIN pg_namespace namespace ON namespace.oid = class.relnamespace
WHERE NOT index.indisvalid AND namespace.nspname = ANY (current_schemas(false))";

impl Store {
    /// Brings the schema up to date. Any number of processes may do so at once: an advisory lock
    /// lets one work while the others wait. A schema newer than this release is left alone.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.apply(&sqlx::migrate!("./migrations")).await
    }

    async fn apply(&self, migrator: &Migrator) -> Result<(), StoreError> {
        // The lock has a connection of its own, in a transaction: behind a pgbouncer in transaction mode
        // nothing else stays on one server process.
        let mut locking = self.within(DEADLINE, self.connect_alone()).await?;
        let lock = self.within(PATIENCE, lock(&mut locking)).await?;
        let mut connection = self.within(DEADLINE, self.connect_alone()).await?;
        for files in migrator.migrations.chunk_by(|one, next| !one.no_tx && !next.no_tx) {
            match files {
                [file] if file.no_tx => {
                    self.within(PATIENCE, run_outside_transaction(&mut connection, file)).await?;
                }
                files => self.within(DEADLINE, run(&mut connection, files)).await?,
            }
        }
        let unlock = async {
            connection.close().await?;
            Ok(lock.commit().await?)
        };
        self.within(DEADLINE, unlock).await?;
        self.within(DEADLINE, async { Ok(locking.close().await?) }).await
    }

    async fn connect_alone(&self) -> Result<PgConnection, MigrateError> {
        Ok(PgConnection::connect_with(self.options()).await?)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, MigrateError>>,
    ) -> Result<T, StoreError> {
        match timeout(limit, work).await {
            Ok(result) => result.map_err(|error| StoreError::from_migration(self.server(), error)),
            Err(_) => Err(self.timed_out(limit)),
        }
    }
}

/// Waits until no other process migrates, and keeps it so until the transaction ends.
async fn lock(connection: &mut PgConnection) -> Result<sqlx::PgTransaction<'_>, MigrateError> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql("SET LOCAL idle_in_transaction_session_timeout = 0").execute(&mut *transaction).await?;
    // A statement that waits has a snapshot, and building an index concurrently waits for the end of every older
    // one: two processes would wait for each other.
    let try_lock = || sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").persistent(false).bind(LOCK);
    while !try_lock().fetch_one(&mut *transaction).await? {
        sleep(LOCK_TRIED_EVERY).await;
    }
    Ok(transaction)
}

/// Runs those of `files` that have not run yet, all or none.
async fn run(connection: &mut PgConnection, files: &[Migration]) -> Result<(), MigrateError> {
    let files = migrator_of(files);
    named(connection, async |connection| files.run(connection).await).await
}

/// Runs one file that cannot be in a transaction, unless it has run, and then notes that it has.
async fn run_outside_transaction(
    connection: &mut PgConnection,
    file: &Migration,
) -> Result<(), MigrateError> {
    let files = migrator_of(std::slice::from_ref(file));
    let has_run = named(connection, async |connection| {
        connection.ensure_migrations_table(&files.table_name).await?;
        let known = connection.list_applied_migrations(&files.table_name).await?;
        Ok(known.iter().any(|known| known.version == file.version))
    });
    if !has_run.await? {
        let of_this_file = |error| MigrateError::ExecuteMigration(error, file.version);
        drop_invalid_indexes(connection, file.sql.as_str()).await.map_err(of_this_file)?;
        sqlx::raw_sql(file.sql.clone()).execute(&mut *connection).await.map_err(of_this_file)?;
    }
    // Of a file that was noted before, this compares the checksum.
    named(connection, async |connection| files.skip(connection, None).await).await
}

/// The migrator names its statements, and the names would be in the way of whoever gets a pgbouncer's connection
/// next; in a transaction it stays the same one.
async fn named<T>(
    connection: &mut PgConnection,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, MigrateError>,
) -> Result<T, MigrateError> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql("DEALLOCATE ALL").execute(&mut *transaction).await?;
    let value = work(&mut transaction).await?;
    sqlx::raw_sql("DEALLOCATE ALL").execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(value)
}

fn migrator_of(files: &[Migration]) -> Migrator {
    Migrator {
        migrations: Cow::Owned(files.to_vec()),
        // Files before and behind these, and those of later releases.
        ignore_missing: true,
        locking: false,
        ..Migrator::DEFAULT
    }
}

/// Drops invalid indexes that `sql` names.
async fn drop_invalid_indexes(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    let query = sqlx::query_as(INVALID_INDEXES).persistent(false);
    let indexes: Vec<(String, String)> = query.fetch_all(&mut *connection).await?;
    for (_, index) in indexes.iter().filter(|(name, _)| names(sql, name)) {
        tracing::warn!("index {index} was left half built and is built anew");
        let statement = format!("DROP INDEX CONCURRENTLY IF EXISTS {index}");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await?;
    }
    Ok(())
}

fn names(sql: &str, name: &str) -> bool {
    sql.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == name)
}

#[cfg(all(test, feature = "dev"))]
mod tests;
