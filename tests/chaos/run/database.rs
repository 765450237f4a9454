//! The run's database.

use super::Run;
use anyhow::{Context, Result, anyhow};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use url::Url;

impl Run {
    /// Has the run use another server than the one all runs share; before the first worker.
    pub fn use_database(&mut self, server: &str) -> Result<()> {
        let name = self.database.rsplit('/').next().unwrap_or_default().to_owned();
        self.database = self.runtime.block_on(create(server, &name))?;
        self.postgres_url.clone_from(&self.database);
        Ok(())
    }

    /// Runs a statement in the run's database.
    pub fn sql(&self, statement: impl Into<String>) -> Result<()> {
        self.runtime.block_on(execute(&self.database, statement.into()))
    }
}

/// Makes a database; its address.
pub(super) async fn create(server: &str, name: &str) -> Result<String> {
    execute(server, format!("CREATE DATABASE {name}")).await?;
    let mut url = Url::parse(server)?;
    url.set_path(name);
    Ok(url.into())
}

pub(super) async fn execute(url: &str, statement: String) -> Result<()> {
    let mut connection = PgConnection::connect(url).await.context("Postgres")?;
    sqlx::raw_sql(AssertSqlSafe(statement.clone()))
        .execute(&mut connection)
        .await
        .map_err(|error| anyhow!("{statement}: {error}"))?;
    Ok(())
}
