//! What metrics say of Postgres, from a real one.

use roc4mllm::dev::TestDatabase;
use roc4mllm::secret::Secret;
use roc4mllm::store::{PostgresSettings, RetrainSummary, Store};
use roc4mllm::telemetry::drift::Distribution;
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;

async fn database() -> (TestDatabase, Store, PgConnection) {
    let database = TestDatabase::create().await.unwrap();
    let settings = PostgresSettings { url: Secret::from(database.url()), ..PostgresSettings::default() };
    let store = Store::connect(&settings).await.unwrap();
    store.migrate().await.unwrap();
    let connection = PgConnection::connect(database.url()).await.unwrap();
    (database, store, connection)
}

/// The first of several workers says what scores are compared with, and all others get that.
#[tokio::test]
async fn the_first_reference_stands() {
    let (_database, store, _) = database().await;
    assert_eq!(store.score_reference("v", None).await.unwrap(), None);
    let (mut ours, mut theirs) = (Distribution::new((1.0, 10.0)), Distribution::new((1.0, 10.0)));
    (0..50).for_each(|index| ours.add(3.0 + f64::from(index) / 10.0));
    theirs.add(9.0);
    assert_eq!(store.score_reference("v", Some(&ours)).await.unwrap().as_ref(), Some(&ours));
    assert_eq!(store.score_reference("v", Some(&theirs)).await.unwrap().as_ref(), Some(&ours));
    assert_eq!(store.score_reference("v", None).await.unwrap(), Some(ours));
    assert_eq!(store.score_reference("w", None).await.unwrap(), None);
}

#[tokio::test]
async fn retraining_is_summed_up() {
    let (_database, store, mut connection) = database().await;
    let none = |outcome: &str| (outcome.to_owned(), 0);
    let empty = RetrainSummary {
        outcomes: ["abandoned", "accepted", "failed", "nothing_to_do", "rejected"].map(none).into(),
        ..RetrainSummary::default()
    };
    assert_eq!(store.retrain_summary().await.unwrap(), empty);
    for (kind, outcome, ended) in [
        ("retrain", "rejected", 100),
        ("retrain", "accepted", 200),
        ("retrain", "rejected", 300),
        ("retrain", "nothing_to_do", 400),
        ("retrain", "rejected", 500),
        ("retrain", "failed", 600),
        ("trial", "rejected", 700),
    ] {
        let insert = "INSERT INTO retrain_runs (kind, outcome, lease_token, lease_ms, holder, ended_at) \
                      VALUES ($1, $2, gen_random_uuid(), 1000, 'a test', to_timestamp($3))";
        sqlx::query(insert)
            .bind(kind)
            .bind(outcome)
            .bind(f64::from(ended))
            .execute(&mut connection)
            .await
            .unwrap();
    }
    let begun = "INSERT INTO retrain_runs (kind, lease_token, lease_ms, holder, heartbeat_at) \
                 VALUES ('retrain', gen_random_uuid(), 60000, 'a test', clock_timestamp() - interval '1 hour')";
    sqlx::raw_sql(begun).execute(&mut connection).await.unwrap();
    let count = |outcome: &str, runs| (outcome.to_owned(), runs);
    let expected = RetrainSummary {
        outcomes: vec![
            count("abandoned", 0),
            count("accepted", 1),
            count("failed", 1),
            count("nothing_to_do", 1),
            count("rejected", 3),
        ],
        running: 0,
        last_success: Some(OffsetDateTime::from_unix_timestamp(500).unwrap()),
        rejections_in_a_row: 2,
    };
    assert_eq!(store.retrain_summary().await.unwrap(), expected, "its lease has run out");
    let beat = "UPDATE retrain_runs SET heartbeat_at = clock_timestamp() WHERE outcome IS NULL";
    sqlx::raw_sql(beat).execute(&mut connection).await.unwrap();
    assert_eq!(store.retrain_summary().await.unwrap(), RetrainSummary { running: 1, ..expected });
}
