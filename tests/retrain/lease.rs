//! One run at a time.

use super::site::{Process, Site, WITHIN};
use roc4mllm::store::{Claim, RunError, RunKind, RunOutcome};
use std::time::Duration;

/// A second process finds the run held and does nothing; one whose run was taken over stops.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused_and_one_that_lost_its_lease_stops() {
    let site = Site::with_champion().await;
    let photos = site.upload(0..60).await;
    site.label_truly(&photos).await;
    let endless = [("train.max_steps", "1000000"), ("retrain.lease_ms", "20000")];
    let mut first = Process::start(site.command(&["retrain"], &endless));
    let training = async {
        while site.store.retrain_runs(1).await.unwrap().first().and_then(|run| run.stage.clone())
            != Some("training".into())
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(WITHIN, training).await.expect("it trains");
    let shown = site.retrain(&[], 11).await;
    assert!(shown.contains("run 1 is under way"), "{shown}");
    assert_eq!(site.store.retrain_runs(9).await.unwrap().len(), 1);

    // As if it had been silent for too long; its heartbeat may come between.
    let claimed = loop {
        site.let_lease_run_out().await;
        let claim = site.store.claim_run(RunKind::Retrain, "a test", Duration::from_secs(600));
        if let Claim::Ours(claimed) = claim.await.unwrap() {
            break claimed;
        }
    };
    assert_eq!((claimed.lease.run, claimed.attempts), (1, 2));
    assert_eq!(first.end().await.code(), Some(75), "the run is not its own any more");
    let run = site.last_run().await;
    assert_eq!((run.outcome, run.attempts), (None, 2), "and it has changed nothing");
}

/// Leases by themselves: who has one, who gets it next, and what a process that lost it can still do.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_held_taken_over_and_given_back() {
    let site = Site::start().await;
    let lease = Duration::from_secs(600);
    let claim = async |kind| site.store.claim_run(kind, "a test", lease).await.unwrap();
    let Claim::Ours(first) = claim(RunKind::Retrain).await else { panic!("nobody has it") };
    assert!(matches!(claim(RunKind::Retrain).await, Claim::Held(held) if held.run == first.lease.run));
    site.store.beat_run(&first.lease, "training", 3, 9).await.unwrap();

    site.store.release_run(&first.lease).await.unwrap();
    // A trial does not throw the run away.
    assert!(matches!(claim(RunKind::Trial).await, Claim::Held(_)));
    let Claim::Ours(second) = claim(RunKind::Retrain).await else { panic!("it was given back") };
    assert_eq!((second.lease.run, second.attempts), (first.lease.run, 2));
    let lost = site.store.beat_run(&first.lease, "training", 4, 9).await;
    assert!(matches!(lost, Err(RunError::Lost(run)) if run == first.lease.run));
    let lost = site.store.end_run(&first.lease, RunOutcome::Failed, "too late", None).await;
    assert!(matches!(lost, Err(RunError::Lost(_))));
    let lost = site.store.write_sides(&first.lease, &[], &[]).await;
    assert!(matches!(lost, Err(RunError::Lost(_))));
    site.store.end_run(&second.lease, RunOutcome::Failed, "for the test", None).await.unwrap();
    assert!(matches!(site.store.release_run(&second.lease).await, Err(RunError::Lost(_))));

    // A trial that nobody goes on with is in nobody's way.
    let Claim::Ours(trial) = claim(RunKind::Trial).await else { panic!("nothing is open") };
    assert!(matches!(claim(RunKind::Retrain).await, Claim::Held(_)));
    site.let_lease_run_out().await;
    let Claim::Ours(next) = claim(RunKind::Retrain).await else { panic!("it is stale") };
    assert_ne!(next.lease.run, trial.lease.run);
    let runs = site.store.retrain_runs(9).await.unwrap();
    assert_eq!(runs[1].outcome.as_deref(), Some("abandoned"));

    // Of many that ask at once one gets it.
    site.store.release_run(&next.lease).await.unwrap();
    let asked = futures_util::future::join_all((0..8).map(|_| claim(RunKind::Retrain))).await;
    assert_eq!(asked.iter().filter(|claim| matches!(claim, Claim::Ours(_))).count(), 1);
}
