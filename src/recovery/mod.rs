//! Commands that mend what a fault outside the worker has torn apart.
//!
//! - [`redrive`]: dead letters back to the topic they came from, each exactly once.
//! - [`republish`]: outputs for rows that have none, after Kafka lost some.
//! - [`restore_rows`] (`backfill-pg`): rows for outputs that have none, after Postgres lost some.
//!
//! Each may be killed at any point and run again: what was done is read from Kafka and Postgres
//! themselves, and a run that finds nothing to do changes nothing.

pub mod args;
pub mod error;
pub mod pending;
pub mod redrive;
pub mod report;
pub mod republish;
pub mod restore_rows;
pub mod since;

pub use args::{RedriveArgs, RepublishArgs, RestoreRowsArgs};
pub use error::RecoveryError;
pub use report::Report;
pub use since::Since;
