//! roc4mllm: an aesthetic score for every uploaded photo.

pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod fault;
pub mod fetch;
pub mod image;
pub mod inference;
pub mod kafka;
pub mod model;
pub mod object;
pub mod pipeline;
pub mod record;
pub mod report;
pub mod retry;
pub mod score;
pub mod score_command;
pub mod secret;
pub mod store;
pub mod telemetry;
pub mod worker;
