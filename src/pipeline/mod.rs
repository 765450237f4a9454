//! Joins the stages: one task an item, from its record to its staged output; and one a vote, which ends with
//! its row.
//!
//! A task holds a place among `pipeline.max_items` for all of its life and leave for its bytes only
//! while it has them, so that an item waiting for a retry costs a place and nothing else. When the
//! places are gone the intake stops taking records, the channel fills, and the poll thread pauses its
//! partitions while it keeps polling.
//!
//! While S3, Postgres or the model is broken ([`Hold`]), the items that need it wait, their retry
//! clocks stopped and without bytes; one at a time tries. None of them becomes a dead letter for it.
//!
//! The order is what the promise rests on: the row is durable before the output is staged, and the
//! output carries what the row says. Whatever ends a task early (a lost partition, a failed model, a
//! shutdown) leaves its record unfinished, so it is replayed.

mod admission;
mod breaker;
mod content_cache;
mod dead_letter_guard;
mod fetching;
mod hold;
mod in_flight;
mod item;
mod observing;
mod outcome;
mod patience;
mod reuse;
mod scoring;
mod settings;
mod storing;
mod voting;

pub use admission::Admission;
pub use hold::{Dependency, Hold};
pub use reuse::{Reuse, ReuseSettings};
pub use settings::PipelineSettings;
pub use storing::{look_up_rows, upsert, write_votes};
pub use voting::Voting;

use crate::{
    fault::Stage,
    fetch::Fetcher,
    kafka::{ConsumedRecord, Ledger},
    object::ScoreId,
    record::input,
    retry::RetrySettings,
    serving::Models,
    store::{LookUp, ScoreRow, StoredScore, WriteRequest},
    telemetry::{metrics::Metrics, traces::Traces},
};
use in_flight::InFlight;
use observing::{InStage, RecordWitness};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// What the pipeline joins. Each part is ignorant of the others.
pub struct Parts {
    pub ledger: Arc<Ledger>,
    pub fetcher: Fetcher,
    /// What scores; it may change at any time.
    pub models: Arc<Models>,
    /// Rows to be looked up in batches.
    pub rows: mpsc::Sender<LookUp<ScoreId, StoredScore>>,
    /// Scores of identical content, where they are used again.
    pub reuse: Option<Arc<Reuse>>,
    /// Rows to be written in batches.
    pub writer: mpsc::Sender<WriteRequest<ScoreRow, StoredScore>>,
    /// Where votes come from, if they are read.
    pub voting: Option<Arc<Voting>>,
    pub admission: Arc<Admission>,
    /// What waits while a dependency is broken.
    pub hold: Arc<Hold>,
    pub metrics: Arc<Metrics>,
    /// Where the spans of each record go.
    pub traces: Traces,
    pub routes: Routes,
    pub retry: RetrySettings,
    /// Objects of more bytes are rejected.
    pub max_image_bytes: u64,
}

/// Where records go, and what they say of their sender.
pub struct Routes {
    /// Buckets that records may name.
    pub buckets: Vec<String>,
    pub output_topic: Arc<str>,
    pub dead_letter_topic: Arc<str>,
    pub group: String,
    /// An output above this many bytes sheds detail, a dead letter points at its original.
    pub max_record_bytes: usize,
}

/// The running pipeline.
pub struct Pipeline {
    parts: Arc<Parts>,
    in_flight: InFlight<ScoreId>,
}

impl Pipeline {
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), in_flight: InFlight::default() }
    }

    /// Takes records until their channel ends, then waits for the items under way.
    pub async fn run(self, mut records: mpsc::Receiver<ConsumedRecord>) {
        let tasks = TaskTracker::new();
        while let Some(record) = records.recv().await {
            self.admit(record, &tasks).await;
        }
        tasks.close();
        tasks.wait().await;
    }

    /// Starts a task for each item of a record, as far as there are places.
    async fn admit(&self, record: ConsumedRecord, tasks: &TaskTracker) {
        let Parts { ledger, metrics, routes, admission, .. } = &*self.parts;
        metrics.records.inc();
        if let Some(voting) = &self.parts.voting
            && record.receipt.source().topic == voting.topic
        {
            return self.admit_vote(record, Arc::clone(voting), tasks).await;
        }
        let span = self.parts.traces.record(&record.headers);
        let seed = span.seed();
        let witness = RecordWitness::new(Arc::clone(metrics), span, &record, &routes.group);
        ledger.attend(&record.receipt, Box::new(witness));
        let parsing = InStage::new(metrics, &seed, Stage::Parse);
        let parsed = input::parse(record.payload.as_deref(), &record.headers, &routes.buckets);
        drop(parsing);
        for reason in parsed.skipped() {
            metrics.records_skipped.inc();
            tracing::debug!(receipt = %record.receipt, reason = reason.as_str(), "skipped");
        }
        let items: Vec<_> = parsed.to_process().cloned().collect();
        if !ledger.expect(&record.receipt, items.len() as u32) {
            return;
        }
        let record = Arc::new(record);
        for item in items {
            let Some(place) = admission.item().await else { return };
            if !ledger.start(&record.receipt) {
                return;
            }
            let span = seed.child("item");
            let task = item::ItemTask {
                parts: Arc::clone(&self.parts),
                in_flight: self.in_flight.clone(),
                record: Arc::clone(&record),
                trace: span.context().clone(),
                span,
                item,
            };
            tasks.spawn(async move {
                task.run().await;
                drop(place);
            });
        }
    }

    /// Starts the task of a vote once there is a place; a tombstone is none.
    async fn admit_vote(&self, record: ConsumedRecord, voting: Arc<Voting>, tasks: &TaskTracker) {
        let Parts { ledger, metrics, admission, routes, traces, .. } = &*self.parts;
        let span = traces.record(&record.headers);
        let seed = span.seed();
        let witness = RecordWitness::new(Arc::clone(metrics), span, &record, &routes.group);
        ledger.attend(&record.receipt, Box::new(witness));
        let expected = u32::from(record.payload.is_some());
        if expected == 0 {
            metrics.records_skipped.inc();
        }
        if !ledger.expect(&record.receipt, expected) || expected == 0 {
            return;
        }
        let Some(place) = admission.item().await else { return };
        if !ledger.start(&record.receipt) {
            return;
        }
        let span = seed.child("vote");
        let task = voting::VoteTask { parts: Arc::clone(&self.parts), voting, record, span };
        tasks.spawn(async move {
            task.run().await;
            drop(place);
        });
    }
}
