use super::{super::testing::*, *};
use std::time::Duration;

fn object(key: &str) -> ObjectRef {
    ObjectRef::new("photos", key)
}

#[tokio::test]
async fn the_model_of_a_key_depends_on_nothing_but_the_key() {
    let shelf = Shelf::default();
    let (champion, canary) = (shelf.model("v1").await, shelf.model("v2").await);
    let share = Share::new(0.1).unwrap();
    let lineup = Lineup {
        champion: Some(Arc::clone(&champion)),
        canary: Some(Canary { model: Arc::clone(&canary), share }),
        shadows: Vec::new(),
    };
    let chosen = |object: &ObjectRef| Arc::clone(lineup.model_for(Some(object)).unwrap());
    let mut of_canary = 0;
    for number in 0..10_000 {
        let key = object(&format!("{number}.jpg"));
        let mut other = key.clone();
        other.etag = Some("another upload".into());
        assert!(Arc::ptr_eq(&chosen(&key), &chosen(&other)));
        of_canary += usize::from(Arc::ptr_eq(&chosen(&key), &canary));
    }
    assert!((900..=1_100).contains(&of_canary), "{of_canary}");
    assert!(Arc::ptr_eq(lineup.model_for(None).unwrap(), &champion), "what names no object has no key");
}

#[tokio::test]
async fn whoever_asks_while_there_is_no_model_waits_for_the_next() {
    let shelf = Shelf::default();
    let models = Models::new(shelf.model("v1").await);
    models.exchange(|lineup| lineup.champion = None);
    let asking = tokio::spawn({
        let models = Arc::clone(&models);
        async move { models.model_for(Some(&object("a"))).await.version().version.clone() }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!asking.is_finished());
    assert!(models.is_well().unwrap_err().contains("being loaded"));
    let next = shelf.model("v2").await;
    models.exchange(|lineup| lineup.champion = Some(next));
    assert_eq!(asking.await.unwrap(), "v2");
}

/// A failure that all models share ends the process, whichever of them it shows in.
#[tokio::test]
async fn a_failed_device_is_everybodys() {
    let shelf = Shelf::default();
    let models = Models::new(shelf.model("v1").await);
    let canary = shelf.model("v2").await;
    let share = Share::new(0.5).unwrap();
    let model = Arc::clone(&canary);
    models.exchange(|lineup| lineup.canary = Some(Canary { model, share }));
    let device = EngineFailure::Device { reason: "gone".into() };
    assert_eq!(models.lost(&canary, &device), Lost::Everything);
    assert_eq!(models.failed().await, device);

    let models = Models::new(shelf.model("v1").await);
    let exchanged = shelf.model("v3").await;
    assert_eq!(models.lost(&exchanged, &EngineFailure::Stopped), Lost::TryAgain);
    let hung = EngineFailure::Hung { after: Duration::from_secs(31) };
    assert_eq!(models.lost(&exchanged, &hung), Lost::Everything);
}
