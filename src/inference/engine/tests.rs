use super::{
    super::{
        queue::{Asker, Work},
        reply::Reply,
        runner::Verdict,
        scorer::{ScoreBatch, ScorerError},
        scripted::{ScriptedScorer, echo},
    },
    *,
};
use std::{
    convert::Infallible,
    sync::mpsc::{self, Receiver, Sender},
};

type Answered = oneshot::Receiver<Result<Scored, ScoreFailure>>;

fn settings(batch_size: usize, linger_ms: u64) -> InferenceSettings {
    InferenceSettings {
        batch_size,
        linger_ms,
        decode_threads: 1,
        warm_up: false,
        ..InferenceSettings::default()
    }
}

async fn engine(
    settings: &InferenceSettings,
    script: impl FnMut(&[f32]) -> Result<Vec<Verdict>, ScorerError> + Send + 'static,
) -> Engine {
    let build = || Ok::<_, Infallible>(Box::new(ScriptedScorer::new(script)) as Box<dyn Scorer>);
    Engine::spawn(build, None, settings, Arc::default()).unwrap().ready().await.unwrap()
}

fn submit(engine: &Engine, value: f32) -> Answered {
    let mut slot = engine.slots().lease();
    slot.values_mut().fill(value);
    let (reply, answer) = Reply::channel();
    let name = format!("{value}.jpg").into();
    engine.submit(Work { slot, asker: Asker { name, width: 4, height: 3, reply } });
    answer
}

type Verdicts = Result<Vec<Verdict>, ScorerError>;

/// A scorer that reports each batch and then waits to be let go.
fn gated() -> (impl FnMut(&[f32]) -> Verdicts + Send, Receiver<usize>, Sender<()>) {
    let (entered, started) = mpsc::channel();
    let (go, gate) = mpsc::channel();
    let script = move |values: &[f32]| {
        let _ = entered.send(values.len());
        let _: Result<(), _> = gate.recv();
        Ok(echo(values))
    };
    (script, started, go)
}

#[tokio::test]
async fn every_image_gets_its_own_answer_with_the_version_of_its_model() {
    let engine = engine(&settings(4, 1), |values| Ok(echo(values))).await;
    let answers: Vec<_> = (0..9).map(|value| submit(&engine, value as f32)).collect();
    for (value, answer) in answers.into_iter().enumerate() {
        let scored = answer.await.unwrap().unwrap();
        assert_eq!(scored.answer.score(), value as f64);
        assert_eq!((scored.width, scored.height), (4, 3));
        assert_eq!(scored.version.model, "scripted");
    }
    assert_eq!(engine.metrics().images.get(), 9);
    assert!(engine.metrics().batches.get() >= 3);
}

#[tokio::test]
async fn a_batch_is_closed_only_when_the_model_asks_and_one_more_is_prefetched() {
    let (script, started, go) = gated();
    let engine = engine(&settings(2, 0), script).await;
    let first = submit(&engine, 0.0);
    assert_eq!(started.recv().unwrap(), 1);
    // The model is busy: what comes now waits together, up to a batch.
    let second = submit(&engine, 1.0);
    let third = submit(&engine, 2.0);
    // Two batches and one image in the decode thread: then preprocessing has to wait.
    let fourth = submit(&engine, 3.0);
    let fifth = submit(&engine, 4.0);
    let slots = engine.slots().clone();
    let blocked = thread::spawn(move || drop(slots.lease()));
    thread::sleep(Duration::from_millis(30));
    assert!(!blocked.is_finished(), "no slot may be left");
    go.send(()).unwrap();
    assert_eq!(started.recv().unwrap(), 2, "a full batch, though nothing lingered");
    go.send(()).unwrap();
    assert_eq!(started.recv().unwrap(), 2);
    go.send(()).unwrap();
    for answer in [first, second, third, fourth, fifth] {
        answer.await.unwrap().unwrap();
    }
    blocked.join().unwrap();
}

#[tokio::test]
async fn an_image_that_nobody_waits_for_is_not_scored() {
    let (script, started, go) = gated();
    let engine = engine(&settings(4, 0), script).await;
    let first = submit(&engine, 0.0);
    assert_eq!(started.recv().unwrap(), 1);
    drop(submit(&engine, 1.0));
    let third = submit(&engine, 2.0);
    go.send(()).unwrap();
    assert_eq!(started.recv().unwrap(), 1, "the abandoned one is left out");
    go.send(()).unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(third.await.unwrap().unwrap().answer.score(), 2.0);
}

#[tokio::test]
async fn a_rejection_names_the_image_and_leaves_its_neighbours_alone() {
    let engine = engine(&settings(3, 50), |values| match values.contains(&1.0) {
        true => Err(ScorerError::Batch { batch: values.len(), reason: "bad".into() }),
        false => Ok(echo(values)),
    })
    .await;
    let answers: Vec<_> = (0..3).map(|value| submit(&engine, value as f32)).collect();
    let mut outcomes = Vec::new();
    for answer in answers {
        outcomes.push(answer.await.unwrap());
    }
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    match &outcomes[1] {
        Err(ScoreFailure::Rejected { error, version }) => {
            assert!(error.message.starts_with("1.jpg: "), "{error}");
            assert_eq!(version.model, "scripted");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_failed_device_answers_everything_and_shows_in_health() {
    let (script, started, go) = gated();
    let mut script = script;
    let failing = move |values: &[f32]| {
        script(values)?;
        Err(ScorerError::Device("gone".into()))
    };
    let engine = engine(&settings(1, 0), failing).await;
    let mut health = engine.health();
    assert!(matches!(&*health.borrow(), Health::Ready(_)));
    let (running, waiting) = (submit(&engine, 0.0), submit(&engine, 1.0));
    assert_eq!(started.recv().unwrap(), 1);
    go.send(()).unwrap();
    for answer in [running, waiting] {
        match answer.await.unwrap() {
            Err(ScoreFailure::Engine(failure)) => assert_eq!(failure.exit_code(), 70),
            other => panic!("{other:?}"),
        }
    }
    let failed = health.wait_for(|health| matches!(health, Health::Failed(_))).await.unwrap().clone();
    assert_eq!(failed, Health::Failed(EngineFailure::device("gone")));
    match submit(&engine, 2.0).await.unwrap() {
        Err(ScoreFailure::Engine(EngineFailure::Device { .. })) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn shutting_down_scores_what_waits_and_refuses_what_comes_later() {
    let engine = engine(&settings(8, 60_000), |values| Ok(echo(values))).await;
    let answers = [submit(&engine, 1.0), submit(&engine, 2.0)];
    engine.shut_down();
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    match submit(&engine, 3.0).await.unwrap() {
        Err(ScoreFailure::Engine(EngineFailure::Stopped)) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_model_that_cannot_be_built_says_why() {
    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("no such checkpoint")]
    struct NoCheckpoint;
    let starting = Engine::spawn(|| Err(NoCheckpoint), None, &settings(1, 0), Arc::default()).unwrap();
    let mut health = starting.health();
    assert!(matches!(starting.ready().await, Err(StartError::Build(NoCheckpoint))));
    health.wait_for(|health| matches!(health, Health::Failed(_))).await.unwrap();

    let panicking = || -> Result<Box<dyn Scorer>, Infallible> { panic!("half a model") };
    match Engine::spawn(panicking, None, &settings(1, 0), Arc::default()).unwrap().ready().await {
        Err(StartError::Panicked(reason)) => assert_eq!(reason, "half a model"),
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test]
async fn a_model_too_large_for_one_image_does_not_start() {
    let settings = InferenceSettings { warm_up: true, ..settings(4, 0) };
    let script =
        |values: &[f32]| Err(ScorerError::OutOfMemory { batch: values.len(), reason: "full".into() });
    let build = move || Ok::<_, Infallible>(Box::new(ScriptedScorer::new(script)) as Box<dyn Scorer>);
    match Engine::spawn(build, None, &settings, Arc::default()).unwrap().ready().await {
        Err(StartError::Engine(failure)) => assert_eq!(failure.exit_code(), 75),
        other => panic!("{:?}", other.err()),
    }
}

/// What holds the scorer is not `Send`, as a model behind raw pointers is not.
#[tokio::test]
async fn a_scorer_need_not_be_send() {
    struct Local(std::rc::Rc<()>, ScriptedScorer);
    impl Scorer for Local {
        fn image_size(&self) -> usize {
            self.1.image_size()
        }
        fn version(&self) -> &ModelVersion {
            self.1.version()
        }
        fn score_range(&self) -> (f64, f64) {
            self.1.score_range()
        }
        fn score(&mut self, batch: &ScoreBatch) -> Result<Vec<Verdict>, ScorerError> {
            assert_eq!(std::rc::Rc::strong_count(&self.0), 1);
            self.1.score(batch)
        }
    }
    let build = || {
        let inner = ScriptedScorer::new(|values| Ok(echo(values)));
        Ok::<_, Infallible>(Box::new(Local(std::rc::Rc::new(()), inner)) as Box<dyn Scorer>)
    };
    let engine = Engine::spawn(build, None, &settings(1, 0), Arc::default()).unwrap().ready().await.unwrap();
    assert_eq!(submit(&engine, 5.0).await.unwrap().unwrap().answer.score(), 5.0);
}

#[tokio::test]
async fn a_run_that_hangs_fails_the_engine_with_71_while_its_thread_still_hangs() {
    let (script, started, go) = gated();
    let settings = InferenceSettings { hang_timeout_ms: 40, ..settings(1, 0) };
    let engine = engine(&settings, script).await;
    let _running = submit(&engine, 0.0);
    assert_eq!(started.recv().unwrap(), 1);
    let waiting = submit(&engine, 1.0);
    match waiting.await.unwrap() {
        Err(ScoreFailure::Engine(failure)) => assert_eq!(failure.exit_code(), 71, "{failure}"),
        other => panic!("{other:?}"),
    }
    let mut health = engine.health();
    let hung = |health: &Health| matches!(health, Health::Failed(EngineFailure::Hung { .. }));
    health.wait_for(hung).await.unwrap();
    // Lets the thread go, which changes nothing any more.
    go.send(()).unwrap();
    assert!(hung(&health.borrow()));
}

#[tokio::test]
async fn a_slow_run_within_its_time_is_left_alone() {
    let settings = InferenceSettings { hang_timeout_ms: 60_000, ..settings(1, 0) };
    let slow = |values: &[f32]| {
        thread::sleep(Duration::from_millis(50));
        Ok(echo(values))
    };
    let engine = engine(&settings, slow).await;
    assert_eq!(submit(&engine, 3.0).await.unwrap().unwrap().answer.score(), 3.0);
    assert!(matches!(&*engine.health().borrow(), Health::Ready(_)));
}

/// A model whose golden image gets `scores`, one after the other; other images get their own value.
async fn with_golden(scores: &'static [f64]) -> Result<Engine, StartError<Infallible>> {
    use crate::{image::Preprocessor, inference::scripted};
    let golden = GoldenImage::new(Preprocessor::clip(1));
    let mut values = [0.0; 3];
    golden.write(&mut values);
    let mut left = scores.iter();
    let script = move |batch: &[f32]| match batch == [values[0]] {
        false => Ok(echo(batch)),
        true => match left.next() {
            Some(score) => Ok(vec![Ok(scripted::answer(*score))]),
            None => Err(ScorerError::Batch { batch: 1, reason: "no score is left".into() }),
        },
    };
    let build = || Ok::<_, Infallible>(Box::new(ScriptedScorer::new(script)) as Box<dyn Scorer>);
    let settings = InferenceSettings { golden_interval_ms: 5, ..settings(4, 0) };
    Engine::spawn(build, Some(golden), &settings, Arc::default())?.ready().await
}

#[tokio::test]
async fn a_golden_image_may_be_wrong_once_but_not_twice_in_a_row() {
    let engine = with_golden(&[5.0, 5.0, 7.0, 5.0, 5.0004, 8.0, 8.5]).await.unwrap();
    assert_eq!(submit(&engine, 30.0).await.unwrap().unwrap().answer.score(), 30.0);
    let mut health = engine.health();
    let failed = health.wait_for(|health| matches!(health, Health::Failed(_))).await.unwrap().clone();
    let Health::Failed(failure) = failed else { panic!("{failed:?}") };
    assert_eq!(failure.exit_code(), 70);
    assert!(failure.to_string().contains("was 5.000000 at start and is 8.500000 now"), "{failure}");
    assert!(engine.metrics().golden.last().is_some_and(|(right, _)| !right));
    assert_eq!(engine.metrics().images.get(), 1, "the golden image counts in nothing");
}

#[tokio::test]
async fn a_model_without_a_score_for_the_golden_image_does_not_start() {
    for scores in [&[f64::NAN][..], &[]] {
        match with_golden(scores).await {
            Err(StartError::Engine(failure @ EngineFailure::Golden { .. })) => {
                assert_eq!(failure.exit_code(), 70);
            }
            other => panic!("{:?}", other.err()),
        }
    }
}
