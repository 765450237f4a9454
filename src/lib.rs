//! roc4mllm: an aesthetic score for every uploaded photo, never missing one, never scoring one twice.
//!
//! # The way of a record
//!
//! ```text
//! Kafka ──▶ kafka::source ──▶ record::input ──▶ pipeline ──────────────────────────────┐
//!           poll thread        bytes → items     a task an item, bounded by permits      │
//!                                                  │                                     │
//!                     store::scores.lookup ◀───────┤  a scored row? skip S3 and model    │
//!                     fetch                ◀───────┤  pinned, capped S3 read             │
//!                     inference            ◀───────┤  decode threads → model thread      │
//!                     store::writer        ◀───────┘  first score wins                   │
//!                                                                                        ▼
//! Kafka ◀── kafka::committer ◀── kafka::ledger ◀── record::{output, dead_letter} ◀── outcome
//!           {outputs, dead letters, offsets} in one transaction
//! ```
//!
//! A record becomes [`kafka::ConsumedRecord`], then [`record::input`] items naming an
//! [`object::ObjectRef`]; [`fetch`] turns that into bytes, [`inference::ScoringService`] decodes them
//! into leased slots of pixel values and has the model thread answer in batches; the answer becomes a
//! row ([`store`]), and only once that row is durable the output is staged in the [`kafka::Ledger`],
//! from which the committer's thread writes outputs and the offsets that cover them together.
//! [`pipeline`] is the one place that joins these stages; [`worker`] starts, drains and stops them.
//! `roc4mllm score` ([`score_command`]) uses the same [`inference`] path without any service.
//! What people say of photos comes back through [`retrain`]: labels in, a proven better model out, which
//! workers switch to.
//!
//! # What is promised
//!
//! Every item of every record gets one terminal outcome, one row per [`object::ScoreId`], and, with
//! `kafka.delivery = "transactional"`, exactly one output visible to `read_committed` readers. A crash
//! at any point is a replay: rows are idempotent, the first stored score wins, and outputs carry the
//! stored score, so table and topic cannot disagree.
//!
//! # Where things live
//!
//! - [`model`]: the ROC4MLLM network and everything read from a checkpoint folder; tensors live here and in
//!   [`train`], which makes one checkpoint of another.
//! - [`inference`]: batches and threads around a [`inference::Scorer`], knowing neither Kafka nor tensors.
//! - [`serving`]: which model scores which object, and how one takes the place of another under load.
//! - [`evaluate`]: how well a model predicts labels, and whether another may follow it; pure.
//! - [`retrain`]: the job that joins [`store`], [`fetch`], [`split`], [`train`], [`evaluate`] and [`registry`].
//! - [`split`]: which photos are learned from and which judged by, near-duplicates on one side; pure.
//! - [`quarantine`]: images that may have killed a process, decoded and scored in another one.
//! - [`image`]: encoded bytes to pixel values, bit-equal with the reference; no tensors, no async.
//! - [`kafka`], [`fetch`], [`store`]: one outside system each, ignorant of the others.
//! - [`registry`]: versions of the model, from S3 to a folder on this machine.
//! - [`record`]: the formats on the wire, pure.
//! - [`labels`]: what people said of photos, in every format that it comes in; pure.
//! - [`plan`]: what an image costs and what a device makes of it, by arithmetic alone.
//! - [`object`], [`score`], [`fault`], [`secret`], [`retry`]: the words all of them share.
//! - [`config`], [`telemetry`], [`http`]: what an operator sees; [`page`] in a browser.
//! - [`scoring_api`]: one image over HTTP, past Kafka and Postgres.
//! - [`heap`]: the C library's allocator, held close to what is in use.
//! - [`failpoint`]: where the fault tests make a process die on purpose; nothing outside them.
//! - `dev` (feature `dev`): the embedded Kafka, S3 and Postgres of the demo and the tests.

pub mod backfill;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod evaluate;
pub mod evaluate_command;
pub mod failpoint;
pub mod fault;
pub mod fetch;
pub mod heap;
pub mod http;
pub mod image;
pub mod inference;
pub mod kafka;
pub mod labels;
pub mod labels_command;
pub mod model;
pub mod models_command;
pub mod object;
pub mod page;
pub mod pipeline;
pub mod plan;
pub mod quarantine;
pub mod record;
pub mod recovery;
pub mod registry;
pub mod report;
pub mod retrain;
pub mod retry;
pub mod score;
pub mod score_command;
pub mod scoring_api;
pub mod secret;
pub mod serving;
pub mod split;
pub mod store;
pub mod telemetry;
pub mod train;
pub mod worker;
