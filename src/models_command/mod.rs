//! `roc4mllm models`: what is published and registered, and which version serves.

mod args;
mod error;
mod output;
mod run;

pub use args::{Format, ModelsCommand, PublishArgs, Shown};
pub use error::ModelsError;
pub use run::{Done, run};
