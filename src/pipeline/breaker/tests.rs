use super::*;
use crate::{
    fault::Disposition,
    pipeline::patience::{Next, Patience},
};
use proptest::prelude::*;

fn go(breaker: &mut Breaker, now: Instant) -> Leave {
    match breaker.ask(now) {
        Asked::Go(leave) => leave,
        refused => panic!("{refused:?}"),
    }
}

fn fail(breaker: &mut Breaker, asker: u64, now: Instant) -> Change {
    let leave = go(breaker, now);
    breaker.tell(leave, Told::Failure { asker }, now)
}

fn opened(policy: BreakerPolicy, now: Instant) -> Breaker {
    let mut breaker = Breaker::new(policy);
    let changes: Vec<_> = (0..20)
        .map(|asker| if breaker.is_open() { Change::None } else { fail(&mut breaker, asker, now) })
        .collect();
    assert!(changes.contains(&Change::Opened));
    breaker
}

#[test]
fn twenty_failures_in_a_row_open_it_and_a_success_between_them_does_not() {
    let now = Instant::now();
    let mut breaker = Breaker::new(BreakerPolicy { minimum: usize::MAX, ..BreakerPolicy::S3 });
    for asker in 0..19 {
        assert_eq!(fail(&mut breaker, asker, now), Change::None);
    }
    let leave = go(&mut breaker, now);
    breaker.tell(leave, Told::Success, now);
    for asker in 0..19 {
        assert_eq!(fail(&mut breaker, asker, now), Change::None);
    }
    assert_eq!(fail(&mut breaker, 19, now), Change::Opened);
}

#[test]
fn more_than_half_of_the_last_30_s_opens_it() {
    let now = Instant::now();
    let mut breaker = Breaker::new(BreakerPolicy { in_a_row: usize::MAX, ..BreakerPolicy::S3 });
    // Half is not more than half.
    for asker in 0..20 {
        let leave = go(&mut breaker, now);
        breaker.tell(leave, Told::Success, now);
        assert_eq!(fail(&mut breaker, asker, now), Change::None);
    }
    assert_eq!(fail(&mut breaker, 20, now), Change::Opened);

    let mut slow = Breaker::new(BreakerPolicy { in_a_row: usize::MAX, ..BreakerPolicy::S3 });
    for asker in 0..100 {
        assert_eq!(fail(&mut slow, asker, now + Duration::from_secs(2 * asker)), Change::None, "{asker}");
    }
}

#[test]
fn one_object_alone_never_opens_it() {
    let now = Instant::now();
    let mut breaker = Breaker::new(BreakerPolicy::S3);
    for attempt in 0..1000 {
        assert_eq!(fail(&mut breaker, 7, now + Duration::from_millis(attempt)), Change::None);
    }
}

#[test]
fn one_score_in_twenty_that_is_no_number_is_no_news_but_two_are() {
    let now = Instant::now();
    let mut breaker = Breaker::new(BreakerPolicy::MODEL);
    for _ in 0..18 {
        let leave = go(&mut breaker, now);
        breaker.tell(leave, Told::Success, now);
    }
    assert_eq!(fail(&mut breaker, 1, now), Change::None);
    assert_eq!(fail(&mut breaker, 2, now), Change::Opened);
}

#[test]
fn pauses_between_probes_grow_and_a_probe_that_works_closes_it() {
    let mut now = Instant::now();
    let mut breaker = opened(BreakerPolicy::S3, now);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let Asked::At(next) = breaker.ask(now) else { panic!("nobody may ask yet") };
        pauses.push((next - now).as_secs());
        now = next;
        let probe = go(&mut breaker, now);
        assert!(probe.is_probe());
        assert!(matches!(breaker.ask(now), Asked::AfterProbe));
        assert_eq!(breaker.tell(probe, Told::Failure { asker: 0 }, now), Change::None);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
    now += Duration::from_secs(10);
    let probe = go(&mut breaker, now);
    assert_eq!(breaker.tell(probe, Told::Success, now), Change::Closed);
    assert!(!go(&mut breaker, now).is_probe());
}

#[test]
fn leave_from_before_the_opening_neither_closes_it_nor_holds_on() {
    let now = Instant::now();
    let mut breaker = Breaker::new(BreakerPolicy::S3);
    let early = go(&mut breaker, now);
    assert!(breaker.is_current(&early));
    for asker in 0..20 {
        fail(&mut breaker, asker, now);
    }
    assert!(breaker.is_open() && !breaker.is_current(&early));
    assert_eq!(breaker.tell(early, Told::Success, now), Change::None);
    assert!(breaker.is_open());
}

#[derive(Clone, Debug)]
enum Step {
    Ask,
    Tell(prop::sample::Index, Told),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let told = prop_oneof![
        2 => Just(Told::Success),
        5 => (0_u64..40).prop_map(|asker| Told::Failure { asker }),
        1 => Just(Told::Nothing),
    ];
    let step = prop_oneof![
        4 => Just(Step::Ask),
        4 => (any::<prop::sample::Index>(), told).prop_map(|(which, told)| Step::Tell(which, told)),
        1 => (0_u64..3_000).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    /// While it is open nothing gets leave but one probe at a time, never sooner than the first
    /// pause after the opening; and an item that fails meanwhile is held, however late it is.
    #[test]
    fn nothing_passes_while_open_but_the_probe(steps in steps()) {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(BreakerPolicy::S3);
        let mut given: Vec<Leave> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Ask => {
                    let open = breaker.open_since();
                    if let Asked::Go(leave) = breaker.ask(now) {
                        prop_assert_eq!(leave.is_probe(), open.is_some());
                        if let Some(since) = open {
                            prop_assert!(now - since >= BreakerPolicy::S3.first_pause);
                        }
                        given.push(leave);
                    }
                    let current = given.iter().filter(|leave| breaker.is_current(leave)).count();
                    prop_assert!(!breaker.is_open() || current <= 1);
                }
                Step::Tell(which, told) => {
                    if given.is_empty() {
                        continue;
                    }
                    let leave = given.swap_remove(which.index(given.len()));
                    let (was_open, probe) = (breaker.is_open(), leave.is_probe());
                    let change = breaker.tell(leave, told, now);
                    prop_assert!(change != Change::Closed || (was_open && probe && told == Told::Success));
                    let failure = matches!(told, Told::Failure { .. });
                    prop_assert!(change != Change::Opened || (!was_open && failure));
                    let mut patience = Patience::new(Duration::from_secs(1));
                    patience.spend(Duration::from_secs(3600));
                    for step in [Disposition::Retry, Disposition::Hold] {
                        let next = patience.next(step, breaker.is_open(), Duration::ZERO);
                        let expected = if breaker.is_open() { Next::Hold } else { Next::GiveUp };
                        prop_assert_eq!(next, expected);
                    }
                }
            }
        }
    }
}
