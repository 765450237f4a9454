//! Training.

pub mod lora;
pub mod metrics;
pub mod order;
pub mod random;
pub mod recompute;
pub mod schedule;
pub mod state;
