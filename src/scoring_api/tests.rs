//! Requests of every kind, against a model that makes scores up.

use super::*;
use crate::{
    fetch::S3Settings,
    image::{ImageSettings, Preprocessor},
    inference::{InferenceSettings, Scorer, ScoringService, stand_in::StandInScorer},
    model::ModelSettings,
    quarantine::Hello,
    secret::Secret,
    serving::ServedModel,
    store::PostgresSettings,
    telemetry::TelemetrySettings,
};
use axum::body::Body;
use serde_json::Value;
use std::convert::Infallible;
use tokio::net::TcpListener;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const MAX_BYTES: u64 = 1 << 20;

async fn models() -> Arc<Models> {
    let scorer = StandInScorer::new(32, 1);
    let preprocessor = Preprocessor::clip(scorer.image_size());
    let settings =
        InferenceSettings { golden_interval_ms: 0, warm_up: false, ..InferenceSettings::default() };
    let build = move || Ok::<_, Infallible>(Box::new(scorer) as Box<dyn Scorer>);
    let service =
        ScoringService::start(build, preprocessor, ImageSettings::default(), &settings).await.unwrap();
    let child = Hello {
        model: ModelSettings::default(),
        image: ImageSettings::default(),
        inference: settings,
        telemetry: TelemetrySettings::default(),
    };
    Models::new(ServedModel::new(service, child, Arc::default()))
}

/// What no request of these tests gets as far as.
async fn nowhere() -> (Fetcher, Store) {
    // A port that refuses: nobody listens on it any more.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let s3 = S3Settings {
        endpoint: Some(format!("http://{address}")),
        region: Some("nowhere".into()),
        access_key_id: Some("a".into()),
        secret_access_key: Some(Secret::from("b")),
        ..S3Settings::default()
    };
    let url = Secret::from(format!("postgres://{address}/none").as_str());
    let store =
        Store::lazy(&PostgresSettings { url, connect_timeout_ms: 200, ..PostgresSettings::default() });
    (Fetcher::connect(&s3).await.unwrap(), store.unwrap())
}

async fn open(settings: ScoringApiSettings) -> ScoringApi {
    let api = ScoringApi::new(&ScoringApiSettings { enabled: true, ..settings });
    let (fetcher, store) = nowhere().await;
    let parts = Parts {
        models: models().await,
        fetcher,
        store,
        buckets: vec!["photos".into()],
        retry: RetrySettings { deadline_ms: 100, ..RetrySettings::default() },
        max_image_bytes: MAX_BYTES,
    };
    api.open(parts, &Metrics::new());
    api
}

fn request(media_type: &str, body: impl Into<Body>) -> Request {
    let builder = Request::builder().method("POST").uri("/v1/score").header(header::CONTENT_TYPE, media_type);
    builder.body(body.into()).unwrap()
}

fn with_token(mut request: Request, token: &str) -> Request {
    let value = format!("Bearer {token}").parse().unwrap();
    request.headers_mut().insert(header::AUTHORIZATION, value);
    request
}

async fn answer(api: &ScoringApi, request: Request) -> (StatusCode, Value, Response) {
    let (head, body) = score(State(api.clone()), request).await.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let value = serde_json::from_slice(&bytes).unwrap();
    (head.status, value, Response::from_parts(head, Body::empty()))
}

fn photo() -> Vec<u8> {
    let pixels: Vec<u8> = (0..64 * 64 * 3).map(|value| (value % 251) as u8).collect();
    let image = turbojpeg::Image {
        pixels: pixels.as_slice(),
        width: 64,
        pitch: 64 * 3,
        height: 64,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(image, 90, turbojpeg::Subsamp::None).unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_gets_its_record() {
    let api = open(ScoringApiSettings::default()).await;
    for media_type in ["image/jpeg", "application/octet-stream", "image/png"] {
        let (status, record, _) = answer(&api, request(media_type, photo())).await;
        assert_eq!(status, StatusCode::OK, "{record}");
        assert_eq!((&record["status"], &record["v"]), (&"scored".into(), &1.into()));
        assert_eq!(record["score"], record["scores"][0]);
        assert!(record["score"].is_f64(), "{record}");
        assert_eq!((&record["width"], &record["height"]), (&64.into(), &64.into()));
        assert_eq!(record["size"], photo().len());
        for absent in ["bucket", "key", "source", "error"] {
            assert!(record[absent].is_null(), "{absent}: {record}");
        }
    }
    let (_, one, _) = answer(&api, request("image/jpeg", photo())).await;
    let (_, other, _) = answer(&api, request("image/jpeg", photo())).await;
    assert_eq!(one["id"], other["id"], "one image, one id");
    assert_eq!(api.counts()[&200], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_a_record_with_the_reason() {
    let api = open(ScoringApiSettings::default()).await;
    let (status, record, _) = answer(&api, request("image/jpeg", "<html>")).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{record}");
    assert_eq!((&record["status"], &record["error"]["code"]), (&"rejected".into(), &"unsupported".into()));
    let (status, record, _) = answer(&api, request("image/jpeg", photo()[..200].to_vec())).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_token_may_ask() {
    let api = open(ScoringApiSettings { token: Secret::from(TOKEN), ..Default::default() }).await;
    let (status, problem, response) = answer(&api, request("image/jpeg", photo())).await;
    assert_eq!((status, &problem["code"]), (StatusCode::UNAUTHORIZED, &"unauthorized".into()));
    assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
    assert!(!problem.to_string().contains(TOKEN));
    let wrong = with_token(request("image/jpeg", photo()), "0123456789abcdef0123456789abcdeF");
    assert_eq!(answer(&api, wrong).await.0, StatusCode::UNAUTHORIZED);
    let right = with_token(request("image/jpeg", photo()), TOKEN);
    assert_eq!(answer(&api, right).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_are_refused() {
    let api = open(ScoringApiSettings::default()).await;
    let too_large = vec![0_u8; MAX_BYTES as usize + 1];
    for (sent, expected) in [
        (request("image/jpeg", too_large), StatusCode::PAYLOAD_TOO_LARGE),
        (request("application/json", vec![b' '; 20_000]), StatusCode::PAYLOAD_TOO_LARGE),
        (request("text/plain", "x"), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (request("multipart/form-data; boundary=x", "x"), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (request("application/json", "{}"), StatusCode::BAD_REQUEST),
        (request("application/json", r#"{"bucket":"other","key":"a"}"#), StatusCode::FORBIDDEN),
        // Neither S3 nor Postgres answers here.
        (request("application/json", r#"{"bucket":"photos","key":"a"}"#), StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let (status, problem, response) = answer(&api, sent).await;
        assert_eq!(status, expected, "{problem}");
        assert_eq!(problem["status"], expected.as_u16());
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers().contains_key(header::RETRY_AFTER), status.is_server_error());
    }
    assert_eq!(api.inner.queue.taken(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back() {
    let api = open(ScoringApiSettings { queue: 2, ..Default::default() }).await;
    // Bodies that never end keep their places.
    let endless = || Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, Infallible>>());
    let held: Vec<_> = (0..2)
        .map(|_| {
            let api = api.clone();
            tokio::spawn(async move { answer(&api, request("image/jpeg", endless())).await.0 })
        })
        .collect();
    while api.inner.queue.taken() < 2 {
        tokio::task::yield_now().await;
    }
    let (status, problem, response) = answer(&api, request("image/jpeg", photo())).await;
    assert_eq!((status, &problem["code"]), (StatusCode::TOO_MANY_REQUESTS, &"queue_full".into()));
    let after: u64 = response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&after), "{after}");
    // A caller that goes away gives its place back.
    for task in &held {
        task.abort();
    }
    while api.inner.queue.taken() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(answer(&api, request("image/jpeg", photo())).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_is_given_up() {
    let api = open(ScoringApiSettings { timeout_ms: 50, ..Default::default() }).await;
    let endless = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, Infallible>>());
    let (status, problem, _) = answer(&api, request("image/jpeg", endless)).await;
    assert_eq!((status, &problem["code"]), (StatusCode::SERVICE_UNAVAILABLE, &"timed_out".into()));
    assert_eq!(api.inner.queue.taken(), 0);
}

#[tokio::test]
async fn before_the_worker_has_started_callers_are_asked_to_wait() {
    let api = ScoringApi::new(&ScoringApiSettings { enabled: true, ..Default::default() });
    let (status, problem, response) = answer(&api, request("image/jpeg", photo())).await;
    assert_eq!((status, &problem["code"]), (StatusCode::SERVICE_UNAVAILABLE, &"starting".into()));
    assert!(response.headers().contains_key(header::RETRY_AFTER));
}
