//! `roc4mllm retrain` as a process, against a real Postgres and an S3 server, with a tiny network.

mod crash;
mod lease;
mod runs;
mod site;
mod trial;
