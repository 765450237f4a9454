use super::{
    super::scripted::{ScriptedScorer, answer, echo},
    *,
};
use proptest::prelude::*;
use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

type Outcome = Result<Vec<Verdict>, ScorerError>;

struct Bench {
    runner: Runner,
    slots: SlotPool,
    metrics: Arc<InferenceMetrics>,
    /// The batches that the scorer saw.
    seen: Rc<RefCell<Vec<Vec<f32>>>>,
}

impl Bench {
    fn new(capacity: usize, script: impl Fn(&[f32]) -> Outcome + 'static) -> Self {
        Self::with(capacity, script, |scorer| scorer)
    }

    fn with(
        capacity: usize,
        script: impl Fn(&[f32]) -> Outcome + 'static,
        change: impl FnOnce(ScriptedScorer) -> ScriptedScorer,
    ) -> Self {
        let seen: Rc<RefCell<Vec<Vec<f32>>>> = Rc::default();
        let log = Rc::clone(&seen);
        let scorer = ScriptedScorer::new(move |values| {
            log.borrow_mut().push(values.to_vec());
            script(values)
        });
        let scorer = change(scorer);
        let slots = SlotPool::new(2 * capacity + 1, 1);
        let metrics = Arc::new(InferenceMetrics::default());
        let cap = BatchCap::new(capacity, Duration::from_secs(600));
        let runner = Runner::new(Box::new(scorer), &slots, cap, Arc::clone(&metrics), Arc::default());
        Self { runner, slots, metrics, seen }
    }

    fn run(&mut self, values: &[f32]) -> (Vec<Verdict>, Result<(), EngineFailure>) {
        let slots = values
            .iter()
            .map(|value| {
                let mut slot = self.slots.lease();
                slot.values_mut().fill(*value);
                slot
            })
            .collect();
        let mut verdicts = Vec::new();
        let outcome = self.runner.run(slots, &mut |verdict| verdicts.push(verdict));
        (verdicts, outcome)
    }
}

fn scores(verdicts: &[Verdict]) -> Vec<Option<f64>> {
    verdicts.iter().map(|verdict| verdict.as_ref().ok().map(Answer::score)).collect()
}

fn fits_up_to(limit: usize) -> impl Fn(&[f32]) -> Outcome {
    move |values| match values.len() {
        size if size > limit => Err(ScorerError::OutOfMemory { batch: size, reason: "full".into() }),
        _ => Ok(echo(values)),
    }
}

#[test]
fn out_of_memory_halves_the_batch_and_lowers_the_cap() {
    let mut bench = Bench::new(8, fits_up_to(2));
    let (verdicts, outcome) = bench.run(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    assert_eq!(outcome, Ok(()));
    assert_eq!(scores(&verdicts), (1..=8).map(|value| Some(f64::from(value))).collect::<Vec<_>>());
    assert_eq!(bench.runner.capacity(), 2);
    assert_eq!(bench.metrics.images.get(), 8);
}

#[test]
fn out_of_memory_at_one_image_fails_the_engine_with_75() {
    let mut bench = Bench::new(4, fits_up_to(0));
    let (verdicts, outcome) = bench.run(&[1.0, 2.0]);
    assert!(verdicts.is_empty());
    assert_eq!(outcome.unwrap_err().exit_code(), 75);
}

#[test]
fn warm_up_finds_the_largest_batch_that_fits() {
    let mut bench = Bench::new(8, fits_up_to(3));
    let slots = bench.slots.clone();
    bench.runner.warm_up(&slots).unwrap();
    assert_eq!(bench.runner.capacity(), 3);
    let sizes: Vec<usize> = bench.seen.borrow().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 2, 8, 4, 2, 3], "the growth of memory, and then the largest size that passes");
    // What is found at start is not tried again later, unlike what happens meanwhile.
    bench.runner.lower_cap(3);
    assert_eq!(bench.runner.cap.at(Instant::now() + Duration::from_secs(601)), 3);
    assert_eq!(
        Bench::new(4, fits_up_to(0)).runner.warm_up(&SlotPool::new(4, 1)).unwrap_err().exit_code(),
        75
    );
}

#[test]
fn warm_up_leaves_the_memory_of_a_device_to_the_device() {
    let mut bench = Bench::with(8, fits_up_to(6), ScriptedScorer::on_a_device);
    let slots = bench.slots.clone();
    bench.runner.warm_up(&slots).unwrap();
    assert_eq!(bench.runner.capacity(), 6);
    let sizes: Vec<usize> = bench.seen.borrow().iter().map(Vec::len).collect();
    assert_eq!(sizes, [8, 4, 6, 7], "the largest first, and no look at this machine's own memory");
}

#[test]
fn a_device_error_fails_the_engine_with_70_and_blames_no_image() {
    let mut bench = Bench::new(4, |_| Err(ScorerError::Device("gone".into())));
    let (verdicts, outcome) = bench.run(&[1.0, 2.0]);
    assert!(verdicts.is_empty());
    assert_eq!(outcome.unwrap_err().exit_code(), 70);
}

#[test]
fn a_model_that_fails_on_a_neutral_image_too_blames_none() {
    let mut bench =
        Bench::new(4, |values| Err(ScorerError::Batch { batch: values.len(), reason: "broken".into() }));
    let (verdicts, outcome) = bench.run(&[1.0]);
    assert!(verdicts.is_empty());
    assert_eq!(outcome, Err(EngineFailure::model("broken")));
}

#[test]
fn a_panic_rejects_only_the_image_it_comes_from() {
    let mut bench = Bench::new(4, |values| {
        assert!(!values.contains(&3.0), "cannot do three");
        Ok(echo(values))
    });
    let (verdicts, outcome) = bench.run(&[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(outcome, Ok(()));
    assert_eq!(scores(&verdicts), [Some(1.0), Some(2.0), None, Some(4.0)]);
    let error = verdicts[2].as_ref().unwrap_err();
    assert_eq!((error.code, error.stage), (ErrorCode::Poison, Stage::Infer));
    assert!(error.message.contains("cannot do three"), "{error}");
}

#[test]
fn a_panic_about_memory_counts_as_out_of_memory() {
    let mut bench = Bench::new(2, |values| {
        assert!(values.len() < 2, "DefaultCPUAllocator: can't allocate memory");
        Ok(echo(values))
    });
    let (verdicts, _) = bench.run(&[1.0, 2.0]);
    assert_eq!(scores(&verdicts), [Some(1.0), Some(2.0)]);
    assert_eq!(bench.metrics.out_of_memory.get(), 1);
}

#[test]
fn a_wrong_number_of_results_is_no_answer() {
    let mut bench = Bench::new(4, |values| Ok(echo(&values[..values.len().min(1)])));
    let (verdicts, outcome) = bench.run(&[1.0, 2.0]);
    assert_eq!((scores(&verdicts), outcome), (vec![Some(1.0), Some(2.0)], Ok(())));
}

#[test]
fn a_score_that_is_not_finite_is_tried_alone_and_then_rejected() {
    let mut bench = Bench::new(4, |values| {
        let alone = values.len() == 1;
        Ok(values
            .iter()
            .map(|value| match *value as i32 {
                // Finite only alone.
                2 => Ok(answer(if alone { 2.0 } else { f64::NAN })),
                3 => Ok(answer(f64::NAN)),
                4 => Ok(answer(1000.0)),
                _ => Ok(answer(f64::from(*value))),
            })
            .collect())
    });
    let (verdicts, outcome) = bench.run(&[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(outcome, Ok(()));
    assert_eq!(scores(&verdicts), [Some(1.0), Some(2.0), None, None]);
    assert_eq!(verdicts[2].as_ref().unwrap_err().code, ErrorCode::NonFiniteScore);
    assert_eq!(verdicts[3].as_ref().unwrap_err().code, ErrorCode::NonFiniteScore);
}

proptest! {
    #[test]
    fn bisection_rejects_the_bad_images_and_no_other(size in 1_usize..40, bad in proptest::collection::btree_set(1_u32..41, 0..4)) {
        let blamed: BTreeSet<u32> = bad.iter().copied().filter(|value| *value as usize <= size).collect();
        let mut bench = {
            let bad = bad.clone();
            Bench::new(size, move |values| {
                match values.iter().any(|value| bad.contains(&(*value as u32))) {
                    true => Err(ScorerError::Batch { batch: values.len(), reason: "bad".into() }),
                    false => Ok(echo(values)),
                }
            })
        };
        let values: Vec<f32> = (1..=size).map(|value| value as f32).collect();
        let (verdicts, outcome) = bench.run(&values);
        prop_assert_eq!(outcome, Ok(()));
        let expected: Vec<_> =
            (1..=size as u32).map(|value| (!blamed.contains(&value)).then_some(f64::from(value))).collect();
        prop_assert_eq!(scores(&verdicts), expected);
        // Each bad image costs at most two runs a level of the bisection, and one of the neutral image.
        let levels = usize::BITS - (size - 1).leading_zeros();
        prop_assert!(bench.seen.borrow().len() <= 1 + blamed.len() * (2 * levels as usize + 1));
    }
}
