//! The command lines of `redrive`, `republish` and `backfill-pg`.

use super::since::Since;
use crate::record::dead_letter::DeadLetterClass;
use clap::Args;

/// Put dead letters back to the topic they came from, at most three times each
///
/// A letter goes back with its original key, bytes and headers, and only the item it is about is
/// processed again. Whatever a filter leaves out stays for a later run. Exit codes: 0 done, 3 some
/// letters were refused, 2 usage or configuration, 69 Kafka does not answer.
#[derive(Args, Clone, Debug, Default)]
pub struct RedriveArgs {
    /// Only letters of this class: `rejected`, `dead` or `poison`
    #[arg(long)]
    pub class: Option<DeadLetterClass>,

    /// Only letters with this error code, such as `retry_exhausted`
    #[arg(long)]
    pub code: Option<String>,

    /// Only letters written since: `2026-11-23`, `2026-11-23T05:44:00Z`, or `90m`, `6h`, `7d` ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<Since>,

    /// At most so many letters
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,

    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Write the outputs that rows in Postgres have and the output topic lacks
///
/// Rows whose records the worker has not committed are left to it: it will emit them itself. Reads
/// the output topic first, and keeps 16 bytes of each output in memory, about 40 with the table
/// around them; `--since` bounds that. Exit codes: 0 done, 3 some rows were refused, 2 usage or
/// configuration, 69 Kafka or Postgres does not answer.
#[derive(Args, Clone, Debug, Default)]
pub struct RepublishArgs {
    /// Only rows scored since: `2026-11-23`, `2026-11-23T05:44:00Z`, or `90m`, `6h`, `7d` ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<Since>,

    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Write the rows that the output topic has and Postgres lacks
///
/// A row that exists is never changed, but that a score replaces an earlier failure. Exit codes: 0
/// done, 3 some outputs were refused, 2 usage or configuration, 69 Kafka or Postgres does not answer.
#[derive(Args, Clone, Debug, Default)]
pub struct RestoreRowsArgs {
    /// Only outputs written since: `2026-11-23`, `2026-11-23T05:44:00Z`, or `90m`, `6h`, `7d` ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<Since>,

    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}
