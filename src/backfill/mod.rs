//! `roc4mllm backfill`: scores what was never announced, or announced before the model that is served.
//!
//! Objects are enumerated in key order ([`objects`]), from an S3 prefix or from the rows in Postgres,
//! and enqueued to `kafka.backfill_topic` at a rate ([`pacing`]). Workers read that topic only while no
//! upload waits. How far a backfill has come is a row in `backfills`, which moves on once a batch has
//! been acknowledged: a run that is killed repeats one batch at most, and misses none.

pub mod args;
pub mod error;
pub mod objects;
pub mod pacing;
mod progress;
mod run;

pub use args::BackfillArgs;
pub use error::BackfillError;
pub use run::{Summary, run};
