//! Versions of the model, for real: an S3 server, Postgres, and the binary.

mod bucket;
mod checkpoints;
mod commands;
mod download;
mod publish;
mod store;
