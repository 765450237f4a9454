//! What the reference implementation computed, compared file by file.
//!
//! `ROC4MLLM_GOLDEN` names another folder of the same layout. Every dimension, name and expected
//! number comes from the folder's files.

mod decoded;
mod images;
mod pixels;
mod support;
