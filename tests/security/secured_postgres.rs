//! Postgres with TLS, and with roles of a test's own.

use super::certificates::Identity;
use roc4mllm::dev::Postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row as _};
use std::fs;
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
        // The server writes both files itself: the key has to be its own, and nobody else's to read.
        for (name, path) in [("server.crt", &identity.certificate), ("server.key", &identity.key)] {
            let content = fs::read_to_string(path).expect("a PEM file");
            let statement = format!(
                "COPY (SELECT unnest(string_to_array($pem${}$pem$, E'\\n'))) TO '{folder}/{name}'",
                content.trim_end()
            );
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.expect("a file");
        }
        sqlx::raw_sql("ALTER SYSTEM SET ssl = on").execute(&mut connection).await.expect("a setting");
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&mut connection).await.expect("a reload");
        let secured = Self { server };
        // The postmaster takes the setting a moment after it was asked to.
        while !secured.encrypts().await {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
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
