//! The order of arrival: nothing slips in behind a number that somebody has seen.

use super::{Fixture, SCALE, object, vote};
use roc4mllm::labels::{LabelledObject, Vote};
use sqlx::{Connection, PgConnection, PgPool};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What one reader saw: the highest number, and every number there was.
type Sight = (i64, HashSet<i64>);

async fn look(pool: &PgPool) -> Sight {
    let numbers: Vec<i64> = sqlx::query_scalar("SELECT ingested FROM votes").fetch_all(pool).await.unwrap();
    (numbers.iter().copied().max().unwrap_or(0), numbers.into_iter().collect())
}

/// Numbers that a reader missed though it saw a higher one: a run that trained on what it saw would never
/// come back for them.
fn slipped(earlier: &Sight, later: &Sight) -> Vec<i64> {
    later.1.iter().filter(|number| **number <= earlier.0 && !earlier.1.contains(number)).copied().collect()
}

const RAW: &str = "INSERT INTO votes \
    (bucket, object_key, etag, rater, scores, raters, labelled_at, ingested) \
    VALUES ('photos', $1, '', 'ann', '{5}', 1, now(), nextval('votes_ingested'))";

/// That the numbers alone would not do: here they slip, and the check notices.
#[tokio::test]
async fn numbers_drawn_without_the_lock_slip_in_behind() {
    let fixture = Fixture::new().await;
    let pool = fixture.pool().await;
    let mut slow = PgConnection::connect(fixture.database.url()).await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut slow).await.unwrap();
    sqlx::query(RAW).bind("slow").execute(&mut slow).await.unwrap();
    sqlx::query(RAW).bind("fast").execute(&pool).await.unwrap();
    let between = look(&pool).await;
    sqlx::raw_sql("COMMIT").execute(&mut slow).await.unwrap();
    assert_eq!(slipped(&between, &look(&pool).await), [1]);
}

/// The first of two writers is made to commit late: the second, on another object, waits for it.
#[tokio::test]
async fn a_late_commit_holds_up_the_numbers_behind_it() {
    let fixture = Fixture::new().await;
    let pool = fixture.pool().await;
    fixture.store.write_votes(&[vote("held", "ann", 5.0, 0)], &SCALE).await.unwrap();
    let mut holder = PgConnection::connect(fixture.database.url()).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT * FROM votes WHERE object_key = 'held' FOR UPDATE")
        .execute(&mut holder)
        .await
        .unwrap();
    let write = |votes: Vec<Vote>| {
        let store = fixture.store.clone();
        tokio::spawn(async move { store.write_votes(&votes, &SCALE).await.unwrap() })
    };
    // Its numbers are drawn row by row, and the last row waits.
    let first = write(vec![vote("a", "ann", 5.0, 0), vote("held", "ann", 6.0, 1)]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let second = write(vec![vote("b", "ann", 5.0, 0)]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!first.is_finished() && !second.is_finished());
    let between = look(&pool).await;
    assert_eq!(between.0, fixture.store.label_watermark().await.unwrap());
    sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    first.await.unwrap();
    second.await.unwrap();
    let after = look(&pool).await;
    assert_eq!(after.1.len(), 3);
    assert_eq!(slipped(&between, &after), Vec::<i64>::new());
    // What came after the watermark is exactly what was written since.
    let new = fixture.store.new_labels(between.0, after.0, 10).await.unwrap();
    let mut keys: Vec<&str> = new.iter().map(|stored| stored.label.object.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["a", "b", "held"]);
}

/// A process that sleeps in the middle of its transaction does not hold everybody up for long.
#[tokio::test]
async fn a_writer_that_falls_asleep_loses_the_lock() {
    let fixture = Fixture::new().await;
    let mut asleep = PgConnection::connect(fixture.database.url()).await.unwrap();
    sqlx::raw_sql(
        "BEGIN; SELECT pg_advisory_xact_lock(7095321847266), \
         set_config('idle_in_transaction_session_timeout', '500', true)",
    )
    .execute(&mut asleep)
    .await
    .unwrap();
    fixture.store.write_votes(&[vote("a", "ann", 5.0, 0)], &SCALE).await.unwrap();
    assert!(sqlx::raw_sql("COMMIT").execute(&mut asleep).await.is_err(), "the sleeper's session is over");
}

/// Four writers on the same objects: labels are what their votes come to, and no reader misses anything.
#[tokio::test(flavor = "multi_thread")]
async fn writers_at_once_lose_no_vote_and_no_reader_misses_one() {
    const WRITERS: usize = 4;
    const BATCHES: usize = 25;
    let fixture = Fixture::new().await;
    let pool = fixture.pool().await;
    let done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (pool, done) = (pool.clone(), Arc::clone(&done));
        async move {
            let mut sights = Vec::new();
            while !done.load(Ordering::Relaxed) {
                sights.push(look(&pool).await);
            }
            sights
        }
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = fixture.store.clone();
            tokio::spawn(async move {
                for batch in 0..BATCHES {
                    let votes: Vec<Vote> = (0..10)
                        .map(|n| {
                            let score = 1.0 + ((writer + batch + n) % 10) as f64;
                            let rater = format!("{writer}-{}", batch % 7);
                            vote(&format!("{}", (batch * 3 + n) % 20), &rater, score, batch as i64)
                        })
                        .collect();
                    store.write_votes(&votes, &SCALE).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    let sights = reader.await.unwrap();
    assert!(sights.len() > 2, "the reader looked {} times", sights.len());
    let after = look(&pool).await;
    for sight in &sights {
        // A vote that was given anew has a higher number, so nothing but a late one can be missed.
        assert_eq!(slipped(sight, &after), Vec::<i64>::new());
    }
    let objects: Vec<LabelledObject> = (0..20).map(|n| object(&n.to_string())).collect();
    fixture.check_labels(&objects.iter().collect::<Vec<_>>()).await;
}
