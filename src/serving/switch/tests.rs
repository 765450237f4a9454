use super::{super::testing::*, *};
use crate::serving::Purpose;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, Ordering};

/// Retries at once.
fn eager(switch: SwitchMode) -> ServingSettings {
    ServingSettings { switch, retry_initial_ms: 0, retry_max_ms: 0, ..ServingSettings::default() }
}

fn serves(models: &Models) -> Option<String> {
    models.lineup().champion.map(|champion| champion.version().version.clone())
}

/// Scores pictures, several at once, until it is told to stop; every image's version.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn begin(models: &Arc<Models>) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let task = |number: u32| {
            let (models, stop) = (Arc::clone(models), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut versions = Vec::new();
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let file = picture(number * 1_000 + round);
                    let scored = score(&models, &format!("{number}/{round}"), &file).await.unwrap();
                    let version = scored.version.version.clone();
                    assert_eq!(scored.answer.score(), expected(&version, &file), "{version}");
                    versions.push(version);
                }
                versions
            })
        };
        Self { stop: Arc::clone(&stop), tasks: (0..24).map(task).collect() }
    }

    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut versions = Vec::new();
        for task in self.tasks {
            versions.extend(task.await.unwrap());
        }
        versions
    }
}

/// Every image under way is answered, by a model that was wholly there and saw its own preprocessing.
async fn champions_change_under_load(switch: SwitchMode, most_at_once: usize) {
    let shelf = Shelf::default();
    let (mut switcher, models, metrics) = shelf.switcher("v1", eager(switch)).await;
    let load = Load::begin(&models);
    for version in ["v2", "v3", "v5", "v7", "v1"] {
        tokio::time::sleep(Duration::from_millis(30)).await;
        switcher.follow(champion(version)).await;
        assert_eq!(serves(&models).as_deref(), Some(version));
        assert_eq!(shelf.in_memory(), [version], "the last one is freed");
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
    let versions = load.end().await;
    for version in ["v1", "v2", "v3", "v5", "v7"] {
        assert!(versions.iter().any(|scored| scored == version), "{version} scored nothing");
    }
    assert_eq!((metrics.switches.get(), metrics.failures.get()), (5, 0));
    assert_eq!(shelf.most_at_once(), most_at_once);
    assert_eq!(metrics.stage(), Stage::Idle);
    assert!(metrics.last_switch().is_some());
    models.shut_down().await;
    assert!(shelf.in_memory().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn champions_change_beside_each_other_under_load() {
    champions_change_under_load(SwitchMode::Beside, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn champions_change_one_at_a_time_under_load() {
    champions_change_under_load(SwitchMode::Drain, 1).await;
}

#[tokio::test]
async fn nothing_that_goes_wrong_with_a_new_champion_touches_the_old_one() {
    for (switch, flaw) in [
        (SwitchMode::Beside, Flaw::Build),
        (SwitchMode::Beside, Flaw::Golden),
        (SwitchMode::Drain, Flaw::Build),
        (SwitchMode::Drain, Flaw::Golden),
    ] {
        let shelf = Shelf::default();
        let (mut switcher, models, metrics) = shelf.switcher("v1", eager(switch)).await;
        shelf.give("v2", flaw);
        for failures in 1..=3 {
            switcher.follow(champion("v2")).await;
            assert_eq!(serves(&models).as_deref(), Some("v1"), "{switch:?} {flaw:?}");
            assert_eq!((metrics.switches.get(), metrics.failures.get()), (0, failures));
            assert_eq!(shelf.in_memory(), ["v1"], "{switch:?} {flaw:?}");
            let file = picture(7);
            let scored = score(&models, "a", &file).await.unwrap();
            assert_eq!(scored.answer.score(), expected("v1", &file));
        }
        shelf.mend("v2");
        switcher.follow(champion("v2")).await;
        assert_eq!((serves(&models).as_deref(), metrics.switches.get()), (Some("v2"), 1));
    }
}

#[tokio::test]
async fn a_version_that_failed_rests_and_another_need_not_wait_for_it() {
    let shelf = Shelf::default();
    let settings = ServingSettings { retry_initial_ms: 86_400_000, ..eager(SwitchMode::Beside) };
    let settings = ServingSettings { retry_max_ms: settings.retry_initial_ms, ..settings };
    let (mut switcher, models, _) = shelf.switcher("v1", settings).await;
    shelf.give("v2", Flaw::Build);
    switcher.follow(champion("v2")).await;
    switcher.follow(champion("v2")).await;
    assert_eq!(shelf.loads().len(), 2, "v1, and v2 once");
    switcher.follow(champion("v3")).await;
    assert_eq!(serves(&models).as_deref(), Some("v3"));
    switcher.follow(champion("v2")).await;
    assert_eq!(shelf.loads().len(), 4, "asked for anew, it is tried anew");
}

#[tokio::test]
async fn a_load_without_an_end_is_given_up_once_and_for_all() {
    let shelf = Shelf::default();
    let settings = ServingSettings { load_timeout_ms: 30, ..eager(SwitchMode::Beside) };
    let (mut switcher, models, metrics) = shelf.switcher("v1", settings).await;
    shelf.give("v2", Flaw::Stuck);
    for _ in 0..3 {
        switcher.follow(champion("v2")).await;
    }
    assert_eq!((serves(&models).as_deref(), metrics.failures.get()), (Some("v1"), 1));
}

#[tokio::test]
async fn without_any_model_left_the_process_is_to_end() {
    let shelf = Shelf::default();
    let (mut switcher, models, _) = shelf.switcher("v1", eager(SwitchMode::Drain)).await;
    shelf.give("v1", Flaw::Build);
    shelf.give("v2", Flaw::Build);
    switcher.follow(champion("v2")).await;
    let failure = models.failed().await;
    assert_eq!(failure.exit_code(), 70);
    assert!(failure.to_string().contains("v2: ") && failure.to_string().contains("v1: "), "{failure}");
    assert!(models.is_well().is_err());
}

#[tokio::test]
async fn a_registry_without_a_champion_changes_nothing() {
    let shelf = Shelf::default();
    let (mut switcher, models, _) = shelf.switcher("v1", eager(SwitchMode::Beside)).await;
    switcher.follow(Wanted::default()).await;
    assert_eq!((serves(&models).as_deref(), shelf.loads().len()), (Some("v1"), 1));
}

fn with_canary(champion_version: &str, canary: &str, share: f64) -> Wanted {
    let canary = RegisteredVersion { canary_share: share, ..registered(canary) };
    Wanted { canary: Some(canary), ..champion(champion_version) }
}

/// The versions that score a hundred keys.
async fn versions(models: &Models) -> Vec<String> {
    let file = picture(1);
    let mut versions = Vec::new();
    for number in 0..100 {
        versions.push(score(models, &number.to_string(), &file).await.unwrap().version.version.clone());
    }
    versions
}

fn those_of(share: f64, canary: &str, champion: &str) -> Vec<String> {
    let share = Share::new(share).unwrap();
    let version = |number: u32| match share.holds(Purpose::Canary, "photos", &number.to_string()) {
        true => canary.to_owned(),
        false => champion.to_owned(),
    };
    (0..100).map(version).collect()
}

#[tokio::test]
async fn a_canary_gets_its_share_grows_and_is_crowned_without_being_loaded_again() {
    let shelf = Shelf::default();
    let (mut switcher, models, metrics) = shelf.switcher("v1", eager(SwitchMode::Beside)).await;
    for share in [0.2, 0.6] {
        switcher.follow(with_canary("v1", "v2", share)).await;
        assert_eq!(versions(&models).await, those_of(share, "v2", "v1"));
    }
    assert_eq!(shelf.in_memory(), ["v1", "v2"]);
    switcher.follow(champion("v2")).await;
    assert_eq!(versions(&models).await, vec!["v2"; 100]);
    assert_eq!(shelf.loads(), [("v1".into(), Duty::Live), ("v2".into(), Duty::Live)]);
    assert_eq!((shelf.in_memory(), metrics.switches.get()), (vec!["v2".to_owned()], 1));
}

#[tokio::test]
async fn a_canary_that_is_withdrawn_is_freed_under_load() {
    let shelf = Shelf::default();
    let (mut switcher, models, _) = shelf.switcher("v1", eager(SwitchMode::Beside)).await;
    switcher.follow(with_canary("v1", "v2", 0.5)).await;
    let load = Load::begin(&models);
    tokio::time::sleep(Duration::from_millis(30)).await;
    switcher.follow(champion("v1")).await;
    assert_eq!(shelf.in_memory(), ["v1"]);
    tokio::time::sleep(Duration::from_millis(30)).await;
    let versions = load.end().await;
    assert!(versions.contains(&"v1".into()) && versions.contains(&"v2".into()));
}

#[tokio::test]
async fn a_canary_that_fails_leaves_its_keys_to_the_champion() {
    let shelf = Shelf::default();
    let settings = ServingSettings {
        retry_initial_ms: 86_400_000,
        retry_max_ms: 86_400_000,
        ..eager(SwitchMode::Beside)
    };
    let (mut switcher, models, metrics) = shelf.switcher("v1", settings).await;
    shelf.give("v2", Flaw::Broken);
    switcher.follow(with_canary("v1", "v2", 0.5)).await;
    assert!(models.lineup().canary.is_some());
    assert_eq!(versions(&models).await, vec!["v1"; 100]);
    assert!(models.lineup().canary.is_none() && models.is_well().is_ok());
    switcher.follow(with_canary("v1", "v2", 0.5)).await;
    assert_eq!((shelf.in_memory(), metrics.failures.get()), (vec!["v1".to_owned()], 1));
    assert!(models.lineup().canary.is_none(), "it rests");
}

#[tokio::test]
async fn a_champion_that_fails_is_everybodys_failure() {
    let shelf = Shelf::default();
    shelf.give("v1", Flaw::Broken);
    let (_switcher, models, _) = shelf.switcher("v1", eager(SwitchMode::Beside)).await;
    match score(&models, "a", &picture(1)).await {
        Err(crate::inference::ScoreFailure::Engine(failure)) => assert_eq!(failure.exit_code(), 75),
        other => panic!("{other:?}"),
    }
    assert_eq!(models.failed().await.exit_code(), 75);
}

#[tokio::test]
async fn one_version_has_one_role() {
    let shelf = Shelf::default();
    let (mut switcher, models, _) = shelf.switcher("v1", eager(SwitchMode::Beside)).await;
    let everything =
        |version: &str| RegisteredVersion { canary_share: 0.5, shadow_share: 0.5, ..registered(version) };
    let wanted = Wanted {
        champion: Some(registered("v1")),
        canary: Some(everything("v2")),
        shadows: vec![everything("v2"), everything("v3")],
    };
    switcher.follow(wanted).await;
    let lineup = models.lineup();
    assert!(lineup.canary.is_some());
    let shadows: Vec<_> =
        lineup.shadows.iter().map(|shadow| shadow.model().version().version.clone()).collect();
    assert_eq!((shadows, shelf.in_memory().len()), (vec!["v3".to_owned()], 3));
    assert!(shelf.loads().contains(&("v3".into(), Duty::Shadow)));

    // As champion it must not keep the ways of a shadow.
    switcher.follow(champion("v3")).await;
    assert_eq!(shelf.in_memory(), ["v3"]);
    assert_eq!(shelf.loads().last(), Some(&("v3".into(), Duty::Live)));
}

#[tokio::test]
async fn where_two_models_do_not_fit_nothing_is_on_trial() {
    let shelf = Shelf::default();
    let (mut switcher, models, metrics) = shelf.switcher("v1", eager(SwitchMode::Drain)).await;
    let shadow = RegisteredVersion { shadow_share: 1.0, ..registered("v3") };
    let wanted = Wanted { shadows: vec![shadow], ..with_canary("v1", "v2", 0.5) };
    switcher.follow(wanted).await;
    assert_eq!(shelf.in_memory(), ["v1"]);
    assert!(models.lineup().shadows.is_empty() && metrics.failures.get() == 0);
}

/// Images that wait for a model that is exchanged are not scored by it once the next one serves.
#[tokio::test(flavor = "multi_thread")]
async fn what_still_waits_goes_to_the_next_model() {
    let shelf = Shelf::default();
    shelf.give("v1", Flaw::Slow(200));
    let (mut switcher, models, _) = shelf.switcher("v1", eager(SwitchMode::Beside)).await;
    let tasks: Vec<_> = (0..60)
        .map(|number| {
            let models = Arc::clone(&models);
            tokio::spawn(async move {
                let file: Bytes = picture(number);
                let scored = score(&models, &number.to_string(), &file).await.unwrap();
                let version = scored.version.version.clone();
                assert_eq!(scored.answer.score(), expected(&version, &file));
                version
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(60)).await;
    switcher.follow(champion("v2")).await;
    let mut by_the_next = 0;
    for task in tasks {
        by_the_next += usize::from(task.await.unwrap() == "v2");
    }
    assert!(by_the_next >= 30, "{by_the_next} of 60");
}
