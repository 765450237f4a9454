//! The network: checkpoints, tokenizer, prompt, the model families, score head and decoding.
//!
//! Tensors live in this module and in [`crate::train`].

pub mod attention;
pub mod checkpoint;
pub mod config;
pub mod decode;
pub mod device;
pub mod error;
pub mod families;
pub mod family;
pub(crate) mod fields;
pub mod gpu;
pub mod kv_cache;
pub mod layers;
pub mod mplug_owl2;
pub mod onednn;
pub mod packing;
pub mod parameters;
pub mod passes;
pub mod pixels;
pub mod prompt;
pub mod quantize;
pub mod rope;
pub mod score_head;
pub mod scorer;
pub mod settings;
#[cfg(test)]
pub(crate) mod synthetic;
pub mod tokenizer;
pub mod transfer;

pub use error::ModelError;
pub use scorer::{TorchScorer, served_version};
pub use settings::ModelSettings;
