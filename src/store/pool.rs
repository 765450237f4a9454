//! Connections to Postgres, each use of them bounded in time.

use crate::secret::Secret;
use crate::store::error::StoreError;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{AssertSqlSafe, Connection, Postgres, Transaction};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tokio::time::timeout;
use url::Url;

/// Beyond the server's own statement timeout, so that its error arrives first.
const GRACE: Duration = Duration::from_secs(2);

/// Configuration section `postgres`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresSettings {
    /// `postgres://user:password@host:port/database`, with `?sslmode=verify-full` and so on.
    pub url: Secret,
    /// A PEM file of certificate authorities to trust beside the public ones. Where it is given and `url`
    /// has no `sslmode`, that is `verify-full`.
    pub tls_ca_file: Option<PathBuf>,
    /// Connections at most.
    pub pool_size: u32,
    /// For a connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// For one statement, in milliseconds.
    pub statement_timeout_ms: u64,
    /// For a row lock, in milliseconds.
    pub lock_timeout_ms: u64,
    /// Rows written in one transaction at most.
    pub batch_rows: usize,
    /// How long a row waits for company, in milliseconds.
    pub batch_linger_ms: u64,
    /// Whether the worker brings the schema up to date when it starts.
    pub migrate_at_start: bool,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            tls_ca_file: None,
            pool_size: 4,
            connect_timeout_ms: 5_000,
            statement_timeout_ms: 10_000,
            lock_timeout_ms: 5_000,
            batch_rows: 500,
            batch_linger_ms: 50,
            migrate_at_start: true,
        }
    }
}

impl PostgresSettings {
    fn connect_options(&self) -> Result<PgConnectOptions, StoreError> {
        if self.url.is_empty() {
            return Err(StoreError::Configuration { reason: "postgres.url is not set".to_owned() });
        }
        // The parser's message may quote the address, and the address has the password.
        let invalid = || StoreError::Configuration {
            reason: "postgres.url is no address of the form postgres://user:password@host:port/database"
                .to_owned(),
        };
        let options = PgConnectOptions::from_str(self.url.expose()).map_err(|_| invalid())?;
        let options = match &self.tls_ca_file {
            Some(file) => options.ssl_root_cert(file),
            None => options,
        };
        let options = self.verified(options)?;
        // With no named statements, no start-up parameters and every statement in a transaction,
        // pgbouncer may hand each transaction to another server process.
        Ok(options.application_name("roc4mllm").statement_cache_capacity(0).extra_float_digits(None))
    }

    /// Whoever names an authority means it to be checked, which Postgres' default mode does not do.
    fn verified(&self, options: PgConnectOptions) -> Result<PgConnectOptions, StoreError> {
        let url = Url::parse(self.url.expose()).ok();
        let has = |names: &[&str]| {
            url.as_ref().is_some_and(|url| url.query_pairs().any(|(name, _)| names.contains(&&*name)))
        };
        let authority = self.tls_ca_file.is_some() || has(&["sslrootcert", "ssl-root-cert", "ssl-ca"]);
        if !authority || matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull) {
            return Ok(options);
        }
        if has(&["sslmode", "ssl-mode"]) || !matches!(options.get_ssl_mode(), PgSslMode::Prefer) {
            let reason = "a certificate authority is given, but sslmode checks no certificate; write \
                          sslmode=verify-full in postgres.url, or take the authority out";
            return Err(StoreError::Configuration { reason: reason.to_owned() });
        }
        Ok(options.ssl_mode(PgSslMode::VerifyFull))
    }

    /// `host:port/database`, for messages; never the user or the password.
    pub fn server(&self) -> String {
        self.connect_options().map_or_else(|_| "(no address)".to_owned(), |options| describe(&options))
    }
}

fn describe(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => options.get_host().to_owned(),
    };
    format!("{host}:{}/{}", options.get_port(), options.get_database().unwrap_or("(the user's)"))
}

/// The table of scores. Cheap to clone; clones share one pool of connections.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    options: PgConnectOptions,
    server: String,
    begin: String,
    connect_timeout: Duration,
    answer_timeout: Duration,
}

impl fmt::Debug for Store {
    // The options have the password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Store").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Store {
    /// Connects, or says within `connect_timeout_ms` why not and to which server.
    pub async fn connect(settings: &PostgresSettings) -> Result<Self, StoreError> {
        let store = Self::lazy(settings)?;
        store.probe().await?;
        Ok(store)
    }

    /// Connects when first used, for callers that wait for Postgres themselves.
    pub fn lazy(settings: &PostgresSettings) -> Result<Self, StoreError> {
        let options = settings.connect_options()?;
        let connect_timeout = Duration::from_millis(settings.connect_timeout_ms);
        let pool = PgPoolOptions::new()
            .max_connections(settings.pool_size.max(1))
            .acquire_timeout(connect_timeout)
            .connect_lazy_with(options.clone());
        let statement = settings.statement_timeout_ms;
        Ok(Self {
            pool,
            server: describe(&options),
            options,
            // Session-wide settings would leak to other clients of a pgbouncer.
            begin: format!(
                "BEGIN; SET LOCAL statement_timeout = {statement}; SET LOCAL lock_timeout = {}",
                settings.lock_timeout_ms
            ),
            connect_timeout,
            answer_timeout: Duration::from_millis(statement) + GRACE,
        })
    }

    /// `host:port/database`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether Postgres answers, on a connection of its own: a pool hides why it cannot connect.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let probe = async {
            let mut connection = PgConnection::connect_with(&self.options).await?;
            connection.ping().await?;
            connection.close().await
        };
        match timeout(self.connect_timeout, probe).await {
            Ok(result) => result.map_err(|error| self.error(error)),
            Err(_) => {
                let reason = format!("no connection within {} ms", self.connect_timeout.as_millis());
                Err(StoreError::Unreachable { server: self.server.clone(), reason })
            }
        }
    }

    /// For connections that are not the pool's.
    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Closes the pool once its connections are idle.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Runs `work` in one transaction under the configured timeouts. If the server falls silent,
    /// the connection is dropped rather than reused.
    pub(super) async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(&mut Transaction<'_, Postgres>) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(|error| self.error(error))?;
        let run = async {
            let mut transaction = connection.begin_with(AssertSqlSafe(self.begin.clone())).await?;
            let value = work(&mut transaction).await?;
            transaction.commit().await?;
            Ok(value)
        };
        match timeout(self.answer_timeout, run).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.error(error)),
            Err(_) => {
                drop(connection.detach());
                Err(self.timed_out(self.answer_timeout))
            }
        }
    }

    fn error(&self, error: sqlx::Error) -> StoreError {
        StoreError::from_sqlx(&self.server, error)
    }

    pub(super) fn timed_out(&self, after: Duration) -> StoreError {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        StoreError::TimedOut { server: self.server.clone(), after_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_server_and_not_the_password() {
        let url = Secret::from("postgres://me:hunter2@db.example:6432/photos");
        let settings = PostgresSettings { url, ..PostgresSettings::default() };
        assert_eq!(settings.server(), "db.example:6432/photos");
        assert!(!format!("{settings:?}").contains("hunter2"));
        let url = Secret::from("postgres://me:hunter2@db:port/x y");
        let error = PostgresSettings { url, ..PostgresSettings::default() }.connect_options().unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_store_shows_no_password() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _context = runtime.enter();
        let url = Secret::from("postgres://me:hunter2@db.example:6432/photos");
        let store = Store::lazy(&PostgresSettings { url, ..PostgresSettings::default() }).unwrap();
        let shown = format!("{store:?}");
        assert!(shown.contains("db.example") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn an_authority_is_checked() {
        let mode = |url: &str, file: Option<&str>| {
            let settings = PostgresSettings {
                url: Secret::from(url),
                tls_ca_file: file.map(PathBuf::from),
                ..PostgresSettings::default()
            };
            settings.connect_options().map(|options| options.get_ssl_mode())
        };
        let address = "postgres://me:hunter2@db/x";
        assert!(matches!(mode(address, None), Ok(PgSslMode::Prefer)));
        assert!(matches!(mode(address, Some("ca.pem")), Ok(PgSslMode::VerifyFull)));
        let by_address = format!("{address}?sslrootcert=ca.pem");
        assert!(matches!(mode(&by_address, None), Ok(PgSslMode::VerifyFull)));
        let weaker = format!("{address}?sslmode=verify-ca");
        assert!(matches!(mode(&weaker, Some("ca.pem")), Ok(PgSslMode::VerifyCa)));
        for unchecked in ["prefer", "require", "disable"] {
            let error = mode(&format!("{address}?sslmode={unchecked}"), Some("ca.pem")).unwrap_err();
            assert!(error.to_string().contains("verify-full"), "{error}");
        }
    }

    #[test]
    fn a_missing_address_is_an_error() {
        let error = PostgresSettings::default().connect_options().unwrap_err();
        assert!(error.to_string().contains("postgres.url"), "{error}");
    }
}
