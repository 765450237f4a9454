use super::*;
use crate::{
    fault::{ErrorCode, Stage},
    image::PREPROCESS_REVISION,
    inference::stand_in::StandInScorer,
};
use futures_util::{StreamExt, stream};
use std::{convert::Infallible, fs, path::Path, time::Duration};

/// A service whose preprocessing is that of a made-up checkpoint for `edge` pixels.
async fn service(edge: usize, settings: &InferenceSettings) -> ScoringService {
    let scorer = StandInScorer::new(edge, PREPROCESS_REVISION);
    let build = move || Ok::<_, Infallible>(Box::new(scorer) as Box<dyn Scorer>);
    ScoringService::start(build, preprocessor(edge), ImageSettings::default(), settings).await.unwrap()
}

fn preprocessor(edge: usize) -> Preprocessor {
    let folder = tempfile::tempdir().unwrap();
    write_processor(folder.path(), edge);
    Preprocessor::open(folder.path()).unwrap()
}

fn write_processor(folder: &Path, edge: usize) {
    let config = serde_json::json!({
        "crop_size": edge, "size": edge, "do_center_crop": true, "do_normalize": true, "do_resize": true,
        "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    });
    fs::write(folder.join("preprocessor_config.json"), config.to_string()).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
}

/// A plain bitmap of `width` by `height` pixels of one grey.
fn bitmap(width: u32, height: u32, grey: u8) -> Bytes {
    let mut file = std::io::Cursor::new(Vec::new());
    let pixels = image::RgbImage::from_pixel(width, height, image::Rgb([grey; 3]));
    pixels.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner().into()
}

#[tokio::test]
async fn many_images_at_once_give_what_each_gives_alone() {
    let alone = service(8, &InferenceSettings { batch_size: 1, ..Default::default() }).await;
    let together = service(8, &InferenceSettings { batch_size: 5, ..Default::default() }).await;
    let images: Vec<Bytes> = (0..40).map(|index| bitmap(4 + index, 9, (index * 6) as u8)).collect();
    let answers: Vec<_> = stream::iter(images.iter().cloned())
        .map(|bytes| together.score("a", bytes))
        .buffered(16)
        .collect()
        .await;
    for (index, (bytes, answer)) in images.into_iter().zip(answers).enumerate() {
        let answer = answer.unwrap();
        assert_eq!((answer.width, answer.height), (4 + index as u32, 9));
        assert_eq!(answer, alone.score("b", bytes).await.unwrap());
    }
    assert_eq!(together.metrics().decoded.get(), 40);
    assert!(together.metrics().batches.get() < 40, "some batch held more than one image");
}

#[tokio::test]
async fn a_file_that_is_no_image_is_rejected_by_name_and_the_rest_goes_on() {
    let service = service(8, &InferenceSettings::default()).await;
    let html = Bytes::from_static(b"<!DOCTYPE html><html><body>Not found</body></html>");
    match service.score("uploads/page.jpg", html).await {
        Err(ScoreFailure::Rejected { error, version }) => {
            assert_eq!((error.code, error.stage), (ErrorCode::Unsupported, Stage::Decode));
            assert!(error.message.starts_with("uploads/page.jpg: "), "{error}");
            assert_eq!(version.version, "stand-in");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(service.metrics().undecodable.get(), 1);
    service.score("ok", bitmap(3, 3, 7)).await.unwrap();
}

#[tokio::test]
async fn more_images_than_fit_in_flight_wait_instead_of_piling_up() {
    let settings = InferenceSettings {
        batch_size: 2,
        decode_threads: 1,
        max_in_flight: 3,
        decoded_megapixels: 1,
        ..Default::default()
    };
    let service = service(8, &settings).await;
    let images = (0..20).map(|index| service.score("a", bitmap(40, 30, index)));
    let answers = futures_util::future::join_all(images).await;
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn shutting_down_answers_what_is_under_way_and_refuses_the_rest() {
    let settings = InferenceSettings { batch_size: 1, linger_ms: 0, decode_threads: 1, ..Default::default() };
    let scorer = StandInScorer::new(8, 1).taking(Duration::from_millis(20));
    let build = move || Ok::<_, Infallible>(Box::new(scorer) as Box<dyn Scorer>);
    let service = Arc::new(
        ScoringService::start(build, preprocessor(8), ImageSettings::default(), &settings).await.unwrap(),
    );
    let under_way = tokio::spawn({
        let service = Arc::clone(&service);
        async move { service.score("a", bitmap(3, 3, 1)).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    service.shut_down().await;
    under_way.await.unwrap().unwrap();
    match service.score("b", bitmap(3, 3, 2)).await {
        Err(ScoreFailure::Engine(EngineFailure::Stopped)) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn preprocessing_for_another_model_is_refused() {
    let scorer = StandInScorer::new(16, 1);
    let build = move || Ok::<_, Infallible>(Box::new(scorer) as Box<dyn Scorer>);
    let started =
        ScoringService::start(build, preprocessor(8), ImageSettings::default(), &Default::default()).await;
    match started {
        Err(StartError::InputSize { preprocessed: 8, expected: 16 }) => {}
        other => panic!("{:?}", other.err()),
    }
}

/// Images that the hanging run holds are answered too: nothing waits for the thread.
#[tokio::test]
async fn a_hanging_run_is_told_to_everyone() {
    let settings = InferenceSettings {
        batch_size: 1,
        linger_ms: 0,
        warm_up: false,
        golden_interval_ms: 0,
        hang_timeout_ms: 50,
        ..Default::default()
    };
    let scorer = StandInScorer::new(8, 1).taking(Duration::from_secs(20));
    let build = move || Ok::<_, Infallible>(Box::new(scorer) as Box<dyn Scorer>);
    let service =
        ScoringService::start(build, preprocessor(8), ImageSettings::default(), &settings).await.unwrap();
    let images = (0..3).map(|grey| service.score("a", bitmap(3, 3, grey)));
    for answer in futures_util::future::join_all(images).await {
        match answer {
            Err(ScoreFailure::Engine(failure)) => assert_eq!(failure.exit_code(), 71),
            other => panic!("{other:?}"),
        }
    }
}
