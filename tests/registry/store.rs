//! `model_versions` in Postgres: what is registered, and which version serves.

use roc4mllm::{
    dev::TestDatabase,
    secret::Secret,
    store::{NewVersion, PostgresSettings, Store, StoreError, Terms, VersionError, VersionStatus},
};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;

pub struct Fixture {
    pub store: Store,
    pub database: TestDatabase,
}

pub async fn fixture() -> Fixture {
    let database = TestDatabase::create().await.unwrap();
    let settings = PostgresSettings { url: Secret::from(database.url()), pool_size: 8, ..Default::default() };
    let store = Store::connect(&settings).await.unwrap();
    store.migrate().await.unwrap();
    Fixture { store, database }
}

fn new(number: u64) -> NewVersion {
    let digest = format!("sha256:{number:012x}{:052x}", 7);
    NewVersion {
        version: digest[..19].to_owned(),
        digest,
        parent: None,
        uri: format!("s3://models/{number}"),
        manifest_sha256: format!("{number:064x}"),
        dataset: None,
        metrics: Some(json!({"srcc": 0.5, "list": [1, 2]})),
        code_version: "0.1.0".into(),
        created_at: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(number.cast_signed()),
    }
}

/// Registers versions 1 to `count`; their names.
async fn register(store: &Store, count: u64) -> Vec<String> {
    let mut names = Vec::new();
    for number in 1..=count {
        names.push(store.register_version(&new(number)).await.unwrap().version);
    }
    names
}

async fn promote(store: &Store, version: &str) -> Option<String> {
    let promotion = store.promote_version(version, &Terms::default()).await.unwrap();
    assert_eq!(promotion.champion.version, version);
    assert_eq!(promotion.champion.status, VersionStatus::Champion);
    promotion.retired
}

async fn roll_back(store: &Store) -> String {
    store.roll_back(None).await.unwrap().champion.version
}

async fn status(store: &Store, version: &str) -> VersionStatus {
    store.find_version(version).await.unwrap().status
}

#[tokio::test]
async fn a_version_reads_back_as_it_was_registered() {
    let Fixture { store, database: _database } = fixture().await;
    let mut full = new(1);
    full.parent = Some("sha256:ffffffffffff".into());
    full.dataset = Some("sha256:dada".into());
    let registered = store.register_version(&full).await.unwrap();
    assert_eq!(
        (&registered.version, &registered.digest, &registered.parent, &registered.uri),
        (&full.version, &full.digest, &full.parent, &full.uri)
    );
    assert_eq!((&registered.dataset, &registered.metrics), (&full.dataset, &full.metrics));
    assert_eq!(registered.manifest_sha256, full.manifest_sha256);
    assert_eq!((registered.created_at, registered.status), (full.created_at, VersionStatus::Candidate));
    assert_eq!((registered.canary_share, registered.shadow_share), (0.0, 0.0));
    assert!(registered.made(&format!("{}+assess+f32", full.version)));
    assert!(!registered.made("sha256:ffffffffffff+assess+f32"));
    assert_eq!(store.versions().await.unwrap(), std::slice::from_ref(&registered));
    assert_eq!(store.champion().await.unwrap(), None);

    promote(&store, &full.version).await;
    let moved = NewVersion { uri: "s3://other/1".into(), manifest_sha256: "f".repeat(64), ..full.clone() };
    let again = store.register_version(&moved).await.unwrap();
    assert_eq!((again.uri, again.manifest_sha256), (moved.uri, moved.manifest_sha256));
    assert_eq!((again.status, again.registered_at), (VersionStatus::Champion, registered.registered_at));

    let collision = NewVersion { digest: format!("{}{}", full.version, "9".repeat(52)), ..full };
    let error = store.register_version(&collision).await.unwrap_err();
    assert!(matches!(error, VersionError::Collision { .. }), "{error}");
}

#[tokio::test]
async fn a_version_is_found_by_any_of_its_names() {
    let Fixture { store, database: _database } = fixture().await;
    let names = register(&store, 2).await;
    for text in [names[0].as_str(), &names[0][7..], &format!("{}+arch+bf16", names[0]), &new(1).digest] {
        assert_eq!(store.find_version(text).await.unwrap().version, names[0], "{text}");
    }
    let error = store.find_version("00000000000").await.unwrap_err();
    assert!(matches!(error, VersionError::Ambiguous(_)), "{error}");
    for text in ["ffff", "champion", "%", ""] {
        let error = store.find_version(text).await.unwrap_err();
        assert!(matches!(error, VersionError::Unknown(_)), "{text}: {error}");
    }
}

#[tokio::test]
async fn rollbacks_go_back_through_the_champions_one_by_one() {
    let Fixture { store, database: _database } = fixture().await;
    let names = register(&store, 4).await;
    let [one, two, three, four] = [0, 1, 2, 3].map(|index| names[index].as_str());
    let none = store.roll_back(None).await.unwrap_err();
    assert!(matches!(none, VersionError::NoPredecessor), "{none}");

    assert_eq!(promote(&store, one).await, None);
    assert_eq!(promote(&store, two).await.as_deref(), Some(one));
    assert_eq!(promote(&store, two).await, None, "it is the champion already");
    assert_eq!(promote(&store, three).await.as_deref(), Some(two));
    assert_eq!(roll_back(&store).await, two);
    assert_eq!(status(&store, three).await, VersionStatus::Retired);
    assert_eq!(promote(&store, four).await.as_deref(), Some(two));
    assert_eq!(roll_back(&store).await, two);
    assert_eq!(roll_back(&store).await, one);
    let none = store.roll_back(None).await.unwrap_err();
    assert!(matches!(none, VersionError::NoPredecessor), "{none}");
    assert_eq!(store.champion().await.unwrap().unwrap().version, one);
    // One that was champion before may be it again, and returns to where it came from.
    promote(&store, three).await;
    promote(&store, one).await;
    assert_eq!(roll_back(&store).await, three);
    assert_eq!(roll_back(&store).await, one);

    let history: Vec<_> = store
        .champion_history()
        .await
        .unwrap()
        .into_iter()
        .map(|reign| (reign.version, reign.kind))
        .collect();
    let expected = [
        (one, "promote"),
        (two, "promote"),
        (three, "promote"),
        (two, "rollback"),
        (four, "promote"),
        (two, "rollback"),
        (one, "rollback"),
        (three, "promote"),
        (one, "promote"),
        (three, "rollback"),
        (one, "rollback"),
    ];
    assert_eq!(history, expected.map(|(version, kind)| (version.to_owned(), kind.to_owned())));
}

#[tokio::test]
async fn what_was_rejected_serves_only_when_that_is_insisted_on() {
    let Fixture { store, database: _database } = fixture().await;
    let names = register(&store, 3).await;
    for name in &names {
        promote(&store, name).await;
    }
    let error = store.reject_version(&names[2]).await.unwrap_err();
    assert!(matches!(error, VersionError::NotACandidate { status: VersionStatus::Champion, .. }), "{error}");
    assert_eq!(store.reject_version(&names[1]).await.unwrap().status, VersionStatus::Rejected);
    assert_eq!(store.reject_version(&names[1]).await.unwrap().status, VersionStatus::Rejected);
    assert_eq!(roll_back(&store).await, names[0], "the rejected one is passed over");
    let error = store.promote_version(&names[1], &Terms::default()).await.unwrap_err();
    assert!(matches!(error, VersionError::Rejected(_)), "{error}");
    let terms = Terms { even_rejected: true, ..Terms::default() };
    store.promote_version(&names[1], &terms).await.unwrap();
    assert_eq!(store.champion().await.unwrap().unwrap().version, names[1]);
    for unknown in [
        store.promote_version("sha256:ffffffffffff", &Terms::default()).await.unwrap_err(),
        store.reject_version("sha256:ffffffffffff").await.unwrap_err(),
    ] {
        assert!(matches!(unknown, VersionError::Unknown(_)), "{unknown}");
    }
}

#[tokio::test]
async fn a_promotion_over_a_champion_that_is_gone_does_nothing() {
    let Fixture { store, database: _database } = fixture().await;
    let names = register(&store, 3).await;
    let over = |champion: Option<&str>| Terms { over: Some(champion.map(str::to_owned)), ..Terms::default() };
    store.promote_version(&names[0], &over(None)).await.unwrap();
    for terms in [over(None), over(Some(&names[2]))] {
        let error = store.promote_version(&names[1], &terms).await.unwrap_err();
        assert!(matches!(error, VersionError::Overtaken { .. }), "{error}");
        assert!(error.to_string().contains(&names[0]), "{error}");
    }
    store.promote_version(&names[1], &over(Some(&names[0]))).await.unwrap();
    let error = store.roll_back(Some(&names[0])).await.unwrap_err();
    assert!(matches!(error, VersionError::Overtaken { .. }), "{error}");
    assert_eq!(store.roll_back(Some(&names[1])).await.unwrap().champion.version, names[0]);
    assert_eq!(store.champion_history().await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_promotions_at_once_each_sees_the_one_before() {
    let Fixture { store, database: _database } = fixture().await;
    let names = register(&store, 8).await;
    let promotions = names.iter().map(|name| {
        let (store, name) = (store.clone(), name.clone());
        tokio::spawn(async move { store.promote_version(&name, &Terms::default()).await.unwrap().retired })
    });
    let mut retired = Vec::new();
    for promotion in promotions.collect::<Vec<_>>() {
        retired.extend(promotion.await.unwrap());
    }
    let history = store.champion_history().await.unwrap();
    let order: Vec<_> = history.into_iter().map(|reign| reign.version).collect();
    assert_eq!(store.champion().await.unwrap().unwrap().version, order[7]);
    let mut before = order[..7].to_vec();
    before.sort();
    retired.sort();
    assert_eq!(retired, before, "everyone but the last was retired by the next, once");
    for version in order[..7].iter().rev() {
        assert_eq!(roll_back(&store).await, *version);
    }

    // Judged against the same champion, one of them takes its place.
    let terms = Terms { over: Some(Some(order[0].clone())), ..Terms::default() };
    let promotions = order[1..].iter().map(|name| {
        let (store, name, terms) = (store.clone(), name.clone(), terms.clone());
        tokio::spawn(async move { store.promote_version(&name, &terms).await })
    });
    let mut succeeded = 0;
    for promotion in promotions.collect::<Vec<_>>() {
        match promotion.await.unwrap() {
            Ok(_) => succeeded += 1,
            Err(error) => assert!(matches!(error, VersionError::Overtaken { .. }), "{error}"),
        }
    }
    assert_eq!(succeeded, 1);
}

#[tokio::test]
async fn candidates_are_tried_and_nobody_else() {
    let Fixture { store, database: _database } = fixture().await;
    let names = register(&store, 4).await;
    promote(&store, &names[0]).await;
    store.set_canary(&names[1], 0.1).await.unwrap();
    store.set_shadow(&names[1], 0.5).await.unwrap();
    store.set_shadow(&names[2], 1.0).await.unwrap();
    let serving = store.serving().await.unwrap();
    assert_eq!(serving.champion.unwrap().version, names[0]);
    assert_eq!(
        serving.canary.map(|canary| (canary.version, canary.canary_share)),
        Some((names[1].clone(), 0.1))
    );
    let shadows: Vec<_> =
        serving.shadows.into_iter().map(|shadow| (shadow.version, shadow.shadow_share)).collect();
    assert_eq!(shadows, [(names[1].clone(), 0.5), (names[2].clone(), 1.0)]);

    store.set_canary(&names[3], 0.2).await.unwrap();
    assert_eq!(store.find_version(&names[1]).await.unwrap().canary_share, 0.0, "there is one canary");
    store.set_canary(&names[1], 0.0).await.unwrap();
    assert_eq!(store.serving().await.unwrap().canary.unwrap().version, names[3]);

    for share in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let error = store.set_canary(&names[1], share).await.unwrap_err();
        assert!(matches!(error, VersionError::Share { .. }), "{error}");
    }
    let error = store.set_shadow(&names[0], 0.1).await.unwrap_err();
    assert!(matches!(error, VersionError::NotACandidate { .. }), "{error}");
    promote(&store, &names[3]).await;
    store.reject_version(&names[2]).await.unwrap();
    let serving = store.serving().await.unwrap();
    assert!(serving.canary.is_none(), "it is the champion");
    assert_eq!(serving.shadows.len(), 1);
}

/// The table itself refuses what no code should ever write.
#[tokio::test]
async fn the_schema_keeps_the_rules() {
    let Fixture { store, database } = fixture().await;
    let names = register(&store, 3).await;
    promote(&store, &names[0]).await;
    store.set_canary(&names[1], 0.1).await.unwrap();
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    for statement in [
        "UPDATE model_versions SET status = 'champion', canary_share = 0 WHERE version = $1",
        "UPDATE model_versions SET canary_share = 0.3 WHERE version = $1",
        "UPDATE model_versions SET canary_share = 'NaN' WHERE version = $1",
        "UPDATE model_versions SET shadow_share = 1.5 WHERE version = $1",
        "UPDATE model_versions SET status = 'retired', shadow_share = 0.5 WHERE version = $1",
        "UPDATE model_versions SET status = 'best' WHERE version = $1",
        "UPDATE model_versions SET digest = 'sha256:00' WHERE version = $1",
        "DELETE FROM model_versions WHERE status = 'champion' AND $1 <> ''",
    ] {
        let refused = sqlx::query(statement).bind(&names[2]).execute(&mut connection).await;
        let error = refused.expect_err(statement).into_database_error().expect(statement);
        assert!(error.constraint().is_some(), "{statement}: {error}");
    }
}

#[tokio::test]
async fn a_schema_without_the_table_says_what_to_do() {
    let database = TestDatabase::create().await.unwrap();
    let settings = PostgresSettings { url: Secret::from(database.url()), ..Default::default() };
    let error = Store::connect(&settings).await.unwrap().champion().await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("roc4mllm migrate"), "{error}");
}
