use super::*;
use crate::{dev::TestDatabase, secret::Secret, store::PostgresSettings};
use sqlx::{SqlSafeStr, migrate::MigrationType};

const TABLE: &str =
    "CREATE TABLE things (name text); INSERT INTO things SELECT generate_series(1, 100)::text";
const INDEX: &str = "-- no-transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS things_by_name ON things (name)";

fn file(version: i64, sql: &'static str) -> Migration {
    let no_tx = sql.starts_with("-- no-transaction");
    Migration::new(version, "a file".into(), MigrationType::Simple, sql.into_sql_str(), no_tx)
}

async fn store() -> (TestDatabase, Store, PgConnection) {
    let database = TestDatabase::create().await.unwrap();
    let settings = PostgresSettings { url: Secret::from(database.url()), ..PostgresSettings::default() };
    let store = Store::connect(&settings).await.unwrap();
    let connection = store.connect_alone().await.unwrap();
    (database, store, connection)
}

/// Whether the index is whole; `None` where there is none.
async fn index(connection: &mut PgConnection) -> Option<bool> {
    let sql = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('things_by_name')";
    sqlx::query_scalar(sql).fetch_optional(connection).await.unwrap()
}

async fn noted(connection: &mut PgConnection) -> Vec<i64> {
    let sql = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
}

#[test]
fn a_file_names_whole_words() {
    assert!(names(INDEX, "things_by_name") && names("DROP INDEX \"a\";", "a"));
    assert!(!names(INDEX, "things_by") && !names(INDEX, "by_name"));
}

#[tokio::test]
async fn a_file_outside_a_transaction_has_its_place_among_the_others() {
    let (_database, store, mut connection) = store().await;
    // The last one fails without the index before it, the index without the table.
    let last = file(3, "ALTER INDEX things_by_name RENAME TO things_by_another_name");
    let files = Migrator::with_migrations(vec![last, file(2, INDEX), file(1, TABLE)]);
    let twice = tokio::join!(store.apply(&files), store.apply(&files), store.apply(&files));
    twice.0.and(twice.1).and(twice.2).unwrap();
    assert_eq!(noted(&mut connection).await, [1, 2, 3]);
    let edited = file(2, "-- no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS other ON things (name)");
    let error = store.apply(&Migrator::with_migrations(vec![file(1, TABLE), edited])).await.unwrap_err();
    assert!(error.to_string().contains("migration 2"), "{error}");
}

#[tokio::test]
async fn an_index_that_was_left_half_built_is_built_anew() {
    let (_database, store, mut connection) = store().await;
    store.apply(&Migrator::with_migrations(vec![file(1, TABLE)])).await.unwrap();
    let files = Migrator::with_migrations(vec![file(1, TABLE), file(2, INDEX)]);

    // Building waits for whoever has written to the table, and is killed meanwhile.
    let mut writer = store.connect_alone().await.unwrap();
    let mut writing = writer.begin().await.unwrap();
    sqlx::raw_sql("INSERT INTO things VALUES ('new')").execute(&mut *writing).await.unwrap();
    let killer = async {
        let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                    WHERE query LIKE '%CONCURRENTLY IF NOT EXISTS things_by_name ON things%' \
                        AND wait_event_type = 'Lock' AND pid IN \
                            (SELECT pid FROM pg_locks WHERE relation = 'things'::regclass)";
        while sqlx::query_scalar::<_, i64>(kill).fetch_one(&mut connection).await.unwrap() == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let (interrupted, ()) = tokio::join!(store.apply(&files), killer);
    let error = interrupted.unwrap_err();
    assert_eq!(index(&mut connection).await, Some(false), "{error}");
    assert_eq!(noted(&mut connection).await, [1]);

    writing.commit().await.unwrap();
    store.apply(&files).await.unwrap();
    assert_eq!(index(&mut connection).await, Some(true));
    assert_eq!(noted(&mut connection).await, [1, 2]);
}

#[tokio::test]
async fn an_index_that_was_built_but_not_noted_is_kept() {
    let (_database, store, mut connection) = store().await;
    let files = Migrator::with_migrations(vec![file(1, TABLE), file(2, INDEX)]);
    store.apply(&files).await.unwrap();
    let oid = "SELECT to_regclass('things_by_name')::oid::bigint";
    let built: Option<i64> = sqlx::query_scalar(oid).fetch_one(&mut connection).await.unwrap();
    let forget = "DELETE FROM _sqlx_migrations WHERE version = 2";
    sqlx::raw_sql(forget).execute(&mut connection).await.unwrap();
    store.apply(&files).await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, Option<i64>>(oid).fetch_one(&mut connection).await.unwrap(), built);
    assert!(built.is_some());
    assert_eq!(noted(&mut connection).await, [1, 2]);
}
