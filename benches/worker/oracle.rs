//! After a run: every record has one output, one row, and one score in both.

use super::process::Place;
use crate::support::topics::{Anything, Reader};
use rdkafka::consumer::BaseConsumer;
use serde_json::Value;
use sqlx::{Connection, PgConnection, Row};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long outputs are looked for that should not be there.
const LOOKED_FOR: Duration = Duration::from_millis(500);

/// # Errors
/// Says what was lost, doubled or differs.
pub async fn check(bootstrap: &str, place: &Place, partitions: i32, records: usize) -> Result<(), Anything> {
    let outputs = Arc::new(Mutex::new(Vec::with_capacity(records)));
    let kept = Arc::clone(&outputs);
    let keep = move |payload: &[u8]| {
        let output: Value = serde_json::from_slice(payload)?;
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(output);
        Ok(())
    };
    let reader = Reader::open(bootstrap, &place.output, partitions)?.see(records, keep).await?;
    let more = tokio::task::spawn_blocking(move || more_within(&reader.consumer)).await??;
    if more > 0 {
        return Err(format!("{more} outputs more than the {records} records").into());
    }
    let outputs = std::mem::take(&mut *outputs.lock().unwrap_or_else(PoisonError::into_inner));
    let mut connection = PgConnection::connect(&place.database).await?;
    let rows = sqlx::query("SELECT id::text, score FROM scores").fetch_all(&mut connection).await?;
    let rows: HashMap<String, Option<f64>> =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>()?;
    connection.close().await?;
    let mut seen = HashSet::with_capacity(records);
    for output in &outputs {
        let source = (output["source"]["partition"].as_i64(), output["source"]["offset"].as_i64());
        if !seen.insert(source) {
            return Err(format!("two outputs for {source:?}").into());
        }
        let id = output["id"].as_str().unwrap_or_default();
        let row = rows.get(id).ok_or_else(|| format!("no row for {output}"))?;
        if output["status"] != "scored" || row.is_none() || *row != output["score"].as_f64() {
            return Err(format!("the row has {row:?}, and the output is {output}").into());
        }
    }
    if rows.len() != records {
        return Err(format!("{} rows for {records} records", rows.len()).into());
    }
    Ok(())
}

/// Records that come while nobody expects any.
fn more_within(consumer: &BaseConsumer) -> Result<usize, Anything> {
    let deadline = Instant::now() + LOOKED_FOR;
    let mut count = 0;
    while Instant::now() < deadline {
        count += usize::from(consumer.poll(Duration::from_millis(50)).transpose()?.is_some());
    }
    Ok(count)
}
