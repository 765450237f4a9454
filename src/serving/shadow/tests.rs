use super::{super::testing::*, *};
use std::sync::atomic::{AtomicBool, Ordering};

fn object(number: u32) -> ObjectRef {
    ObjectRef::new("photos", number.to_string())
}

fn id(number: u32) -> ScoreId {
    ScoreId::of_position("t", 0, i64::from(number), 0)
}

struct Bench {
    shadow: Arc<Shadow>,
    shelf: Shelf,
    metrics: Arc<ShadowMetrics>,
    busy: Arc<AtomicBool>,
}

impl Bench {
    async fn new(share: f64) -> Self {
        Self::recording(share, |shelf, candidate, champion, pairs| {
            Box::pin(async move {
                super::super::switch::Releases::record_shadow(&shelf, &candidate, &champion, &pairs).await
            })
        })
        .await
    }

    async fn recording(
        share: f64,
        record: impl Fn(
            Shelf,
            String,
            String,
            Vec<ShadowPair>,
        ) -> futures_util::future::BoxFuture<'static, Result<(), StoreError>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let (shelf, busy) = (Shelf::default(), Arc::<AtomicBool>::default());
        let (metrics, is_busy) = (Arc::<ShadowMetrics>::default(), Arc::clone(&busy));
        let books = shelf.clone();
        let shadow = Shadow::start(
            shelf.model("v2").await,
            Share::new(share).unwrap(),
            Arc::clone(&metrics),
            move || is_busy.load(Ordering::Relaxed),
            move |candidate, champion, pairs| record(books.clone(), candidate, champion, pairs),
        );
        Self { shadow, shelf, metrics, busy }
    }

    /// Ends the shadow once it has worked off what waits.
    async fn end(self) -> (Shelf, Arc<ShadowMetrics>) {
        let Self { shadow, shelf, metrics, .. } = self;
        let model = Arc::clone(shadow.model());
        drop(shadow);
        // The task holds the other one.
        while Arc::strong_count(&model) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (shelf, metrics)
    }
}

#[tokio::test]
async fn what_a_shadow_scores_is_recorded_beside_what_was_published() {
    let bench = Bench::new(1.0).await;
    for number in 0..20 {
        let ticket = bench.shadow.ticket(&object(number), &picture(number)).unwrap();
        ticket.compare(id(number), "v1+assess+f32".into(), 4.0);
    }
    let (shelf, metrics) = bench.end().await;
    let recorded = shelf.recorded();
    assert_eq!((recorded.len(), metrics.scored.get(), metrics.dropped.get()), (20, 20, 0));
    for (number, (candidate, champion, pair)) in (0..).zip(recorded) {
        assert_eq!((candidate.as_str(), champion.as_str()), ("v2", "v1+assess+f32"));
        assert_eq!(
            pair,
            ShadowPair { id: id(number), champion: 4.0, candidate: expected("v2", &picture(number)) }
        );
    }
}

#[tokio::test]
async fn only_the_sample_is_seen_and_a_place_is_given_back_with_its_ticket() {
    let bench = Bench::new(0.3).await;
    let share = Share::new(0.3).unwrap();
    for number in 0..500 {
        let ticket = bench.shadow.ticket(&object(number), &picture(1));
        assert_eq!(ticket.is_some(), share.holds(Purpose::Shadow, "photos", &number.to_string()), "{number}");
    }
    assert_eq!(bench.metrics.dropped.get(), 0);
}

/// However busy the worker is, offering an image takes no time and holds no more than its places.
#[tokio::test]
async fn a_busy_worker_drops_what_the_shadow_has_no_place_for() {
    let bench = Bench::new(1.0).await;
    bench.busy.store(true, Ordering::Relaxed);
    let file = picture(3);
    for number in 0..100 {
        if let Some(ticket) = bench.shadow.ticket(&object(number), &file) {
            ticket.compare(id(number), "v1".into(), 4.0);
        }
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bench.metrics.scored.get(), 0, "live images come first");
    let dropped = bench.metrics.dropped.get();
    assert!((100 - PLACES as u64 - 1..=100 - PLACES as u64).contains(&dropped), "{dropped}");

    let large = Bytes::from(vec![0; (ROOM_KIB as usize + 1) << 10]);
    assert!(bench.shadow.ticket(&object(1), &large).is_none());
    bench.busy.store(false, Ordering::Relaxed);
    let (_, metrics) = bench.end().await;
    assert_eq!(metrics.scored.get() + metrics.dropped.get(), 101);
}

#[tokio::test]
async fn a_larger_share_keeps_what_was_found() {
    let bench = Bench::new(0.0).await;
    assert!(bench.shadow.ticket(&object(1), &picture(1)).is_none());
    let all = bench.shadow.with_share(Share::new(1.0).unwrap());
    let ticket = all.ticket(&object(1), &picture(1)).unwrap();
    ticket.compare(id(1), "v1".into(), 4.0);
    while bench.metrics.scored.get() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((bench.shadow.sums().images, all.sums().images), (1, 1));
}

#[tokio::test]
async fn an_image_that_the_candidate_refuses_is_counted_and_no_pair() {
    let bench = Bench::new(1.0).await;
    let ticket = bench.shadow.ticket(&object(1), &Bytes::from_static(b"no image")).unwrap();
    ticket.compare(id(1), "v1".into(), 4.0);
    let (shelf, metrics) = bench.end().await;
    assert_eq!((shelf.recorded().len(), metrics.unscored.get(), metrics.scored.get()), (0, 1, 0));
}

#[test]
fn pairs_that_postgres_does_not_take_wait_in_bounds() {
    let mut pairs = Pairs::default();
    let pair = |number: u32| ShadowPair { id: id(number), champion: 1.0, candidate: 2.0 };
    let batch: Vec<ShadowPair> = (0..1_500).map(pair).collect();
    assert_eq!(pairs.put_back("v1".into(), batch.clone()), 0);
    assert!(pairs.rest());
    assert_eq!(pairs.put_back("v1".into(), batch), 1_000);
    assert_eq!(pairs.count(), PAIRS_WAITING);
    assert_eq!(pairs.take()["v1"].len(), PAIRS_WAITING);
    assert!(!pairs.rest());
}
