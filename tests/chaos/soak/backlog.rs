//! Memory with far more waiting than can be worked on: 20,000 records of 5 MB each, two scored a second.

use super::START;
use super::memory::Memory;
use crate::envelopes::{Envelope, Upload};
use crate::load::announced;
use crate::run::Run;
use crate::site;
use anyhow::{Context, Result};
use serde_json::json;
use std::thread;
use std::time::Duration;

const RECORDS: usize = 20_000;
const OBJECT_BYTES: usize = 5_000_000;
const IMAGE_MS: u64 = 500;
const WATCHED: Duration = Duration::from_secs(120);
/// What the worker may hold of encoded images, in MiB.
const BUDGET_MIB: u64 = 256;
/// What it may take beyond those and the model.
const MARGIN_MIB: u64 = 300;
const WORKER: &str = "worker";

pub fn backlog(run: &mut Run) -> Result<()> {
    run.stand_in(json!({"image_ms": IMAGE_MS}))?;
    // All objects are one file, of which a single score would do.
    let setup =
        run.worker(WORKER).set("pipeline.max_bytes", (BUDGET_MIB << 20) as i64).set("reuse.enabled", false);
    let worker = run.spawn(setup)?;
    worker.wait_ready(START)?;
    let memory = Memory::start();
    memory.watch(WORKER, worker.id);
    thread::sleep(Duration::from_secs(3));
    let idle = memory.last(WORKER).context("the worker's memory can be read")?;

    let first = run.loader.put("00000.bmp", &picture())?;
    let folder = run.s3.root().join(&first.bucket);
    for number in 0..RECORDS {
        let key = format!("{number:05}.bmp");
        if number > 0 {
            // Objects of their own that take no room.
            std::fs::hard_link(folder.join(&first.key), folder.join(&key))?;
        }
        let upload = Upload { key, ..first.clone() };
        let partition = (number % run.loader.partitions as usize) as i32;
        let record = Envelope::Aws.record(&[&upload]);
        run.loader.send(&record, Some(partition), &[announced(&upload, "scored")])?;
        if number % 2_000 == 0 {
            println!(
                "soak: {number} of {RECORDS} records sent, {:.0} MiB",
                memory.last(WORKER).unwrap_or_default()
            );
        }
    }
    for _ in 0..WATCHED.as_secs() / 10 {
        thread::sleep(Duration::from_secs(10));
        let scored = run.tail.items();
        println!("soak: {scored} of {RECORDS} scored, {:.0} MiB", memory.last(WORKER).unwrap_or_default());
    }
    let (series, scored) = (memory.series(), run.tail.items());
    super::plot::write(&site::target().join("soak/backlog.svg"), &series, &[])?;
    let peak = series.iter().filter_map(super::memory::Series::peak).max_by(f64::total_cmp);
    let peak = peak.context("the worker's memory can be read")?;
    run.fired(1);
    run.equal("the worker's restarts", u64::from(!worker.is_running()?), 0);
    run.at_least("records waiting at the end", (RECORDS - scored.min(RECORDS)) as f64, RECORDS as f64 * 0.9);
    run.at_least("records scored", scored as f64, 1.0);
    run.at_most("MiB at most beyond those of the idle worker", peak - idle, (BUDGET_MIB + MARGIN_MIB) as f64);
    // Nobody waits for the rest: what is there has to be right.
    run.leave()
}

/// A BMP of about [`OBJECT_BYTES`], which costs little to decode.
fn picture() -> Vec<u8> {
    const HEADER: u32 = 54;
    let width = 1280_u32;
    let height = (OBJECT_BYTES as u32 - HEADER) / (width * 3);
    let pixels = width * 3 * height;
    let mut file = b"BM".to_vec();
    for number in [HEADER + pixels, 0, HEADER, 40, width, height, 1 | 24 << 16, 0, pixels, 2835, 2835, 0, 0] {
        file.extend(number.to_le_bytes());
    }
    file.extend((0..pixels).map(|place| (place % 251) as u8));
    file
}
