//! What a run leaves behind, in files from which its verdict can be recomputed.

use crate::kafka::{self, Offsets};
use anyhow::{Context, Result};
use rdkafka::Message;
use rdkafka::error::KafkaError;
use rdkafka::message::Headers;
use serde_json::{Map, Value, json};
use sqlx::{Connection, PgConnection, Row};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// All that `read_committed` shows of a topic, a record a line.
pub fn topic(bootstrap: &str, topic: &str, partitions: i32, file: &Path) -> Result<()> {
    let consumer = kafka::reader(bootstrap, topic, partitions)?;
    let mut out = BufWriter::new(File::create(file)?);
    let mut ended = 0;
    while ended < partitions {
        match consumer.poll(kafka::TIMEOUT).context("a topic's dump stands still")? {
            Ok(message) => {
                let mut headers = Map::new();
                for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
                    headers.insert(header.key.to_owned(), text(header.value));
                }
                let line = json!({
                    "topic": topic, "partition": message.partition(), "offset": message.offset(),
                    "key": text(message.key()), "headers": headers, "value": text(message.payload()),
                });
                writeln!(out, "{line}")?;
            }
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => return Err(error).with_context(|| format!("dump of {topic}")),
        }
    }
    Ok(out.flush()?)
}

fn text(bytes: Option<&[u8]>) -> Value {
    bytes.map_or(Value::Null, |bytes| String::from_utf8_lossy(bytes).into())
}

/// Committed offsets with their metadata, and where the partitions begin and end.
pub fn offsets(offsets: &Offsets, file: &Path) -> Result<()> {
    Ok(std::fs::write(file, serde_json::to_string_pretty(&offsets.read()?)?)?)
}

/// The table, a row a line.
pub async fn scores(url: &str, file: &Path) -> Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    let rows = sqlx::query("SELECT row_to_json(line)::text FROM scores AS line ORDER BY line.id")
        .fetch_all(&mut connection)
        .await?;
    let mut out = BufWriter::new(File::create(file)?);
    for row in rows {
        writeln!(out, "{}", row.try_get::<String, _>(0)?)?;
    }
    Ok(out.flush()?)
}
