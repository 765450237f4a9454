//! Postgres, for real: a server of its own, or the one at `ROC4MLLM_TEST_DATABASE_URL`.

use roc4mllm::dev::{Postgres, TestDatabase};
use roc4mllm::fault::{Disposition, ErrorCode, ItemError, Stage};
use roc4mllm::object::{ContentDigest, ContentKey, ObjectRef, ScoreId};
use roc4mllm::retry::RetrySettings;
use roc4mllm::score::{Answer, DecodeKind, ItemStatus, ModelVersion, ScoreValue};
use roc4mllm::secret::Secret;
use roc4mllm::store::{
    Claim, ClaimedRun, Cursor, KnownAnswer, Order, PAIRS_KEPT, PostgresSettings, RunKind, RunOutcome,
    RunVerdict, ScoreRow, ShadowPair, ShadowSums, SourcePosition, Store, StoreError, StoredScore,
    WriteRequest, write_batches,
};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

struct Fixture {
    store: Store,
    settings: PostgresSettings,
    database: TestDatabase,
}

async fn fixture() -> Fixture {
    let database = TestDatabase::create().await.unwrap();
    let settings = settings(database.url());
    let store = Store::connect(&settings).await.unwrap();
    store.migrate().await.unwrap();
    Fixture { store, settings, database }
}

fn settings(url: &str) -> PostgresSettings {
    PostgresSettings { url: Secret::from(url), ..PostgresSettings::default() }
}

fn model() -> ModelVersion {
    ModelVersion { model: "mplug_owl2".into(), version: "sha256:0".into(), preprocess_revision: 1 }
}

fn object(key: &str, sequencer: Option<&str>) -> ObjectRef {
    ObjectRef {
        sequencer: sequencer.map(str::to_owned),
        etag: Some("e".into()),
        ..ObjectRef::new("photos", key)
    }
}

fn answer(score: f64) -> Answer {
    let distribution = vec![0.1, 0.2, 0.3, 1e-9, f32::MIN_POSITIVE];
    let value = |score| ScoreValue { score, distribution: distribution.clone(), std: 1.0 };
    Answer {
        scores: vec![value(score), value(1.0 / 3.0)],
        text: format!("The aesthetic rate is {score} ."),
        tokens: vec![1, 2],
        decode: DecodeKind::Generated,
        forwards: 13,
    }
}

fn new_id() -> ScoreId {
    ScoreId(Uuid::new_v4())
}

fn scored(id: ScoreId, key: &str, score: f64) -> ScoreRow {
    let source = SourcePosition { topic: "uploads".into(), partition: 7, offset: 1 << 40, item: 2 };
    ScoreRow::scored(id, object(key, Some("0055AED6")), &model(), &answer(score), Some(source))
}

/// A scored row of `a.jpg` whose event has this sequencer.
fn created(id: ScoreId, sequencer: Option<&str>) -> ScoreRow {
    ScoreRow { object: Some(object("a.jpg", sequencer)), ..scored(id, "a.jpg", 5.0) }
}

fn rejected(id: ScoreId, key: &str) -> ScoreRow {
    let message = format!("{key}: no image; re-upload it");
    let error = ItemError::new(ErrorCode::DecodeFailed, Stage::Decode, message);
    let object = object(key, Some("0055AED6"));
    ScoreRow::unscored(id, Some(object), &model(), ItemStatus::Rejected, Some(error), None)
}

/// The removal of `a.jpg` at this sequencer.
fn removed(id: ScoreId, sequencer: &str) -> ScoreRow {
    let object = object("a.jpg", Some(sequencer));
    ScoreRow::unscored(id, Some(object), &model(), ItemStatus::Deleted, None, None)
}

#[tokio::test]
async fn a_row_reads_back_as_it_was_written() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let rows = [scored(new_id(), "a//ü +%2F.jpg", 5.0 + 1.0 / 3.0), rejected(new_id(), "b.jpg")];
    let written = store.upsert(&rows).await.unwrap();
    let read = store.lookup(&[rows[0].id, rows[1].id, new_id()]).await.unwrap();
    assert_eq!(read.len(), 2);
    for row in &rows {
        assert!(!written[&row.id].reused);
        assert_eq!(written[&row.id].row, *row);
        let mut expected = row.clone();
        expected.object.as_mut().unwrap().sequencer = Some("0055AED6000000000000000000000000".into());
        assert_eq!(read[&row.id].row, expected);
        assert_eq!(read[&row.id].deleted_at, None);
    }
    let listed = store.list(10).await.unwrap();
    assert_eq!(listed.iter().map(|stored| stored.row.id).collect::<Vec<_>>(), [rows[0].id, rows[1].id]);
    let counts = store.count().await.unwrap();
    assert_eq!((counts[&ItemStatus::Scored], counts[&ItemStatus::Rejected], counts.len()), (1, 1, 2));
}

#[tokio::test]
async fn a_record_without_object_has_a_row_too() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let id = ScoreId::of_position("uploads", 0, 1, 0);
    let error = ItemError::new(ErrorCode::MalformedEvent, Stage::Parse, "not JSON; see the README");
    let row = ScoreRow::unscored(id, None, &model(), ItemStatus::Rejected, Some(error), None);
    store.upsert(std::slice::from_ref(&row)).await.unwrap();
    assert_eq!(store.lookup(&[id]).await.unwrap()[&id].row, row);
}

#[tokio::test]
async fn the_first_score_wins() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let id = new_id();
    store.upsert(&[scored(id, "a.jpg", 5.0)]).await.unwrap();
    for later in [scored(id, "a.jpg", 5.1), rejected(id, "a.jpg")] {
        let stored = store.upsert(&[later]).await.unwrap().remove(&id).unwrap();
        assert!(stored.reused);
        assert_eq!(stored.row.score, Some(5.0));
        assert_eq!(stored.row.scores, [5.0, 1.0 / 3.0]);
    }
    assert_eq!(store.lookup(&[id]).await.unwrap()[&id].row.score, Some(5.0));
}

#[tokio::test]
async fn a_rejected_item_that_is_scored_later_is_upgraded() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let id = new_id();
    store.upsert(&[rejected(id, "a.jpg")]).await.unwrap();
    let upgraded = store.upsert(&[scored(id, "a.jpg", 4.0)]).await.unwrap().remove(&id).unwrap();
    assert!(!upgraded.reused);
    let row = store.lookup(&[id]).await.unwrap().remove(&id).unwrap().row;
    assert_eq!((row.status, row.score, row.error), (ItemStatus::Scored, Some(4.0), None));
}

#[tokio::test]
async fn duplicates_within_a_batch_give_one_row() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let (one, other) = (new_id(), new_id());
    let rows = [rejected(one, "a"), scored(other, "b", 2.0), scored(one, "a", 3.0), scored(one, "a", 3.5)];
    let stored = store.upsert(&rows).await.unwrap();
    assert_eq!((stored.len(), stored[&one].row.score), (2, Some(3.0)));
    assert_eq!(store.list(10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_is_no_number_is_refused() {
    let Fixture { store, database: _database, .. } = fixture().await;
    for score in [f64::NAN, f64::INFINITY, 2e6, -2e6] {
        let error = store.upsert(&[scored(new_id(), "a.jpg", score)]).await.unwrap_err();
        assert!(matches!(&error, StoreError::Refused { code, .. } if code == "23514"), "{error}");
        assert_eq!(error.disposition(), Disposition::Reject);
    }
    let nul = store.upsert(&[rejected(new_id(), "a\0b")]).await.unwrap_err();
    assert!(matches!(&nul, StoreError::Refused { code, .. } if code == "22021"), "{nul}");
    assert_eq!(nul.disposition(), Disposition::Reject);
    assert!(store.list(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_score_is_there_if_and_only_if_the_status_says_so() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let mut without = scored(new_id(), "a.jpg", 1.0);
    without.score = None;
    let mut with = rejected(new_id(), "a.jpg");
    with.score = Some(1.0);
    for row in [without, with] {
        assert_eq!(store.upsert(&[row]).await.unwrap_err().disposition(), Disposition::Reject);
    }
}

#[tokio::test]
async fn a_removal_marks_older_rows_and_a_replay_resurrects_nothing() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let (old, new, unordered, neighbour) = (new_id(), new_id(), new_id(), new_id());
    let rows = [
        created(old, Some("0055A")),
        created(new, Some("0055C")),
        created(unordered, None),
        ScoreRow { object: Some(object("b.jpg", Some("0055A"))), ..scored(neighbour, "b.jpg", 5.0) },
    ];
    store.upsert(&rows).await.unwrap();
    let removal = removed(new_id(), "0055B1");
    store.upsert(std::slice::from_ref(&removal)).await.unwrap();
    store.upsert(&rows).await.unwrap();
    let stored = store.lookup(&[old, new, unordered, neighbour, removal.id]).await.unwrap();
    assert_eq!(stored[&old].deleted_at, Some(removal.scored_at));
    assert_eq!(stored[&unordered].deleted_at, Some(removal.scored_at));
    assert_eq!(stored[&new].deleted_at, None);
    assert_eq!(stored[&neighbour].deleted_at, None);
    assert_eq!(stored[&removal.id].row.status, ItemStatus::Deleted);
    assert_eq!(stored[&old].row.score, Some(5.0));
}

#[tokio::test]
async fn a_row_that_arrives_after_its_removal_is_marked() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let removal = removed(new_id(), "0055B");
    store.upsert(std::slice::from_ref(&removal)).await.unwrap();
    let (late, recreated) = (new_id(), new_id());
    store.upsert(&[created(late, Some("0055A")), created(recreated, Some("0055C"))]).await.unwrap();
    let stored = store.lookup(&[late, recreated]).await.unwrap();
    assert_eq!(stored[&late].deleted_at, Some(removal.scored_at));
    assert_eq!(stored[&recreated].deleted_at, None);

    // The same key is removed again: its tombstone has the same id, and moves on.
    store.upsert(&[removed(removal.id, "0055D")]).await.unwrap();
    assert!(store.lookup(&[recreated]).await.unwrap()[&recreated].deleted_at.is_some());
    let later = new_id();
    store.upsert(&[created(later, Some("0055CC"))]).await.unwrap();
    assert!(store.lookup(&[later]).await.unwrap()[&later].deleted_at.is_some());
}

#[tokio::test]
async fn removing_one_version_leaves_the_others() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let version = |version: &str, sequencer| {
        Some(ObjectRef { version_id: Some(version.into()), ..object("a.jpg", Some(sequencer)) })
    };
    let (first, second) = (new_id(), new_id());
    let rows = [
        ScoreRow { object: version("v1", "1"), ..scored(first, "a.jpg", 1.0) },
        ScoreRow { object: version("v2", "2"), ..scored(second, "a.jpg", 2.0) },
    ];
    store.upsert(&rows).await.unwrap();
    let removal = ScoreRow { object: version("v1", "3"), ..removed(new_id(), "3") };
    store.upsert(&[removal]).await.unwrap();
    let stored = store.lookup(&[first, second]).await.unwrap();
    assert!(stored[&first].deleted_at.is_some());
    assert_eq!(stored[&first].row.score, Some(1.0));
    assert!(stored[&second].deleted_at.is_none());
}

/// A bucket had photos before it had versions: these are its versions `null`.
#[tokio::test]
async fn removing_the_null_version_leaves_the_others() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let version = |version: Option<&str>, sequencer| {
        Some(ObjectRef { version_id: version.map(str::to_owned), ..object("a.jpg", Some(sequencer)) })
    };
    let (null, first) = (new_id(), new_id());
    let rows = [
        ScoreRow { object: version(None, "1"), ..scored(null, "a.jpg", 1.0) },
        ScoreRow { object: version(Some("v1"), "2"), ..scored(first, "a.jpg", 2.0) },
    ];
    store.upsert(&rows).await.unwrap();
    let removal = ScoreRow { object: version(Some("null"), "3"), ..removed(new_id(), "3") };
    store.upsert(&[removal]).await.unwrap();
    let (late, again, second) = (new_id(), new_id(), new_id());
    let rows = [
        ScoreRow { object: version(None, "2"), ..scored(late, "a.jpg", 1.0) },
        ScoreRow { object: version(None, "4"), ..scored(again, "a.jpg", 1.0) },
        ScoreRow { object: version(Some("v2"), "2"), ..scored(second, "a.jpg", 2.0) },
    ];
    store.upsert(&rows).await.unwrap();
    let stored = store.lookup(&[null, first, late, again, second]).await.unwrap();
    let marked = [null, first, late, again, second].map(|id| stored[&id].deleted_at.is_some());
    assert_eq!(marked, [true, false, true, false, false]);
}

#[tokio::test]
async fn a_version_that_was_removed_needs_no_sequencer_to_stay_removed() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let version = |version: &str, sequencer| {
        Some(ObjectRef { version_id: Some(version.into()), ..object("a.jpg", sequencer) })
    };
    // The removal comes first, and one event or the other does not say when it was.
    for (created_at, removed_at) in
        [(None, None), (Some("1"), None), (None, Some("2")), (Some("1"), Some("2"))]
    {
        let name = format!("{created_at:?} {removed_at:?}");
        let removal = ScoreRow { object: version(&name, removed_at), ..removed(new_id(), "") };
        store.upsert(&[removal]).await.unwrap();
        let (late, other) = (new_id(), new_id());
        let rows = [
            ScoreRow { object: version(&name, created_at), ..scored(late, "a.jpg", 1.0) },
            ScoreRow { object: version("another", created_at), ..scored(other, "a.jpg", 1.0) },
        ];
        store.upsert(&rows).await.unwrap();
        let stored = store.lookup(&[late, other]).await.unwrap();
        assert!(stored[&late].deleted_at.is_some(), "{name}");
        assert!(stored[&other].deleted_at.is_none(), "{name}");
    }
    // Without sequencer, nobody knows whether the key was uploaded again after its removal.
    let unordered = ScoreRow { object: Some(object("b.jpg", None)), ..removed(new_id(), "") };
    store.upsert(&[unordered]).await.unwrap();
    let again = new_id();
    let row = ScoreRow { object: Some(object("b.jpg", Some("1"))), ..scored(again, "b.jpg", 1.0) };
    store.upsert(&[row]).await.unwrap();
    assert!(store.lookup(&[again]).await.unwrap()[&again].deleted_at.is_none());
}

#[tokio::test]
async fn a_score_and_its_removal_in_one_batch_are_both_written() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let model = model();
    let object = ObjectRef { version_id: Some("v1".into()), ..object("a.jpg", Some("1")) };
    let later = ObjectRef { sequencer: Some("2".into()), ..object.clone() };
    let (id, removal) = (ScoreId::derive(&object, &model), ScoreId::of_removal(&later, &model));
    let rows = [
        ScoreRow { object: Some(later), ..removed(removal, "2") },
        ScoreRow { object: Some(object), ..scored(id, "a.jpg", 1.0) },
    ];
    for _ in 0..2 {
        let stored = store.upsert(&rows).await.unwrap();
        assert_eq!(stored[&id].row.status, ItemStatus::Scored);
        assert_eq!(stored[&removal].row.status, ItemStatus::Deleted);
    }
    let stored = store.lookup(&[id, removal]).await.unwrap();
    assert_eq!(stored[&id].row.score, Some(1.0));
    assert!(stored[&id].deleted_at.is_some() && stored[&removal].deleted_at.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_agree_and_do_not_deadlock() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let ids: Vec<ScoreId> = (0..200).map(|_| new_id()).collect();
    let mut writers = Vec::new();
    for writer in 0..4_u32 {
        let (store, mut ids) = (store.clone(), ids.clone());
        writers.push(tokio::spawn(async move {
            let mut told = Vec::new();
            for round in 0..10_usize {
                // Another order each time, which is what deadlocks unsorted batches.
                ids.rotate_left(7 * round + writer as usize);
                let rows: Vec<_> = ids.iter().map(|&id| scored(id, "a", f64::from(writer))).collect();
                let stored = store.upsert(&rows).await.unwrap();
                assert_eq!(stored.len(), ids.len());
                told.extend(stored.into_iter().map(|(id, stored)| (id, stored.row.score)));
            }
            told
        }));
    }
    let mut told = Vec::new();
    for writer in writers {
        told.extend(writer.await.unwrap());
    }
    let rows = store.lookup(&ids).await.unwrap();
    assert_eq!(rows.len(), ids.len());
    for (id, score) in told {
        assert_eq!(score, rows[&id].row.score, "two writers were told different scores for {id}");
    }
}

#[tokio::test]
async fn migrations_may_run_twice_and_at_once() {
    let database = TestDatabase::create().await.unwrap();
    let store = Store::connect(&settings(database.url())).await.unwrap();
    let before = store.list(1).await.unwrap_err();
    assert!(before.to_string().contains("roc4mllm migrate"), "{before}");
    assert_eq!(before.disposition(), Disposition::Hold);
    let results = tokio::join!(store.migrate(), store.migrate(), store.migrate(), store.migrate());
    results.0.and(results.1).and(results.2).and(results.3).unwrap();
    store.migrate().await.unwrap();
    assert!(store.list(1).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_schema_newer_than_this_release_is_left_alone() {
    let Fixture { store, database, .. } = fixture().await;
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::raw_sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99999, 'of a later release', true, '', 0);
         ALTER TABLE scores ADD COLUMN of_a_later_release integer DEFAULT 1",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    store.migrate().await.unwrap();
    let id = new_id();
    store.upsert(&[scored(id, "a.jpg", 1.0)]).await.unwrap();
    assert_eq!(store.lookup(&[id]).await.unwrap()[&id].row.score, Some(1.0));
}

#[tokio::test]
async fn ranking_and_latest_of_a_key_use_their_indexes() {
    let Fixture { store, database, .. } = fixture().await;
    let rows: Vec<_> =
        (0..2000).map(|n| scored(new_id(), &format!("{n}.jpg"), f64::from(n % 97) / 10.0)).collect();
    store.upsert(&rows).await.unwrap();
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::raw_sql("ANALYZE scores").execute(&mut connection).await.unwrap();
    for (query, index) in [
        ("SELECT * FROM scores WHERE score IS NOT NULL ORDER BY score DESC LIMIT 10", "scores_by_score"),
        (
            "SELECT * FROM scores WHERE bucket = 'photos' AND object_key = '7.jpg' AND model = 'mplug_owl2'
             ORDER BY sequencer DESC NULLS LAST LIMIT 1",
            "scores_by_object",
        ),
    ] {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN {query}"));
        let plan: Vec<(String,)> = sqlx::query_as(explain).fetch_all(&mut connection).await.unwrap();
        let plan: String = plan.into_iter().map(|(line,)| line + "\n").collect();
        assert!(plan.contains(index), "{plan}");
        assert!(!plan.contains("Sort"), "{plan}");
    }
}

#[tokio::test]
async fn content_is_found_under_its_version_alone_and_by_index() {
    let Fixture { store, database, .. } = fixture().await;
    let content = |number: usize| ContentDigest::of(&number.to_be_bytes());
    let row = |number: usize, version: &ModelVersion, score: f64| {
        let object = object(&format!("{number}.jpg"), None);
        let answer = KnownAnswer::from(&answer(score));
        ScoreRow::known(new_id(), object, version, answer, Some(content(number)), None)
    };
    let versions = [
        model(),
        ModelVersion { version: "sha256:1".into(), ..model() },
        ModelVersion { preprocess_revision: 2, ..model() },
        ModelVersion { model: "other".into(), ..model() },
    ];
    let mut rows: Vec<ScoreRow> = (0..2_000).map(|number| row(number, &model(), 1.0)).collect();
    rows.extend(versions.iter().zip(1_u8..).map(|(version, score)| row(7_000, version, f64::from(score))));
    // Copies of one content.
    rows.extend((0..3).map(|_| row(8_000, &model(), 8.0)));
    store.upsert(&rows).await.unwrap();
    assert_eq!(store.lookup(&[rows[0].id]).await.unwrap()[&rows[0].id].row, rows[0]);

    let key = |number: usize, version: &ModelVersion| ContentKey {
        content: content(number),
        version: std::sync::Arc::new(version.clone()),
    };
    let keys = [
        key(7_000, &versions[2]),
        key(9_000, &versions[0]),
        key(7_000, &versions[0]),
        key(7_000, &versions[3]),
        key(8_000, &versions[0]),
        key(7_000, &versions[1]),
        key(8_000, &versions[1]),
    ];
    let known = store.known_answers(&keys).await.unwrap();
    let scores: Vec<_> = known.iter().map(|known| known.as_ref().map(|known| known.scores[0])).collect();
    assert_eq!(scores, [Some(3.0), None, Some(1.0), Some(4.0), Some(8.0), Some(2.0), None]);
    assert_eq!(known[2], Some(KnownAnswer::from(&answer(1.0))), "to the last digit");

    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::raw_sql("ANALYZE scores").execute(&mut connection).await.unwrap();
    let plan: Vec<(String,)> = sqlx::query_as(
        "EXPLAIN SELECT score FROM unnest($1::bytea[]) AS wanted (content) CROSS JOIN LATERAL (
             SELECT score FROM scores WHERE content_sha256 = wanted.content AND content_sha256 IS NOT NULL
                 AND status = 'scored' LIMIT 1) stored",
    )
    .bind(vec![content(1).0.to_vec()])
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let plan: String = plan.into_iter().map(|(line,)| line + "\n").collect();
    assert!(plan.contains("scores_by_content"), "{plan}");
}

/// A worker of the release before contents were known, which names no column of theirs.
#[tokio::test]
async fn rows_of_an_older_release_are_read_and_have_no_content() {
    let Fixture { store, database, .. } = fixture().await;
    let id = new_id();
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::query(
        "INSERT INTO scores (id, bucket, object_key, etag, model, model_version, status, score, scores, scored_at)
         VALUES ($1, 'photos', 'a.jpg', 'e', 'mplug_owl2', 'sha256:0', 'scored', 5, '{5}', now())",
    )
    .bind(id.0)
    .execute(&mut connection)
    .await
    .unwrap();
    let stored = store.lookup(&[id]).await.unwrap().remove(&id).unwrap();
    assert_eq!(
        (stored.row.score, stored.row.content, stored.row.preprocess_revision),
        (Some(5.0), None, None)
    );
}

#[tokio::test]
async fn an_unreachable_postgres_is_named_within_the_deadline() {
    // One address refuses, the other accepts and then says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let refusing_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for port in [refusing_port, silent_port] {
        let url = format!("postgres://me:hunter2@127.0.0.1:{port}/photos");
        let settings = PostgresSettings { connect_timeout_ms: 500, ..settings(&url) };
        let started = Instant::now();
        let error = Store::connect(&settings).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(5));
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}/photos")), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert_eq!(error.disposition(), Disposition::Hold);
    }
}

#[tokio::test]
async fn an_unknown_role_is_called_that() {
    let database = TestDatabase::create().await.unwrap();
    let mut url = url::Url::parse(database.url()).unwrap();
    url.set_username("no-such-role").unwrap();
    url.set_password(Some("wrong")).unwrap();
    let error = Store::connect(&settings(url.as_str())).await.unwrap_err();
    assert!(matches!(&error, StoreError::Refused { code, .. } if code.starts_with("28")), "{error}");
    assert!(error.to_string().contains("postgres.url"), "{error}");
    assert_eq!(error.disposition(), Disposition::Hold);
}

#[tokio::test]
async fn a_lock_held_elsewhere_times_out_as_passing() {
    let Fixture { store, settings, database } = fixture().await;
    let id = new_id();
    store.upsert(&[rejected(id, "a.jpg")]).await.unwrap();
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT * FROM scores FOR UPDATE").execute(&mut holder).await.unwrap();
    let hasty = PostgresSettings { lock_timeout_ms: 100, ..settings };
    let error = Store::connect(&hasty).await.unwrap().upsert(&[scored(id, "a.jpg", 1.0)]).await.unwrap_err();
    assert!(matches!(&error, StoreError::Refused { code, .. } if code == "55P03"), "{error}");
    assert_eq!(error.disposition(), Disposition::Retry);
}

/// The planner takes the keys beyond one in the only bucket for hardly any, and must not read them all.
#[tokio::test]
async fn a_page_of_stored_objects_reads_no_more_than_a_page() {
    const ROWS: i64 = 20_000;
    let Fixture { settings, database, .. } = fixture().await;
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::query(
        "INSERT INTO scores (id, bucket, object_key, etag, model, model_version, status, score, scored_at)
         SELECT gen_random_uuid(), 'photos', lpad(n::text, 6, '0'), 'e', 'm', 'v', 'scored', 5, now()
         FROM generate_series(1, $1) n",
    )
    .bind(ROWS)
    .execute(&mut connection)
    .await
    .unwrap();
    sqlx::raw_sql("ANALYZE scores").execute(&mut connection).await.unwrap();
    let read = async |connection: &mut PgConnection| -> i64 {
        sqlx::query_scalar("SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes")
            .fetch_one(connection)
            .await
            .unwrap()
    };
    let before = read(&mut connection).await;
    // A session of its own, since its counts are there once it ends.
    let store = Store::connect(&settings).await.unwrap();
    let after = Cursor { bucket: "photos".into(), key: "001000".into() };
    let page = store.stored_objects(Some("w"), Some(&after), 10).await.unwrap();
    assert_eq!(page.objects.len(), 10);
    assert_eq!(page.last.unwrap().key, "001010");
    store.close().await;
    let mut rows = read(&mut connection).await - before;
    for _ in 0..100 {
        if rows > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        rows = read(&mut connection).await - before;
    }
    assert!((10..1_000).contains(&rows), "{rows} of {ROWS} index entries were read for 10 objects");
}

struct Writer {
    requests: mpsc::Sender<WriteRequest<ScoreRow, StoredScore>>,
    task: tokio::task::JoinHandle<()>,
    shutdown: CancellationToken,
}

fn writer(store: &Store, settings: &PostgresSettings) -> Writer {
    let (requests, incoming) = mpsc::channel(1000);
    let shutdown = CancellationToken::new();
    let (store, settings, token) = (store.clone(), settings.clone(), shutdown.clone());
    let retry = RetrySettings { initial_ms: 20, max_ms: 200, ..RetrySettings::default() };
    let upsert = move |rows: Vec<ScoreRow>| {
        let store = store.clone();
        async move { store.upsert_rows(&rows).await }
    };
    let task = tokio::spawn(async move { write_batches(upsert, &settings, &retry, incoming, token).await });
    Writer { requests, task, shutdown }
}

impl Writer {
    async fn write(&self, row: ScoreRow) -> oneshot::Receiver<Result<StoredScore, StoreError>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(WriteRequest { row, reply }).await.unwrap();
        answer
    }
}

#[tokio::test]
async fn the_writer_answers_every_request_and_drains_when_its_senders_go() {
    let Fixture { store, settings, database: _database } = fixture().await;
    let writer = writer(&store, &settings);
    let same = new_id();
    let mut answers = Vec::new();
    for n in 0..1200 {
        let id = if n % 100 == 0 { same } else { new_id() };
        answers.push((id, writer.write(scored(id, "a.jpg", f64::from(n))).await));
    }
    drop(writer.requests);
    writer.task.await.unwrap();
    let mut fresh = 0;
    for (id, answer) in answers {
        let stored = answer.await.unwrap().unwrap();
        assert_eq!(stored.row.id, id);
        if id == same {
            assert_eq!(stored.row.score, Some(0.0));
            fresh += usize::from(!stored.reused);
        }
    }
    assert_eq!(fresh, 1, "exactly one of the equal requests wrote the row");
    assert_eq!(store.count().await.unwrap()[&ItemStatus::Scored], 1189);
}

#[tokio::test]
async fn one_bad_row_does_not_hold_up_its_batch() {
    let Fixture { store, settings, database: _database } = fixture().await;
    let writer = writer(&store, &settings);
    let mut answers = Vec::new();
    for n in 0..20 {
        let score = if n == 13 { f64::NAN } else { f64::from(n) };
        answers.push(writer.write(scored(new_id(), "a.jpg", score)).await);
    }
    for (n, answer) in answers.into_iter().enumerate() {
        let result = answer.await.unwrap();
        assert_eq!(result.is_err(), n == 13, "{result:?}");
    }
    assert_eq!(store.count().await.unwrap()[&ItemStatus::Scored], 19);
}

#[tokio::test]
async fn the_writer_rides_out_a_restart_of_postgres() {
    // A server of its own, since others share the common one.
    let mut server = tokio::task::spawn_blocking(Postgres::start).await.unwrap().unwrap();
    let settings = PostgresSettings { connect_timeout_ms: 1000, ..settings(&server.url()) };
    let store = Store::connect(&settings).await.unwrap();
    store.migrate().await.unwrap();
    let writer = writer(&store, &settings);
    writer.write(scored(new_id(), "a.jpg", 1.0)).await.await.unwrap().unwrap();
    server.stop().unwrap();
    let mut waiting = writer.write(scored(new_id(), "b.jpg", 2.0)).await;
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut waiting).await.is_err());
    server.restart().unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(store.count().await.unwrap()[&ItemStatus::Scored], 2);

    // Shutdown ends the retries, and the reply is dropped without an answer.
    server.stop().unwrap();
    let abandoned = writer.write(scored(new_id(), "c.jpg", 3.0)).await;
    writer.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), writer.task).await.unwrap().unwrap();
    assert!(abandoned.await.is_err());
}

fn shadow_pair(number: i64) -> ShadowPair {
    let champion = (number % 97) as f64 / 10.0;
    let id = ScoreId::of_position("uploads", 0, number, 0);
    ShadowPair { id, champion, candidate: champion + (number % 7) as f64 / 100.0 }
}

/// Several workers add to one candidate at once: sums are of every image, the sample is bounded and the
/// same whoever came first.
#[tokio::test(flavor = "multi_thread")]
async fn the_agreement_of_a_shadow_is_summed_over_workers_and_sampled() {
    let Fixture { store, database: _database, .. } = fixture().await;
    let pairs: Vec<ShadowPair> = (0..2 * PAIRS_KEPT).map(shadow_pair).collect();
    let tasks: Vec<_> = pairs
        .chunks(1_000)
        .map(|pairs| {
            let (store, pairs) = (store.clone(), pairs.to_vec());
            tokio::spawn(async move { store.record_shadow("candidate", "champion", &pairs).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    store.record_shadow("candidate", "another", &pairs[..3]).await.unwrap();
    store.record_shadow("candidate", "another", &[]).await.unwrap();
    store.record_shadow("candidate+assess+f32", "champion", &pairs[..1]).await.unwrap();
    let by_either_name = store.shadow_records("candidate").await.unwrap();
    assert_eq!(by_either_name.len(), 3, "as the registry names it, with whatever prompt and type");
    assert_eq!(store.shadow_records("candidate+assess+f32").await.unwrap(), by_either_name[..1]);

    let records = store.shadow_records("candidate").await.unwrap();
    let champions: Vec<&str> = records.iter().map(|record| record.champion.as_str()).collect();
    assert_eq!(champions, ["champion", "another", "champion"], "the latest first");
    let (other, record) = (&records[1], &records[2]);
    assert_eq!((other.sums, other.sample.len()), (pairs[..3].iter().collect(), 3));
    let expected: ShadowSums = pairs.iter().collect();
    assert_eq!(record.sums.images, expected.images);
    for (sum, expected) in [
        (record.sums.champion, expected.champion),
        (record.sums.candidate, expected.candidate),
        (record.sums.champion_squared, expected.champion_squared),
        (record.sums.candidate_squared, expected.candidate_squared),
        (record.sums.product, expected.product),
        (record.sums.absolute_difference, expected.absolute_difference),
    ] {
        assert!((sum - expected).abs() <= 1e-9 * expected, "{sum} {expected}");
    }
    let mut lowest = pairs.clone();
    lowest.sort_by_key(|pair| pair.id);
    lowest.truncate(PAIRS_KEPT as usize);
    assert_eq!(record.sample, lowest);
    assert!(store.shadow_records("nobody").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_shadow_waits_for_no_other_to_trim_the_sample() {
    let Fixture { store, database, .. } = fixture().await;
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    let mut trimming = connection.begin().await.unwrap();
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('shadow candidate champion', 0))";
    sqlx::query(lock).execute(&mut *trimming).await.unwrap();
    let mut pairs: Vec<ShadowPair> = (0..PAIRS_KEPT + 50).map(shadow_pair).collect();
    store.record_shadow("candidate", "champion", &pairs).await.unwrap();
    let kept = async || store.shadow_records("candidate").await.unwrap().remove(0).sample;
    pairs.sort_by_key(|pair| pair.id);
    assert_eq!(kept().await, pairs[..PAIRS_KEPT as usize], "what is not trimmed yet is not read");
    let rows = "SELECT count(*) FROM shadow_pairs";
    let count: i64 = sqlx::query_scalar(rows).fetch_one(&mut *trimming).await.unwrap();
    assert_eq!(count, PAIRS_KEPT + 50);
    trimming.commit().await.unwrap();
    store.record_shadow("candidate", "champion", &[]).await.unwrap();
    let count: i64 = sqlx::query_scalar(rows).fetch_one(&mut connection).await.unwrap();
    assert_eq!(count, PAIRS_KEPT);
    assert_eq!(kept().await, pairs[..PAIRS_KEPT as usize]);
}

#[tokio::test]
async fn a_tally_counts_every_row_once_and_says_when_it_scales_up() {
    let Fixture { store, database, .. } = fixture().await;
    let scores = [-3.0, 1.0, 1.2, 5.5, 9.99, 10.0, 12.0];
    let mut rows: Vec<ScoreRow> =
        scores.iter().map(|score| scored(new_id(), &format!("{score}.jpg"), *score)).collect();
    let error = ItemError::new(ErrorCode::Unsupported, Stage::Decode, "no image");
    for status in [ItemStatus::Rejected, ItemStatus::Dead, ItemStatus::Gone] {
        let object = Some(object("x.jpg", None));
        rows.push(ScoreRow::unscored(new_id(), object, &model(), status, Some(error.clone()), None));
    }
    store.upsert(&rows).await.unwrap();
    let tally = store.tally((1.0, 10.0), 9, 1_000).await.unwrap();
    let statuses: Vec<_> = tally.statuses.iter().map(|(status, count)| (*status, *count)).collect();
    assert_eq!(statuses, [("dead", 1), ("gone", 1), ("rejected", 1), ("scored", 7)]);
    assert_eq!(tally.errors.into_iter().collect::<Vec<_>>(), [("unsupported".to_owned(), 2)]);
    let version = &tally.versions["sha256:0"];
    // A score beyond an end counts in the last bin before it.
    assert_eq!(version.bins, [3, 0, 0, 0, 1, 0, 0, 0, 3]);
    assert_eq!((version.scored, version.sum), (7, scores.iter().sum::<f64>()));
    assert!(!tally.sampled);

    // Removed objects are counted and not shown.
    let best = store.shown_scores(Order::Best, 2).await.unwrap();
    assert_eq!(best.iter().map(|one| one.score).collect::<Vec<_>>(), [12.0, 10.0]);
    let removed = object("12.jpg", Some("F"));
    let removal = ScoreRow::unscored(new_id(), Some(removed), &model(), ItemStatus::Deleted, None, None);
    store.upsert(&[removal]).await.unwrap();
    assert_eq!(store.tally((1.0, 10.0), 9, 1_000).await.unwrap().removed, 1);
    assert_eq!(store.shown_scores(Order::Best, 1).await.unwrap()[0].score, 10.0);
    assert_eq!(store.scored_object(best[0].id).await.unwrap(), None);
    let shown = store.scored_object(best[1].id).await.unwrap().unwrap();
    assert_eq!((shown.key.as_str(), shown.etag.as_deref()), ("10.jpg", Some("e")));
    assert_eq!(store.shown_failures(10).await.unwrap().len(), 2);

    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::query("ANALYZE scores").execute(&mut connection).await.unwrap();
    assert!(store.tally((1.0, 10.0), 9, 2).await.unwrap().sampled);
}

#[tokio::test]
async fn the_history_of_retraining_shows_no_holder_and_no_token() {
    let Fixture { store, database: _database, .. } = fixture().await;
    assert_eq!(store.retrain_runs(5).await.unwrap(), []);
    assert_eq!(store.retrain_report(1).await.unwrap(), None);
    let mut leases = Vec::new();
    for outcome in [RunOutcome::Rejected, RunOutcome::Failed] {
        let claim = store.claim_run(RunKind::Retrain, "the-holder", Duration::from_secs(60)).await.unwrap();
        let Claim::Ours(ClaimedRun { lease, .. }) = claim else { panic!("{claim:?}") };
        if outcome == RunOutcome::Rejected {
            let report = "s3://m/a/report.html".to_owned();
            let verdict = RunVerdict {
                challenger: "b".to_owned(),
                metrics: json!({}),
                verdict: json!({"verdict": "rejected"}),
                report,
            };
            store.judge_run(&lease, &verdict).await.unwrap();
        }
        store.end_run(&lease, outcome, "a reason", Some("a")).await.unwrap();
        leases.push(lease);
    }
    let runs = store.retrain_runs(5).await.unwrap();
    assert_eq!(runs.iter().map(|run| run.id).collect::<Vec<_>>(), [leases[1].run, leases[0].run]);
    assert_eq!(store.retrain_runs(1).await.unwrap(), runs[..1]);
    let shown = serde_json::to_string(&runs).unwrap();
    assert!(!shown.contains("the-holder"), "{shown}");
    assert!(leases.iter().all(|lease| !shown.contains(&lease.token.to_string())), "{shown}");
    let report = store.retrain_report(leases[0].run).await.unwrap();
    assert_eq!(report.as_deref(), Some("s3://m/a/report.html"));
    assert_eq!(store.retrain_report(leases[1].run).await.unwrap(), None);
}
