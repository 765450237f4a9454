//! Photos that nobody has rated, as Postgres finds them.

use super::{Fixture, SCALE, vote};
use roc4mllm::labels::Vote;
use roc4mllm::labels::suggest::Candidate;
use roc4mllm::object::{ObjectRef, ScoreId};
use roc4mllm::score::{Answer, DecodeKind, ItemStatus, ModelVersion, ScoreValue};
use roc4mllm::store::{Cursor, ScoreRow};
use uuid::Uuid;

fn model(version: &str) -> ModelVersion {
    ModelVersion { model: "mplug_owl2".into(), version: version.into(), preprocess_revision: 1 }
}

pub fn scored(key: &str, etag: &str, sequencer: &str, version: &str, bins: [usize; 2]) -> ScoreRow {
    let object = ObjectRef {
        etag: Some(etag.into()),
        sequencer: Some(sequencer.into()),
        ..ObjectRef::new("photos", key)
    };
    let mut distribution = vec![0.0_f32; 10];
    bins.into_iter().for_each(|bin| distribution[bin] += 0.5);
    let answer = Answer {
        scores: vec![ScoreValue::from_distribution(distribution, 1.0, 10.0)],
        text: String::new(),
        tokens: vec![],
        decode: DecodeKind::Generated,
        forwards: 1,
    };
    let row = ScoreRow::scored(ScoreId(Uuid::new_v4()), object, &model(version), &answer, None);
    // The versions follow one another.
    let later = i64::from(version.as_bytes().last().copied().unwrap_or_default());
    ScoreRow { scored_at: row.scored_at + time::Duration::seconds(later), ..row }
}

async fn candidates(fixture: &Fixture, page: u32) -> Vec<Candidate> {
    let (mut all, mut after, mut seen) = (Vec::new(), None, 0);
    loop {
        let page = fixture.store.unlabelled(&SCALE, after.as_ref(), page).await.unwrap();
        seen += page.seen;
        all.extend(page.candidates);
        match page.last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    assert!(seen >= all.len());
    all
}

#[tokio::test]
async fn scored_photos_that_are_there_and_unrated_are_candidates() {
    let fixture = Fixture::new().await;
    let removal = ObjectRef { sequencer: Some("9".into()), ..ObjectRef::new("photos", "removed") };
    let deleted = ScoreRow::unscored(
        ScoreId(Uuid::new_v4()),
        Some(removal),
        &model("v1"),
        ItemStatus::Deleted,
        None,
        None,
    );
    let rows = [
        scored("plain", "e", "1", "v1", [2, 2]),
        scored("two versions", "e", "1", "v1", [0, 0]),
        scored("two versions", "e", "1", "v2", [4, 6]),
        // What was in the key before says nothing of what is in it now.
        scored("overwritten", "old", "1", "v1", [0, 0]),
        scored("overwritten", "new", "2", "v1", [0, 9]),
        scored("rated", "e1", "1", "v1", [5, 5]),
        scored("rated before", "e2", "2", "v1", [5, 5]),
        scored("rated without etag", "e1", "1", "v1", [5, 5]),
        scored("removed", "e", "1", "v1", [5, 5]),
        deleted,
    ];
    for row in rows {
        fixture.store.upsert(&[row]).await.unwrap();
    }
    let mut any = vote("rated without etag", "ann", 5.0, 0);
    any.object.etag = String::new();
    let votes: Vec<Vote> = vec![vote("rated", "ann", 5.0, 0), vote("rated before", "ann", 5.0, 0), any];
    fixture.store.write_votes(&votes, &SCALE).await.unwrap();
    let all = candidates(&fixture, 2).await;
    let keys: Vec<&str> = all.iter().map(|candidate| candidate.object.key.as_str()).collect();
    assert_eq!(keys, ["overwritten", "plain", "rated before", "two versions"]);
    let [overwritten, plain, _, versions] = &all[..] else { panic!("{all:?}") };
    assert_eq!((overwritten.object.etag.as_str(), overwritten.score, overwritten.std), ("new", 5.5, 4.5));
    assert_eq!(overwritten.disagreement, 0.0);
    assert_eq!((plain.score, plain.std, plain.disagreement), (3.0, 0.0, 0.0));
    // Scores 1 and 6; the newest row is v2's.
    assert_eq!((versions.model_version.as_str(), versions.disagreement), ("v2", 2.5));
    for page in [1, 3, 100] {
        assert_eq!(candidates(&fixture, page).await, all, "pages of {page}");
    }
}

/// A page reads a page, wherever in a large bucket it begins, and whatever the planner knows of the table.
#[tokio::test]
async fn a_page_of_candidates_reads_no_more_than_a_page() {
    const ROWS: i64 = 20_000;
    let fixture = Fixture::new().await;
    let pool = fixture.pool().await;
    sqlx::query(
        "INSERT INTO scores (id, bucket, object_key, etag, model, model_version, status, score, scored_at)
         SELECT gen_random_uuid(), 'photos', lpad(n::text, 6, '0'), 'e', 'm', 'v', 'scored', 5, now()
         FROM generate_series(1, $1) n",
    )
    .bind(ROWS)
    .execute(&pool)
    .await
    .unwrap();
    // Not analysed: as after a large backfill that autovacuum has not come to yet.
    let read = async || -> i64 {
        sqlx::query_scalar("SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes")
            .fetch_one(&pool)
            .await
            .unwrap()
    };
    let before = read().await;
    let after = Cursor { bucket: "photos".into(), key: "001000".into() };
    let page = fixture.store.unlabelled(&SCALE, Some(&after), 10).await.unwrap();
    assert_eq!((page.candidates.len(), page.seen), (10, 10));
    // A session's counts are there once it ends.
    fixture.store.close().await;
    let mut rows = read().await - before;
    for _ in 0..100 {
        if rows > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        rows = read().await - before;
    }
    assert!((10..1_000).contains(&rows), "{rows} of {ROWS} index entries were read for 10 photos");
}

#[tokio::test]
async fn the_histogram_counts_each_score_in_its_nearest_bin() {
    let fixture = Fixture::new().await;
    let bins = [[0, 0], [0, 0], [0, 1], [9, 9], [4, 6]];
    for (number, bins) in bins.into_iter().enumerate() {
        fixture.store.upsert(&[scored(&number.to_string(), "e", "1", "v", bins)]).await.unwrap();
    }
    let histogram = fixture.store.score_histogram(SCALE).await.unwrap();
    // 1.5 is as far from 1 as from 2, and counts as 1 both here and where densities are asked for.
    for (score, density) in [(1.0, 0.6), (1.5, 0.6), (2.0, 0.0), (6.0, 0.2), (10.0, 0.2)] {
        assert_eq!(histogram.density(score), density, "{score}");
    }
}
