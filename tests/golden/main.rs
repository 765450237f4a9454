//! The reference's recorded outputs, reproduced: one module a family of golden files.
//!
//! The folder is `ROC4MLLM_GOLDEN`, or the copy under `tests/fixtures/golden`. Nothing about the given
//! set is fixed here: dimensions, prompts, ranges, names and counts all come from its files.

mod checkpoints;
mod decoded;
mod generate;
mod images;
mod language;
mod network;
mod pixels;
mod prompts;
mod raw;
mod support;
mod tokenizer;
mod train_batch;
mod train_command;
mod train_encode;
mod train_loss;
mod train_steps;
mod train_vocabulary;
mod training;
mod vision;
