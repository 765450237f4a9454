//! Runs that are killed or asked to stop: the next one goes on with them and comes to the same.

use super::site::{Process, Site, text};
use roc4mllm::failpoint::RETRAIN_CRASHES;
use std::time::Duration;

/// Killed once at every step, and in the middle of training, a run ends with the very weights of one that was
/// left alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_is_gone_on_with_and_ends_the_same() {
    let settings = [("train.save_every", "7")];
    let mut versions = Vec::new();
    let mut datasets = Vec::new();
    for killed in [false, true] {
        let site = Site::with_champion().await;
        let photos = site.upload(0..160).await;
        site.label_truly(&photos).await;
        if killed {
            for name in RETRAIN_CRASHES {
                // Training is killed twice, each time beyond a saved state.
                let failpoints = match name {
                    "step-taken" => vec!["step-taken=19*off->1*return", "step-taken=40*off->1*return"]
                        .into_iter()
                        .map(str::to_owned)
                        .collect(),
                    _ => vec![format!("{name}=1*return")],
                };
                for failpoint in failpoints {
                    site.killed_at(&failpoint, &settings).await;
                    site.let_lease_run_out().await;
                }
            }
        }
        let shown = site.retrain(&settings, 0).await;
        assert!(shown.contains("accepted"), "{shown}");
        let runs = site.store.retrain_runs(9).await.unwrap();
        assert_eq!(runs.len(), 1, "one run, however often it was begun");
        assert_eq!(runs[0].attempts, if killed { 9 } else { 1 });
        assert_eq!(runs[0].outcome.as_deref(), Some("accepted"));
        assert!(runs[0].verdict.is_some() && runs[0].report.is_some());
        versions.push(site.champion().await.version);
        // Buckets are named at random, so that data sets differ; how much there is does not.
        datasets.push(runs[0].counts.clone());
        assert_eq!(site.store.champion_history().await.unwrap().len(), 2, "promoted once");
    }
    assert_eq!(versions[0], versions[1]);
    assert_eq!(datasets[0], datasets[1]);
}

/// SIGTERM: the state is saved, the exit code says to start it again, and the next one need not wait for a
/// lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_asked_to_stop_saves_its_state() {
    let site = Site::with_champion().await;
    let photos = site.upload(0..160).await;
    site.label_truly(&photos).await;
    let settings = [("train.max_steps", "100000"), ("retrain.lease_ms", "2000000000")];
    let mut process = Process::start(site.command(&["retrain", "--exit-code"], &settings));
    let training = async {
        // The heartbeat of this lease is no help: the metrics file says how far it is.
        let metrics = site.work.path().join("run-1/.checkpoint.partial/metrics.jsonl");
        while std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(super::site::WITHIN, training).await.expect("it trains");
    process.terminate();
    assert_eq!(process.end().await.code(), Some(75));
    let states = site.work.path().join("run-1/.checkpoint.partial/state");
    let saved = std::fs::read_dir(&states).unwrap().count();
    assert!((1..=2).contains(&saved), "the state of the step that it was at, and perhaps one before");
    let run = site.last_run().await;
    assert_eq!((run.outcome, run.attempts), (None, 1));

    // Another number of steps would be another run: what was begun can't be gone on with, and is ended.
    let output = site.run(&["retrain"], &[("train.max_steps", "30")]).await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let run = site.last_run().await;
    assert_eq!((run.outcome.as_deref(), run.attempts), (Some("failed"), 2));
    assert!(run.reason.unwrap().contains("max_steps 100000 instead of 30"));
    // And the next one begins anew.
    let output = site.run(&["retrain"], &[("train.max_steps", "30")]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(site.last_run().await.id, run.id + 1);
}
