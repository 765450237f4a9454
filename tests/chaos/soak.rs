//! `make soak`: mixed load for minutes on end, a fault every 20 seconds, and the matrix's oracle.

mod backlog;
mod faults;
mod memory;
mod plot;

use crate::proxy::tcp::TcpProxy;
use crate::report::RunReport;
use crate::row::{Broker, Row};
use crate::run::{Run, START};
use crate::runner;
use crate::site::{self, Site};
use anyhow::{Context, Result, bail};
use faults::{Bench, Fault};
use memory::Memory;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use url::Url;

/// Items a second; an envelope in nine holds three.
const ITEMS_PER_SECOND: f64 = 150.0;
const LEAST_RECORDS_PER_SECOND: f64 = 100.0;
const FAULT_EVERY: Duration = Duration::from_secs(20);
/// After this, resident memory counts.
const WARM_UP: Duration = Duration::from_secs(60);
/// Resident memory of a process is that of the median over so long.
const WINDOW: Duration = Duration::from_secs(15);
const MOST_GROWTH_PERCENT: f64 = 5.0;

/// What `make soak` was asked for: `ROC4MLLM_SOAK` minutes of load, or `backlog`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Asked {
    Load { minutes: f64 },
    Backlog,
}

impl Asked {
    pub fn from_environment() -> Result<Option<Self>> {
        match std::env::var("ROC4MLLM_SOAK").unwrap_or_default().as_str() {
            "" => Ok(None),
            "backlog" => Ok(Some(Self::Backlog)),
            minutes => match minutes.parse() {
                Ok(minutes) if minutes >= 2.0 => Ok(Some(Self::Load { minutes })),
                _ => bail!("MINUTES={minutes}: use a number of minutes, 2 or more"),
            },
        }
    }
}

/// Runs it. What is wrong, where something is.
pub fn run(asked: Asked) -> Result<Vec<String>> {
    let folder = site::target().join("soak");
    let kept = folder.join(if asked == Asked::Backlog { "backlog" } else { "load" });
    let site = Arc::new(Site::start(kept).context("the servers did not start")?);
    let row = match asked {
        Asked::Load { .. } => Row::new(0, "soak", Broker::Proxy, soak),
        Asked::Backlog => Row::new(0, "backlog", Broker::Apache, backlog::backlog),
    };
    let report = runner::execute(&site, &row, 1, None);
    summarize(&report);
    let name = if asked == Asked::Backlog { "backlog.json" } else { "report.json" };
    std::fs::write(folder.join(name), serde_json::to_string_pretty(&report)?)?;
    println!("soak: {} has the report", folder.join(name).display());
    Ok(report.complaints)
}

fn summarize(report: &RunReport) {
    let RunReport { items, lost, doubled, mismatched, fired, .. } = report;
    println!("soak: {items} items, {fired} faults; lost {lost}, doubled {doubled}, mismatched {mismatched}");
    for claim in &report.expected {
        println!("soak: {}: {} (limit {})", claim.claim, claim.observed, claim.limit);
    }
}

/// Two workers under load: one is killed, stopped and restarted, the other lives through everything
/// else, and its memory is what is judged.
fn soak(run: &mut Run) -> Result<()> {
    let Some(Asked::Load { minutes }) = Asked::from_environment()? else { bail!("no minutes were given") };
    let length = Duration::from_secs_f64(minutes * 60.0);
    let postgres = TcpProxy::start(address(&run.database)?)?;
    run.postgres_url = through(&run.database, &postgres)?;
    let s3 = TcpProxy::start(address(&run.s3_endpoint)?)?;
    run.s3_endpoint = through(&run.s3_endpoint, &s3)?;
    let memory = Memory::start();
    let mut bench = Bench::new(run, memory.clone(), postgres, s3)?;
    let begun = Instant::now();
    let flow =
        run.loader.flow((length.as_secs_f64() * ITEMS_PER_SECOND) as usize, run.seed, ITEMS_PER_SECOND);
    let mut marks = Vec::new();
    let mut order = Fault::shuffled(&mut run.random);
    while begun.elapsed() + FAULT_EVERY < length {
        thread::sleep((FAULT_EVERY * (marks.len() as u32 + 1)).saturating_sub(begun.elapsed()));
        let fault = match order.pop() {
            Some(fault) => fault,
            None => {
                order = Fault::shuffled(&mut run.random);
                order.pop().context("there are faults")?
            }
        };
        println!(
            "soak: {:>4} of {:.0} s, {} items in, {} out, {:.0} MiB; now {fault}",
            begun.elapsed().as_secs(),
            length.as_secs_f64(),
            run.loader.items(),
            run.tail.items(),
            memory.last(faults::STEADY).unwrap_or_default(),
        );
        marks.push((memory.elapsed(), fault.to_string()));
        bench.bring_about(run, fault)?;
    }
    flow.join()?;
    let sent = begun.elapsed().as_secs_f64();
    run.heal();
    let series = memory.series();
    let steady = series.iter().find(|series| series.name == faults::STEADY);
    let growth = steady.and_then(|series| series.growth_percent(bench.started, WARM_UP, WINDOW));
    let records = run.loader.records();
    plot::write(&site::target().join("soak/memory.svg"), &series, &marks)?;
    std::fs::write(
        site::target().join("soak/memory.json"),
        json!({"seconds": sent, "records": records, "faults": marks, "resident_mib": series}).to_string(),
    )?;
    run.fired(marks.len());
    run.describe(format!("{minutes} minutes of load with {} faults", marks.len()));
    run.at_least("records a second", records as f64 / sent, LEAST_RECORDS_PER_SECOND);
    let growth = growth.context("the steady worker's memory was not seen for long enough")?;
    run.at_most("percent that resident memory grew after the first minute", growth, MOST_GROWTH_PERCENT);
    run.equal("the steady worker's restarts", u64::from(!bench.steady_runs()?), 0);
    // Outputs go on for as long as the backlog that the last fault left.
    run.settle()?;
    run.at_least(
        "outputs a second",
        run.tail.items() as f64 / begun.elapsed().as_secs_f64(),
        LEAST_RECORDS_PER_SECOND,
    );
    Ok(())
}

fn address(url: &str) -> Result<SocketAddr> {
    let url = Url::parse(url)?;
    let addresses = url.socket_addrs(|| None)?;
    addresses.into_iter().next().with_context(|| format!("{url} has no address"))
}

fn through(url: &str, proxy: &TcpProxy) -> Result<String> {
    let mut url = Url::parse(url)?;
    url.set_ip_host(proxy.address().ip()).ok().context("the URL takes no host")?;
    url.set_port(Some(proxy.address().port())).ok().context("the URL takes no port")?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}
