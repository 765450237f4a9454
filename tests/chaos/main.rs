//! The fault matrix: a real worker, real servers, one fault after the other, and an oracle that looks
//! for a lost item, a doubled output, and an output that differs from its row.
//!
//! `cargo test --test chaos` runs a short part of it, one trial a row. With the variable
//! `ROC4MLLM_CHAOS` set to `all` or to row numbers (`1,8`), every seed of those rows runs, and a
//! table and `target/chaos/report.json` come out; that is `make chaos`. Each run keeps what it did
//! and saw in `target/chaos/ROW-SEED/`.
//!
//! # Adding rows
//!
//! A file in `rows/` has `pub fn rows() -> Vec<Row>` and is named in [`rows::all`]. A row's function
//! gets a [`run::Run`] with fresh topics, bucket and database, and works in plain blocking code:
//!
//! ```text
//! fn slow_down(run: &mut Run) -> Result<()> {
//!     run.loader.load(500, run.seed, None)?;             // or .flow(..) beside, or .put() and .send()
//!     let setup = run.worker("a").set("retry.max_ms", 500).failpoint("scored=9*off->return");
//!     let worker = run.spawn(setup)?;
//!     run.tail.wait_items(run.at_item, START)?;          // committed outputs, as they come
//!     run.s3.set_faults(|request| ..);                   // the fault; or run.site.proxy, run.sql(..),
//!                                                        // run.stand_in(json!({..})), worker.signal(..)
//!     run.fired(1);
//!     run.s3.clear_faults();
//!     run.heal();                                        // recovery counts from here
//!     run.at_most("seconds ..", seconds, 8.0);           // the row's own expectations
//!     let evidence = run.settle()?;                      // optional: no lag, workers ended, all dumped
//!     Ok(())
//! }
//! ```
//!
//! After it, whether or not it called `settle`, the run waits for the group to have no lag, kills the
//! workers, dumps, and the oracle judges. Everything claimed with `at_most`, `at_least` and `equal`
//! lands in the report, and what does not hold makes the run unclean.
//!
//! Rows on [`row::Broker::Apache`] run two at a time; those on `Proxy` have the Kafka proxy for
//! themselves. A proxy for Postgres or S3 ([`proxy::tcp::TcpProxy`]) is a row's own: start it and set
//! `run.postgres_url` or `run.s3_endpoint` before the first `run.worker(..)`.

mod checks;
mod dump;
#[path = "../support/envelopes.rs"]
mod envelopes;
mod kafka;
mod load;
mod oracle;
mod outcome;
mod plan;
mod proxy;
mod random;
mod report;
mod row;
mod rows;
mod run;
mod runner;
mod site;
mod soak;
mod tail;
mod watch;
mod worker;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use plan::Plan;
use site::Site;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// Trials of `cargo test` that run at once.
const LANES: usize = 2;

fn main() -> ExitCode {
    match asked() {
        Ok(None) => trials(),
        Ok(Some(Asked::Matrix(plan))) => judged(matrix(plan)),
        Ok(Some(Asked::Soak(asked))) => judged(soak::run(asked)),
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

enum Asked {
    Matrix(Plan),
    Soak(soak::Asked),
}

fn asked() -> Result<Option<Asked>> {
    Ok(match soak::Asked::from_environment()? {
        Some(asked) => Some(Asked::Soak(asked)),
        None => Plan::from_environment()?.map(Asked::Matrix),
    })
}

fn judged(complaints: Result<Vec<String>>) -> ExitCode {
    match complaints {
        Ok(complaints) if complaints.is_empty() => ExitCode::SUCCESS,
        Ok(complaints) => {
            for complaint in complaints {
                eprintln!("NOT CLEAN: {complaint}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Every seed of the rows asked for.
fn matrix(plan: Plan) -> Result<Vec<String>> {
    let site = Arc::new(Site::start(site::target().join("chaos")).context("the servers did not start")?);
    runner::execute_all(&site, plan.jobs, plan.rule, plan.lanes)
}

/// The short part, as tests.
fn trials() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(LANES);
    let site: Arc<Mutex<Option<Arc<Site>>>> = Arc::default();
    let mut trials: Vec<Trial> =
        checks::all().into_iter().map(|(name, check)| Trial::test(name, move || Ok(check()?))).collect();
    // Ignored ones are counted as skipped.
    let lacks_kafka = roc4mllm::dev::lacks_kafka();
    for row in rows::all() {
        for &seed in row.short {
            let (row, site) = (row.clone(), Arc::clone(&site));
            let name = format!("row_{:02}_seed_{seed} {}", row.number, row.fault);
            let trial = Trial::test(name, move || {
                let site = shared(&site)?;
                let report = runner::execute(&site, &row, seed, None);
                if report.is_clean() { Ok(()) } else { Err(Failed::from(report.complaint())) }
            });
            trials.push(trial.with_ignored_flag(lacks_kafka));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The servers end with their handles, which an exit does not drop.
    drop(site);
    conclusion.exit_code()
}

/// The servers, started by the first trial that needs them.
fn shared(site: &Mutex<Option<Arc<Site>>>) -> Result<Arc<Site>> {
    let mut site = site.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(site) = &*site {
        return Ok(Arc::clone(site));
    }
    let started =
        Arc::new(Site::start(site::target().join("chaos-short")).context("the servers did not start")?);
    *site = Some(Arc::clone(&started));
    Ok(started)
}
