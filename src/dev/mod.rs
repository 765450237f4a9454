//! The embedded stack: the servers that `roc4mllm demo` and the tests run against.
//!
//! Each part is a handle that starts its server and stops it when dropped. [`TestDatabase`],
//! [`TestKafka`] and [`TestS3`] let a test run against servers that already run instead:
//! `ROC4MLLM_TEST_KAFKA`, `ROC4MLLM_TEST_DATABASE_URL` and `ROC4MLLM_TEST_S3_ENDPOINT` name them.

mod apache_kafka;
mod child;
pub mod demo;
pub mod demo_model;
mod mock_kafka;
mod postgres;
mod s3;
mod s3_objects;
mod s3_uploads;
pub mod scratch;
mod test_servers;

pub use apache_kafka::{ApacheKafka, create_topic};
pub use child::ManagedChild;
pub use mock_kafka::MockKafka;
pub use postgres::Postgres;
pub use s3::{Fault, S3Server};
pub use test_servers::{
    TestDatabase, TestKafka, TestS3, client as s3_client, lacks_kafka, put as s3_put, skip_without,
    skip_without_kafka,
};

use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// Why a part of the embedded stack is not there.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// The machine lacks something that the part needs.
    #[error("{part}: {what} not found; {remedy}")]
    Absent { part: &'static str, what: &'static str, remedy: &'static str },
    /// The part did not start, or refused an order.
    #[error("{part}: {reason}")]
    Start { part: &'static str, reason: String },
    /// The operating system refused something.
    #[error("{part}: {source}")]
    Io { part: &'static str, source: io::Error },
}

impl DevError {
    fn io(part: &'static str, source: io::Error) -> Self {
        Self::Io { part, source }
    }
}

/// A loopback port that was free a moment ago.
fn free_port(part: &'static str) -> Result<u16, DevError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| DevError::io(part, error))
}
