//! The reference's recorded outputs, reproduced: one module a family of golden files.
//!
//! The folder is `ROC4MLLM_GOLDEN`, or the copy under `tests/fixtures/golden`. Nothing about the given
//! set is fixed here: dimensions, prompts, ranges, names and counts all come from its files.

mod checkpoints;
mod prompts;
mod support;
mod tokenizer;
