//! The page of the real worker: its numbers are SQL's, and nobody votes without the token.

use crate::support::{
    envelopes::{Envelope, Record},
    stack::{Answer, Stack, Worker, exchange},
};
use serde_json::{Value, json};
use sqlx::{PgPool, Row as _};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

const TOKEN: &str = "a-token-of-some-length";
const WITHIN: Duration = Duration::from_secs(240);
/// What is missing need not be waited for, and no test here is about Kafka.
const SETTINGS: [(&str, &str); 2] = [("kafka.delivery", "at_least_once"), ("s3.missing_grace_ms", "0")];

fn start(stack: &Stack, more: &[(&str, &str)]) -> Worker {
    let settings: Vec<_> = SETTINGS.iter().chain(more).copied().collect();
    stack.worker(&settings)
}

async fn get(worker: &Worker, path: &str) -> Answer {
    exchange(worker.http(), "GET", path, "", b"").await
}

async fn vote(worker: &Worker, headers: &str, body: &Value) -> Answer {
    let headers = format!("Content-Type: application/json\r\n{headers}");
    exchange(worker.http(), "POST", "/api/label/votes", &headers, body.to_string().as_bytes()).await
}

/// Everything sent, and something of every status stored.
async fn fill(stack: &Stack) -> PgPool {
    let expected = crate::support::score_images(&stack.checkpoint(), &stack.images());
    let uploads = stack.upload(&expected, 24).await;
    for uploaded in &uploads {
        stack.produce(&Envelope::Plain.record(&[&uploaded.upload])).await;
    }
    stack.produce(&Record::plain("no json".into())).await;
    let odd = json!({"bucket": stack.bucket(), "key": "<img src=x onerror=alert(1)>.jpg"});
    stack.produce(&Record::plain(odd.to_string())).await;
    let pool = PgPool::connect(stack.database_url()).await.expect("a connection");
    let deadline = Instant::now() + WITHIN;
    loop {
        let rows = sqlx::query_scalar("SELECT count(*) FROM scores").fetch_one(&pool).await;
        // The table is not there before the worker has made it.
        if rows.unwrap_or(0_i64) >= 26 {
            return pool;
        }
        assert!(Instant::now() < deadline, "not every item has a row");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn counts(pool: &PgPool, sql: &'static str) -> BTreeMap<String, u64> {
    let rows = sqlx::query(sql).fetch_all(pool).await.expect("rows");
    rows.iter().map(|row| (row.get(0), row.get::<i64, _>(1) as u64)).collect()
}

fn read_counts(value: &Value) -> BTreeMap<String, u64> {
    serde_json::from_value(value.clone()).expect("counts")
}

#[tokio::test(flavor = "multi_thread")]
async fn totals_are_those_of_sql() {
    let stack = Stack::light(2).await;
    let worker = start(&stack, &[("http.page.refresh_ms", "0")]);
    let pool = fill(&stack).await;
    worker.wait_until_ready(WITHIN).await;

    let scores = get(&worker, "/api/scores").await.json()["data"].clone();
    let statuses = counts(&pool, "SELECT status, count(*) FROM scores GROUP BY 1").await;
    assert!(statuses.len() >= 3, "{statuses:?}");
    assert_eq!(read_counts(&scores["statuses"]), statuses);
    let errors =
        "SELECT error ->> 'code', count(*) FROM scores WHERE status IN ('rejected', 'dead') GROUP BY 1";
    assert_eq!(read_counts(&scores["errors"]), counts(&pool, errors).await);
    assert_eq!(scores["sampled"], false);
    let versions =
        counts(&pool, "SELECT model_version, count(*) FROM scores WHERE score IS NOT NULL GROUP BY 1").await;
    for histogram in scores["histograms"].as_array().expect("histograms") {
        let bins: u64 = histogram["bins"].as_array().expect("bins").iter().filter_map(Value::as_u64).sum();
        assert_eq!(Some(&bins), versions.get(histogram["model_version"].as_str().expect("a version")));
        assert_eq!(Some(bins), histogram["scored"].as_u64());
    }
    assert_eq!(scores["histograms"].as_array().map(Vec::len), Some(versions.len()));

    let images = get(&worker, "/api/images").await.json()["data"].clone();
    let ends: (f64, f64) =
        sqlx::query_as("SELECT max(score), min(score) FROM scores").fetch_one(&pool).await.expect("a row");
    assert_eq!(
        (images["best"][0]["score"].as_f64(), images["worst"][0]["score"].as_f64()),
        (Some(ends.0), Some(ends.1))
    );
    assert_eq!(images["latest"].as_array().map(Vec::len), Some(12));

    let failures = get(&worker, "/api/failures").await.json()["data"].clone();
    let failed = statuses.get("rejected").unwrap_or(&0) + statuses.get("dead").unwrap_or(&0);
    assert_eq!(failures.as_array().map(|list| list.len() as u64), Some(failed));
    assert!(failures.as_array().expect("a list").iter().any(|one| one["key"].is_null()), "{failures}");

    let live = get(&worker, "/api/live").await.json();
    assert_eq!(live["ready"], true, "{live}");
    let models = get(&worker, "/api/models").await.json()["data"].clone();
    assert_eq!(models["versions"], json!([]));

    let id = images["best"][0]["id"].as_str().expect("an id");
    let photo = get(&worker, &format!("/api/photos/{id}/small")).await;
    assert_eq!((photo.status, &photo.body[..3]), (200, &[0xFF, 0xD8, 0xFF][..]), "a JPEG");
    assert!(photo.headers.contains("content-type: image/jpeg"), "{}", photo.headers);
    for absent in [
        "00000000-0000-8000-8000-000000000000/small",
        "x/small",
        &format!("{id}/huge"),
        "..%2f..%2fetc/small",
    ] {
        assert_eq!(get(&worker, &format!("/api/photos/{absent}")).await.status, 404, "{absent}");
    }
    let page = get(&worker, "/").await;
    assert!(page.headers.contains("content-security-policy: default-src 'none'"), "{}", page.headers);
    assert_eq!(worker.terminate(), Some(0));
}

/// Every metric that the page's numbers come from is one that the worker has.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_asks_for_no_metric_that_is_not_there() {
    let stack = Stack::light(1).await;
    let worker = start(&stack, &[]);
    fill(&stack).await;
    worker.wait_until_ready(WITHIN).await;
    let deadline = Instant::now() + WITHIN;
    let names = [
        "items_total{status=\"scored\"}",
        "stage_in_flight{stage=\"lookup\"}",
        "stage_in_flight{stage=\"fetch\"}",
        "stage_in_flight{stage=\"infer\"}",
        "stage_in_flight{stage=\"pg\"}",
        "stage_duration_seconds_sum{stage=\"pg\"}",
        "stage_duration_seconds_count{stage=\"pg\"}",
        "lag_records{",
        "batch_queue_images",
        "model_batches_total",
        "model_images_total",
        "items_in_flight",
        "uncommitted_records",
        "items_held",
        "paused",
        "breaker_open{dependency=\"s3\"}",
        "model_info{",
    ];
    loop {
        let metrics = worker.get("/metrics").await;
        let missing: Vec<_> = names.iter().filter(|name| !is_there(&metrics, name)).collect();
        // Lag is measured every few seconds only.
        if missing.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{missing:?} not in {metrics}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Whether a line begins with this name, or name and labels.
fn is_there(metrics: &str, name: &str) -> bool {
    let mut lines = metrics.lines().filter_map(|line| line.strip_prefix("roc4mllm_")?.strip_prefix(name));
    lines.any(|rest| name.contains('{') || rest.starts_with([' ', '{']))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_token_votes() {
    let stack = Stack::light(1).await;
    let label_token = ("http.page.label_token", TOKEN);
    let worker = start(&stack, &[label_token, ("http.page.thumbnails", "false")]);
    let pool = fill(&stack).await;
    worker.wait_until_ready(WITHIN).await;

    let next = get(&worker, "/api/label/next").await.json();
    assert_eq!((&next["writable"], &next["thumbnails"]), (&true.into(), &false.into()));
    assert_eq!(next["choices"].as_array().map(Vec::len), Some(10));
    let one = next["suggestions"][0].clone();
    let ballot = |score: Value| json!({"bucket": one["bucket"], "key": one["key"], "etag": one["etag"], "rater": "ann", "score": score});
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");

    let cookie = format!("Cookie: token={TOKEN}\r\n");
    let basic = format!("Authorization: Basic {TOKEN}\r\n");
    let wrong = bearer("a-token-of-some-lengtH");
    for headers in ["", &cookie, &basic, &wrong] {
        let refused = vote(&worker, headers, &ballot(json!(7))).await;
        assert_eq!(refused.status, 401, "{headers}");
        assert!(refused.headers.contains("www-authenticate: bearer"), "{}", refused.headers);
    }
    let right = bearer(TOKEN);
    assert_eq!(vote(&worker, &right, &ballot(json!(11))).await.status, 400);
    assert_eq!(
        vote(&worker, &right, &json!({"bucket": "other", "key": "a", "rater": "ann", "score": 5}))
            .await
            .status,
        403
    );
    let plain = exchange(
        worker.http(),
        "POST",
        "/api/label/votes",
        &format!("Content-Type: text/plain\r\n{right}"),
        ballot(json!(7)).to_string().as_bytes(),
    )
    .await;
    assert_eq!(plain.status, 415, "a form of another site could send it");
    let rows = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM votes").fetch_one(&pool).await.expect("a count")
    };
    assert_eq!(rows().await, 0, "no refused vote is stored");

    let stored = vote(&worker, &right, &ballot(json!(7))).await;
    assert_eq!((stored.status, &stored.json()["outcome"]), (201, &"stored".into()));
    let again = vote(&worker, &right, &ballot(json!(3))).await;
    assert_eq!(again.status, 201, "a rater may think again");
    let label: (String, f64, i32) = sqlx::query_as("SELECT object_key, score, raters FROM labels")
        .fetch_one(&pool)
        .await
        .expect("a label");
    assert_eq!(label, (one["key"].as_str().expect("a key").to_owned(), 3.0, 1));
    assert_eq!(rows().await, 1);
    let next = get(&worker, "/api/label/next").await.json();
    assert!(!next["suggestions"].as_array().expect("a list").iter().any(|other| other["id"] == one["id"]));
    let id = one["id"].as_str().expect("an id");
    assert_eq!(get(&worker, &format!("/api/photos/{id}/small")).await.status, 404, "photos are off");

    // The same group with a worker that shows less.
    assert_eq!(worker.terminate(), Some(0));
    let worker = start(&stack, &[]);
    worker.wait_until_ready(WITHIN).await;
    let refused = vote(&worker, &right, &ballot(json!(7))).await;
    assert_eq!((refused.status, &refused.json()["code"]), (403, &"read_only".into()));
    assert_eq!(get(&worker, "/api/label/next").await.json()["writable"], false);
    assert_eq!(worker.terminate(), Some(0));
    let worker = start(&stack, &[("http.page.enabled", "false")]);
    worker.wait_until_ready(WITHIN).await;
    for path in
        ["/", "/label", "/assets/page.js", "/api/live", "/api/scores", "/v1/score", "/v1/openapi.json"]
    {
        assert_eq!(get(&worker, path).await.status, 404, "{path}");
    }
    assert_eq!(rows().await, 1);
}
