//! `roc4mllm evaluate`: how well a checkpoint predicts the labels of a file, alone or against another one.
//!
//! [`labelled`] reads the file, [`run`] scores its photos as `score` does and measures what comes out
//! ([`evaluate`](crate::evaluate)), [`output`] prints it.

pub mod args;
pub mod error;
pub mod labelled;
pub mod output;
mod run;

pub use args::EvaluateArgs;
pub use error::EvaluateCommandError;
pub use run::{Summary, run};
