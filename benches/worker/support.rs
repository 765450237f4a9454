//! What the benchmarks share.

#[path = "../support/free.rs"]
pub mod free;
#[path = "../support/photo.rs"]
pub mod photo;
#[path = "../support/python.rs"]
pub mod python;
#[path = "../support/results.rs"]
pub mod results;
#[path = "../support/topics.rs"]
pub mod topics;
