//! The Kafka side of the worker: records in, and outputs with the offsets that cover them out.
//!
//! [`connect`] starts three threads. The *poll thread* owns the consumer and only polls: it hands
//! records to a bounded channel and pauses partitions when that is full. The *lookup thread* reads
//! what the group committed for newly assigned partitions, which can wait for another member's
//! transaction to end, and measures lag. The *committer* produces outputs and commits offsets in
//! cycles. They and the pipeline meet in the [`Ledger`].
//!
//! The pipeline does this with each [`ConsumedRecord`]: parse it, [`Ledger::expect`] its number of
//! items, [`Ledger::start`] before work on one begins, and [`Ledger::complete`] each with its output
//! (and perhaps a dead letter) once its row is stored.
//!
//! ```no_run
//! # async fn example(settings: roc4mllm::kafka::KafkaSettings) -> Result<(), roc4mllm::kafka::Error> {
//! use roc4mllm::record::input;
//!
//! let mut kafka = roc4mllm::kafka::connect(&settings)?;
//! while let Some(record) = kafka.records.recv().await {
//!     let parsed = input::parse(record.payload.as_deref(), &record.headers, &[]);
//!     kafka.ledger.expect(&record.receipt, parsed.to_process().count() as u32);
//!     for item in parsed.to_process() {
//!         if kafka.ledger.start(&record.receipt) {
//!             // … look up, fetch, decode, score, store, and then:
//!             kafka.ledger.complete(&record.receipt, item.index, vec![]);
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Why it is built like this: brokers fence commits by group generation and not by partition, so a
//! member can commit a partition that it has just lost (hence epochs, in [`receipt`]); a transaction
//! whose end got no answer may still be decided by a late copy of the request (hence the producer is
//! replaced and the committed offsets are read, in [`committer`]); and a thread that blocks between
//! polls loses its partitions (hence one that only polls, in [`source`]). A record that
//! kills its process would be read again for ever (hence holdings are counted before any record is handed
//! out, in [`crash_loop`], and [`Ledger::is_suspect`] says what to keep away from this process).

pub mod admin;
mod at_least_once;
pub mod batch_writer;
mod client;
pub mod committer;
pub mod config;
mod connection;
pub mod crash_loop;
mod decision;
mod error;
pub mod gate;
pub mod ledger;
mod lookup;
mod native;
pub mod offsets;
mod outbox;
mod priority;
pub mod producer;
pub mod reader;
mod rebalance;
pub mod receipt;
mod settlement;
pub mod source;
mod stall;
pub mod stats;
mod transaction;
mod transactional;
#[cfg(test)]
mod walk;

pub use config::{Delivery, KafkaSettings};
pub use connection::{Connection, Control, Drained, connect};
pub use error::{Error, Fatal};
pub use gate::Gate;
pub use ledger::{Ledger, Progress, StagedRecord, Witness};
pub use receipt::{ConsumedRecord, Epoch, Receipt, TopicPartition};
pub use stall::Stalled;
pub use stats::{Backlog, KafkaStats};
