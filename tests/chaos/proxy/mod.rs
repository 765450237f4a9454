//! Proxies between a worker and its servers, which a row opens, silences, cuts and lies through.

pub mod bodies;
pub mod frames;
mod gate;
pub mod tcp;

pub use gate::Mode;
