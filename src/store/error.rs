//! Postgres' errors, sorted by what the caller does next.

use crate::fault::Disposition;
use sqlx::migrate::MigrateError;

/// Why the store did not do what it was asked. `server` is `host:port/database`, never a password.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The settings make no sense.
    #[error("postgres: {reason}; check section [postgres] of the configuration")]
    Configuration { reason: String },
    /// Nothing answers, or the connection broke.
    #[error("postgres at {server} is unreachable: {reason}; check that it runs and postgres.url")]
    Unreachable { server: String, reason: String },
    /// Its certificate is not signed by an authority that is trusted, or names another host; or it has none.
    #[error(
        "postgres at {server}: no trusted connection: {reason}; give the server's authority in \
         postgres.tls_ca_file, and use a host name that its certificate has in postgres.url"
    )]
    Untrusted { server: String, reason: String },
    /// It answered nothing in time; what it did meanwhile is unknown.
    #[error(
        "postgres at {server} gave no answer within {after_ms} ms; it is overloaded or the network is down"
    )]
    TimedOut { server: String, after_ms: u64 },
    /// It answered with an error.
    #[error("postgres at {server} refused: {reason} (SQLSTATE {code}){}", remedy(code))]
    Refused { server: String, code: String, reason: String },
    /// A row cannot be read by this release.
    #[error("postgres at {server} holds a row that this release cannot read: {reason}; upgrade the worker")]
    Unreadable { server: String, reason: String },
    /// The schema could not be brought up to date.
    #[error("postgres at {server}: migration failed: {reason}; see migrations/README.md")]
    Migration { server: String, reason: String },
}

impl StoreError {
    pub(super) fn from_sqlx(server: &str, error: sqlx::Error) -> Self {
        let server = server.to_owned();
        match error {
            sqlx::Error::Database(error) => Self::Refused {
                server,
                code: error.code().map_or_else(|| "XX000".to_owned(), |code| code.into_owned()),
                reason: error.message().to_owned(),
            },
            sqlx::Error::Tls(error) => Self::Untrusted { server, reason: error.to_string() },
            sqlx::Error::Io(error) if is_about_trust(&error) => {
                Self::Untrusted { server, reason: error.to_string() }
            }
            sqlx::Error::Configuration(error) => Self::Configuration { reason: error.to_string() },
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
                Self::Unreadable { server, reason: error.to_string() }
            }
            other => Self::Unreachable { server, reason: other.to_string() },
        }
    }

    pub(super) fn from_migration(server: &str, error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) => Self::from_sqlx(server, error),
            other => Self::Migration { server: server.to_owned(), reason: other.to_string() },
        }
    }

    /// Whether transactions were in each other's way: the server itself is well.
    pub fn is_contention(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if matches!(code.as_str(), "40001" | "40P01" | "55P03"))
    }

    /// By SQLSTATE class (PostgreSQL documentation, appendix A).
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Configuration { .. } | Self::Migration { .. } => Disposition::Stop,
            Self::Unreachable { .. } | Self::Untrusted { .. } | Self::Unreadable { .. } => Disposition::Hold,
            Self::TimedOut { .. } => Disposition::Retry,
            Self::Refused { code, .. } => disposition(code),
        }
    }
}

fn is_about_trust(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    inner.is_some_and(|inner| matches!(inner, rustls::Error::InvalidCertificate(_)))
}

fn disposition(code: &str) -> Disposition {
    match code {
        // Serialization failure, deadlock, lock timeout, statement timeout.
        "40001" | "40P01" | "55P03" | "57014" => Disposition::Retry,
        // Shutting down, crashed, starting up.
        "57P01" | "57P02" | "57P03" => Disposition::Retry,
        _ => match code.get(..2).unwrap_or_default() {
            // Connection, and resources such as disk, memory and connection slots.
            "08" | "53" => Disposition::Retry,
            // Data, constraint, and limits such as an index row's size: this row's own fault.
            "22" | "23" | "54" => Disposition::Reject,
            // Everything else is a matter of accounts, schema or server: not the item's fault.
            _ => Disposition::Hold,
        },
    }
}

fn remedy(code: &str) -> &'static str {
    match code {
        "42P01" | "42703" | "3F000" => "; run `roc4mllm migrate`",
        "28P01" | "28000" => "; check user and password in postgres.url",
        "3D000" => "; create the database or correct postgres.url",
        "42501" => "; grant the user the tables and sequences of the schema",
        "25006" => "; postgres.url points at a read-only replica",
        "53300" => "; raise max_connections or lower postgres.pool_size",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_disposition() {
        for code in ["08006", "40001", "40P01", "53100", "53300", "57P01", "57P02", "57P03", "55P03"] {
            assert_eq!(disposition(code), Disposition::Retry, "{code}");
        }
        for code in ["22021", "22P05", "23514", "54000"] {
            assert_eq!(disposition(code), Disposition::Reject, "{code}");
        }
        for code in ["28P01", "42P01", "3D000", "25006", "58030", "XX000", ""] {
            assert_eq!(disposition(code), Disposition::Hold, "{code}");
        }
    }
}
