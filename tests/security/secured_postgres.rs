//! Postgres with TLS, and with roles of a test's own.

use super::certificates::Identity;
use roc4mllm::dev::Postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row as _};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
    time::{Duration, Instant},
};
use url::Url;

/// A server whose connections may be encrypted; its superuser is the embedded one's.
pub struct SecuredPostgres {
    server: Postgres,
}

impl SecuredPostgres {
    pub async fn start(identity: &Identity) -> Self {
        let server =
            tokio::task::spawn_blocking(Postgres::start).await.expect("a thread").expect("a Postgres");
        let mut connection = PgConnection::connect(&server.url()).await.expect("a connection");
        let row = sqlx::query("SHOW data_directory").fetch_one(&mut connection).await.expect("its folder");
        let folder: String = row.get(0);
        // The key has to be the server's own, and nobody else's to read.
        let owner = fs::metadata(&folder).expect("a folder");
        for (name, path) in [("server.crt", &identity.certificate), ("server.key", &identity.key)] {
            let file = Path::new(&folder).join(name);
            fs::copy(path, &file).expect("a file");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its permissions");
            chown(&file, Some(owner.uid()), Some(owner.gid())).expect("its owner");
        }
        sqlx::raw_sql("ALTER SYSTEM SET ssl = on").execute(&mut connection).await.expect("a setting");
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&mut connection).await.expect("a reload");
        let secured = Self { server };
        // The postmaster takes the setting a moment after it was asked to.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !secured.encrypts().await {
            assert!(Instant::now() < deadline, "Postgres does not encrypt");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        secured
    }

    async fn encrypts(&self) -> bool {
        let mut connection = PgConnection::connect(&self.server.url()).await.expect("a connection");
        let own = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        sqlx::query(own).fetch_one(&mut connection).await.expect("a row").get(0)
    }

    /// The superuser's address, with another host and further parameters.
    pub fn url(&self, host: &str, parameters: &str) -> String {
        let mut url = Url::parse(&self.server.url()).expect("an address");
        url.set_host(Some(host)).expect("a host");
        url.set_query(Some(parameters).filter(|parameters| !parameters.is_empty()));
        url.into()
    }

    /// Runs one statement as the superuser.
    pub async fn execute(&self, statement: &str) {
        let mut connection = PgConnection::connect(&self.server.url()).await.expect("a connection");
        let statement = AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement).execute(&mut connection).await.expect("a statement that works");
    }

    /// Whether every connection of this crate's is encrypted, and how many there are.
    pub async fn encrypted_connections(&self) -> (bool, i64) {
        let mut connection = PgConnection::connect(&self.server.url()).await.expect("a connection");
        let row = sqlx::query(
            "SELECT coalesce(bool_and(ssl), false), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
             WHERE application_name = 'roc4mllm'",
        );
        let row = row.fetch_one(&mut connection).await.expect("a row");
        (row.get(0), row.get(1))
    }

    /// Every value of the first column that `query` selects in `database`; none before there is a table.
    pub async fn texts_of(&self, database: &str, query: &str) -> Vec<String> {
        let mut url = Url::parse(&self.server.url()).expect("an address");
        url.set_path(database);
        let mut connection = PgConnection::connect(url.as_str()).await.expect("a connection");
        match sqlx::query(AssertSqlSafe(query.to_owned())).fetch_all(&mut connection).await {
            Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Vec::new(),
            Err(error) => panic!("{query}: {error}"),
        }
    }
}
