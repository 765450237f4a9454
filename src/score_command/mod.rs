//! `roc4mllm score`: files, folders and S3 prefixes, scored without any service.
//!
//! Inputs are listed first ([`inputs`]), then read and scored with a bounded number under way, and
//! written in the order of the list ([`output`]), however long one of them takes.

pub mod args;
pub mod error;
pub mod inputs;
pub mod output;
pub mod progress;
pub mod reading;
pub mod record;
mod run;
pub mod scoring;

pub use args::ScoreArgs;
pub use error::ScoreCommandError;
pub use run::{Summary, run};
