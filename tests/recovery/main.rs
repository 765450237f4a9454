//! The operator's commands as processes, against a real Apache Kafka, an S3 server and Postgres, with
//! the real worker doing the scoring.

mod backfill;
mod redrive;
mod restore;
mod stack;
