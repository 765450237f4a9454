//! One vote's way: read, store. It has a row and no output.

use super::{
    Parts,
    item::{Abandoned, while_ours},
    observing::InStage,
    outcome::{self, Facts},
};
use crate::{
    failpoint,
    fault::{ErrorCode, ItemError, Stage},
    kafka::{ConsumedRecord, StagedRecord},
    labels::{Scale, Vote},
    record::dead_letter::DeadLetterClass,
    store::{VoteOutcome, WriteRequest},
    telemetry::traces::Span,
};
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

/// A record holds one vote.
const ITEM: u32 = 0;

/// Where votes are read and what becomes of them.
pub struct Voting {
    /// The topic whose records are votes.
    pub topic: Arc<str>,
    /// What they are checked against.
    pub scale: Scale,
    /// Votes to be written in batches.
    pub writer: mpsc::Sender<WriteRequest<Vote, VoteOutcome>>,
}

/// The task of one vote.
pub(super) struct VoteTask {
    pub parts: Arc<Parts>,
    pub voting: Arc<Voting>,
    pub record: ConsumedRecord,
    pub span: Span,
}

impl VoteTask {
    /// Runs the vote to its row or its dead letter, or leaves its record to a replay.
    pub async fn run(self) {
        let trace = self.span.context();
        let span = tracing::info_span!(
            "vote",
            trace_id = %trace.trace_id(),
            span_id = %trace.span_id(),
            receipt = %self.record.receipt,
        );
        async {
            if let Err(abandoned) = self.finish().await {
                self.span.fail(&abandoned);
                tracing::warn!(reason = %abandoned, "left to a replay");
            }
        }
        .instrument(span)
        .await;
    }

    async fn finish(&self) -> Result<(), Abandoned> {
        let Parts { ledger, metrics, hold, models, .. } = &*self.parts;
        let receipt = &self.record.receipt;
        let parsing = InStage::new(metrics, &self.span.seed(), Stage::Parse);
        let read = self.read();
        drop(parsing);
        let written = match read {
            Ok(vote) => self.write(vote).await?,
            Err(error) => Err(error),
        };
        let staged = match written {
            Ok(outcome) => {
                hold.scored();
                metrics.vote(outcome.as_str());
                vec![]
            }
            Err(error) => {
                while_ours(ledger, receipt, hold.dead_letter()).await?;
                let model = while_ours(ledger, receipt, models.model_for(None)).await?;
                metrics.vote("rejected");
                metrics.error(error.stage, error.code);
                self.span.fail(&error);
                tracing::info!(code = %error.code, stage = %error.stage, reason = error.message, "no vote");
                vec![self.letter(&error, &model.version().version)]
            }
        };
        if let Some(timestamp) = self.record.timestamp_ms {
            let age = (outcome::now_ms() - timestamp).max(0);
            metrics.record_age.observe(age as f64 / 1000.0);
        }
        if ledger.complete(receipt, ITEM, staged) {
            failpoint::reach("output-staged");
            Ok(())
        } else {
            Err(Abandoned::PartitionLost)
        }
    }

    fn read(&self) -> Result<Vote, ItemError> {
        let Parts { routes, .. } = &*self.parts;
        let payload = self.record.payload.as_deref().unwrap_or_default();
        let milliseconds = self.record.timestamp_ms.map(i128::from);
        let stamped = milliseconds
            .and_then(|stamped| OffsetDateTime::from_unix_timestamp_nanos(stamped * 1_000_000).ok());
        let vote = Vote::from_record(payload, stamped, &self.voting.scale, OffsetDateTime::now_utc())
            .map_err(|refusal| self.error(ErrorCode::InvalidLabel, Stage::Parse, &refusal))?;
        if !routes.buckets.is_empty() && !routes.buckets.contains(&vote.object.bucket) {
            let reason = format!(
                "bucket {:?} is not in s3.buckets; add it there or stop votes on it",
                vote.object.bucket
            );
            return Err(self.error(ErrorCode::BucketNotAllowed, Stage::Parse, &reason));
        }
        Ok(vote)
    }

    /// Hands the vote to the writer and waits until it is durable.
    async fn write(&self, vote: Vote) -> Result<Result<VoteOutcome, ItemError>, Abandoned> {
        let _stage = InStage::new(&self.parts.metrics, &self.span.seed(), Stage::Pg);
        let (reply, answer) = oneshot::channel();
        let request = WriteRequest { row: vote, reply };
        self.voting.writer.send(request).await.map_err(|_| Abandoned::Stopping)?;
        let answer = answer.await.map_err(|_| Abandoned::Stopping)?;
        Ok(answer.map_err(|error| self.error(ErrorCode::InvalidLabel, Stage::Pg, &error)))
    }

    fn error(&self, code: ErrorCode, stage: Stage, reason: &impl std::fmt::Display) -> ItemError {
        ItemError::new(code, stage, format!("vote {}: {reason}", self.record.receipt))
    }

    fn letter(&self, error: &ItemError, model: &str) -> StagedRecord {
        let position = self.record.receipt.position(ITEM);
        let class = DeadLetterClass::Rejected;
        outcome::letter(&self.record, &position, class, error, &Facts::default(), model, &self.parts.routes)
    }
}
