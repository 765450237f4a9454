//! What happens when the group moves partitions: the consumer's callbacks, on the poll thread.

use super::client::Context;
use super::committer::CommitRequests;
use super::ledger::Ledger;
use super::native;
use super::receipt::{Epoch, TopicPartition};
use super::stats::{KafkaStats, count};
use crate::failpoint::Rule;
use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// For how long partitions can still be committed after their revocation, where that rule is taken away.
const UNLOCKED: Duration = Duration::from_secs(20);

/// Tells the poll loop what a callback did.
#[derive(Debug)]
pub(super) enum Change {
    /// A partition came, paused, under this epoch.
    Assigned(TopicPartition, Epoch),
    /// A partition went.
    Revoked(TopicPartition),
}

/// The consumer's context.
pub struct SourceContext {
    pub(super) client: Context,
    pub(super) ledger: Arc<Ledger>,
    pub(super) requests: CommitRequests,
    pub(super) stats: Arc<KafkaStats>,
    pub(super) changes: mpsc::Sender<Change>,
    pub(super) revoke_drain: Duration,
    /// Shutdown has waited for started work already; a revocation needn't again.
    pub(super) draining: Arc<AtomicBool>,
}

impl ClientContext for SourceContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = Context::ENABLE_REFRESH_OAUTH_TOKEN;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.client.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.client.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.client.generate_oauth_token(config)
    }
}

impl ConsumerContext for SourceContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let result = match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, partitions),
            _ => self.revoke(consumer, partitions),
        };
        // librdkafka refuses these only once the consumer is closing or fatally broken, which the
        // next poll reports.
        if let Err(error) = result {
            tracing::error!(%error, "a rebalance could not be carried out");
        }
    }

    fn main_queue_min_poll_interval(&self) -> rdkafka::util::Timeout {
        Duration::from_millis(100).into()
    }
}

impl SourceContext {
    /// Takes the partitions, paused. The poll loop has their committed offsets looked up elsewhere
    /// and then seeks: were librdkafka to ask for them, it could not finish this rebalance, nor begin
    /// another, before the answer came, and the answer waits for open transactions.
    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &mut TopicPartitionList) -> KafkaResult<()> {
        let sources = sources_of(partitions);
        tracing::info!(partitions = %listed(&sources), "partitions assigned");
        count(&self.stats.assigned, sources.len());
        //
        // The start is a plain number, and paused before it is assigned, so that nothing is fetched
        // from it. A logical one would set off a query whose answer, once a pause has made it stale,
        // librdkafka asks for again, and follows even after a seek: records would be jumped over.
        native::make_known(consumer, &sources);
        consumer.pause(partitions)?;
        partitions.set_all_offsets(Offset::Offset(0))?;
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(partitions)?,
            _ => consumer.assign(partitions)?,
        }
        for source in sources {
            let epoch = self.ledger.assign(source.clone());
            self.tell(Change::Assigned(source, epoch));
        }
        Ok(())
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &mut TopicPartitionList) -> KafkaResult<()> {
        let sources = sources_of(partitions);
        let epochs = self.ledger.epochs_of(&sources);
        if consumer.assignment_lost() {
            // They may have another owner by now: nothing may be committed.
            tracing::warn!(partitions = %listed(&sources), "partitions lost");
            count(&self.stats.lost, sources.len());
        } else {
            if Rule::Revoke.holds() {
                self.give_up(&epochs);
            }
            tracing::info!(partitions = %listed(&sources), "partitions revoked");
            count(&self.stats.revoked, sources.len());
        }
        if Rule::Revoke.holds() {
            self.ledger.kill(&epochs);
        } else {
            let ledger = Arc::clone(&self.ledger);
            std::thread::spawn(move || {
                std::thread::sleep(UNLOCKED);
                ledger.kill(&epochs);
            });
        }
        for source in sources {
            self.tell(Change::Revoked(source));
        }
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
            _ => consumer.unassign(),
        }
    }

    /// Lets started work finish and be committed, for as long as a revocation may take; whatever is
    /// not done by then, the next owner does again.
    fn give_up(&self, epochs: &[Epoch]) {
        let begun = Instant::now();
        self.ledger.begin_revoke(epochs);
        let patience = match self.draining.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            // The rest is for the commit.
            false => self.revoke_drain * 3 / 4,
        };
        let unfinished = self.ledger.wait_started(Some(epochs), begun + patience);
        if unfinished == 0 {
            self.ledger.settle(Some(epochs));
        } else if !self.draining.load(Ordering::Relaxed) {
            self.ledger.hand_over(epochs);
        }
        let committed = self.requests.cycle(self.revoke_drain.saturating_sub(begun.elapsed()));
        if unfinished > 0 || !committed {
            tracing::warn!(unfinished, committed, "partitions are given up with work to be done again");
        }
    }

    fn tell(&self, change: Change) {
        // Only fails once the poll loop is gone, and then nobody needs to know.
        let _ = self.changes.send(change);
    }
}

fn sources_of(partitions: &TopicPartitionList) -> Vec<TopicPartition> {
    partitions.elements().iter().map(|entry| TopicPartition::new(entry.topic(), entry.partition())).collect()
}

fn listed(sources: &[TopicPartition]) -> String {
    sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
