//! The network: checkpoints, tokenizer, prompt, the model families, score head and decoding.
//!
//! Tensors live in this module and nowhere else.

pub mod device;
pub mod error;
pub mod scorer;
pub mod settings;
