//! The mock cluster inside librdkafka: a light Kafka for the demo and for tests of the happy path.

use crate::dev::DevError;
use rdkafka::ClientConfig;
use rdkafka::bindings::{rd_kafka_handle_mock_cluster, rd_kafka_mock_group_initial_rebalance_delay_ms};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer};

const PART: &str = "mock Kafka";
/// A group's first member waits this long for company; the stock 3 s is a pause in every test.
const INITIAL_REBALANCE_DELAY_MS: i32 = 150;

/// One mock broker on a loopback port that other processes can reach too.
///
/// It holds records in memory, drops the oldest beyond 5 MiB or 100,000 batches a partition, and
/// accepts transactions without honouring them: `read_committed` readers see aborted records.
/// Use [`super::ApacheKafka`] where a guarantee is at stake.
pub struct MockKafka {
    // The client owns the cluster, which ends with it.
    client: BaseProducer,
    bootstrap: String,
}

impl MockKafka {
    /// Starts the broker, in milliseconds.
    pub fn start() -> Result<Self, DevError> {
        let failed = |reason: String| DevError::Start { part: PART, reason };
        let client: BaseProducer = ClientConfig::new()
            .set("test.mock.num.brokers", "1")
            .create()
            .map_err(|error| failed(error.to_string()))?;
        let cluster = client.client().mock_cluster();
        let bootstrap =
            cluster.ok_or_else(|| failed("this librdkafka has none".to_owned()))?.bootstrap_servers();
        // SAFETY: the client made a mock cluster above, owns it, and outlives both calls.
        unsafe {
            let cluster = rd_kafka_handle_mock_cluster(client.client().native_ptr());
            rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, INITIAL_REBALANCE_DELAY_MS);
        }
        Ok(Self { client, bootstrap })
    }

    /// `host:port` for `bootstrap.servers`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Creates a topic. The mock answers no admin request, so this is the only way.
    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), DevError> {
        self.cluster()?.create_topic(topic, partitions, 1).map_err(|error| DevError::Start {
            part: PART,
            reason: format!("topic {topic} was not created: {error}"),
        })
    }

    /// The cluster itself, for injected errors and latency.
    pub fn cluster(&self) -> Result<MockCluster<'_, DefaultProducerContext>, DevError> {
        self.client
            .client()
            .mock_cluster()
            .ok_or_else(|| DevError::Start { part: PART, reason: "its client has lost it".to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::message::Message;
    use rdkafka::producer::BaseRecord;
    use std::time::{Duration, Instant};

    #[test]
    fn a_group_reads_what_was_written() {
        let kafka = MockKafka::start().unwrap();
        kafka.create_topic("t", 3).unwrap();
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
        producer.send(BaseRecord::to("t").key("k").payload("hello")).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap())
            .set("group.id", "g")
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        consumer.subscribe(&["t"]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let payload = loop {
            assert!(Instant::now() < deadline, "no record arrived");
            if let Some(Ok(record)) = consumer.poll(Duration::from_millis(200)) {
                break record.payload().unwrap().to_vec();
            }
        };
        assert_eq!(payload, b"hello");
    }
}
