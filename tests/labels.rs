//! Votes and labels in Postgres, for real, and the commands that bring them in and out.

#[path = "labels/commands.rs"]
mod commands;
#[path = "labels/order.rs"]
mod order;
#[path = "labels/suggest.rs"]
mod suggest;

use roc4mllm::dev::TestDatabase;
use roc4mllm::labels::{Label, LabelledObject, Opinion, Scale, Turn, Vote};
use roc4mllm::secret::Secret;
use roc4mllm::store::{PostgresSettings, Store, StoredLabel, VoteOutcome};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime, macros::datetime};

pub const SCALE: Scale = Scale::PAPER;
pub const NOON: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

pub struct Fixture {
    pub store: Store,
    pub database: TestDatabase,
}

impl Fixture {
    pub async fn new() -> Self {
        let database = TestDatabase::create().await.unwrap();
        let settings = PostgresSettings { url: Secret::from(database.url()), ..PostgresSettings::default() };
        let store = Store::connect(&settings).await.unwrap();
        store.migrate().await.unwrap();
        Self { store, database }
    }

    pub async fn pool(&self) -> PgPool {
        PgPool::connect(self.database.url()).await.unwrap()
    }

    pub async fn labels(&self) -> Vec<StoredLabel> {
        self.store.labels_by_key(None, 10_000).await.unwrap()
    }

    /// Every label is what the votes on its object come to, and there is one for all of them.
    pub async fn check_labels(&self, objects: &[&LabelledObject]) {
        let votes = self.store.votes_on(objects).await.unwrap();
        let labels = self.labels().await;
        let mut attributes: Vec<(&LabelledObject, usize)> =
            votes.iter().map(|stored| (&stored.vote.object, stored.vote.opinion.scores.len())).collect();
        attributes.sort();
        attributes.dedup();
        assert_eq!(labels.len(), attributes.len());
        for StoredLabel { label, ingested } in &labels {
            let own = votes.iter().filter(|stored| {
                stored.vote.object == label.object
                    && stored.vote.opinion.scores.len() == label.opinion.scores.len()
            });
            let (own, numbers): (Vec<&Vote>, Vec<i64>) =
                own.map(|stored| (&stored.vote, stored.ingested)).unzip();
            assert_eq!(Label::of_votes(&own, &SCALE).as_ref(), Some(label));
            assert_eq!(numbers.iter().max(), Some(ingested));
        }
    }
}

pub fn object(key: &str) -> LabelledObject {
    LabelledObject::new("photos".into(), key.into(), Some("e1".into())).unwrap()
}

pub fn vote(key: &str, rater: &str, score: f64, minutes: i64) -> Vote {
    Vote {
        object: object(key),
        rater: rater.into(),
        opinion: Opinion::of_scores(vec![score]),
        conversation: Vec::new(),
        labelled_at: NOON + Duration::minutes(minutes),
    }
}

fn turns(answer: &str) -> Vec<Turn> {
    let turn = |from: &str, value: &str| Turn { from: from.into(), value: value.into() };
    vec![turn("human", "<|image|>Rate it."), turn("gpt", answer)]
}

#[tokio::test]
async fn votes_read_back_as_they_were_given_and_come_to_a_label() {
    let fixture = Fixture::new().await;
    let counts = vec![0, 1, 5, 17, 38, 36, 15, 6, 5, 1];
    let votes = [
        vote("a//ü +%2F.jpg", "ann", 5.0 + 1.0 / 3.0, 0),
        Vote {
            opinion: Opinion::of_counts(&[counts], &SCALE).unwrap(),
            conversation: turns("It is [SCORE]."),
            ..vote("a//ü +%2F.jpg", "a crowd", 1.0, 1)
        },
    ];
    let outcomes = fixture.store.write_votes(&votes, &SCALE).await.unwrap();
    assert_eq!(outcomes, [VoteOutcome::Stored; 2]);
    let read = fixture.store.votes_on(&[&votes[0].object]).await.unwrap();
    // By rater.
    assert_eq!(read.iter().map(|stored| &stored.vote).collect::<Vec<_>>(), [&votes[1], &votes[0]]);
    fixture.check_labels(&[&votes[0].object]).await;
    let label = &fixture.labels().await[0].label;
    assert_eq!((label.opinion.raters, label.conversation.len()), (125, 2));
    let (score, raters): (f64, i32) =
        sqlx::query_as("SELECT score, raters FROM labels").fetch_one(&fixture.pool().await).await.unwrap();
    assert_eq!((score, raters), (label.opinion.scores[0], 125));
}

#[tokio::test]
async fn the_latest_vote_of_a_rater_counts_and_a_repeated_one_changes_nothing() {
    let fixture = Fixture::new().await;
    let write = async |vote: Vote| fixture.store.write_votes(&[vote], &SCALE).await.unwrap()[0];
    let state = async || {
        let label = fixture.labels().await.remove(0);
        (label.label.opinion.scores[0], label.ingested)
    };
    assert_eq!(write(vote("a", "ann", 5.0, 10)).await, VoteOutcome::Stored);
    let first = state().await;
    for earlier in [vote("a", "ann", 5.0, 10), vote("a", "ann", 9.0, 10), vote("a", "ann", 8.0, 9)] {
        assert_eq!(write(earlier).await, VoteOutcome::Superseded);
        assert_eq!(state().await, first);
    }
    // Said again later, it is the same label; another score makes it a new one.
    assert_eq!(write(vote("a", "ann", 5.0, 11)).await, VoteOutcome::Stored);
    assert_eq!(state().await, first);
    assert_eq!(write(vote("a", "ann", 7.0, 12)).await, VoteOutcome::Stored);
    let changed = state().await;
    assert!(changed.0 == 7.0 && changed.1 > first.1, "{changed:?} after {first:?}");

    let many = [vote("b", "ann", 1.0, 0), vote("b", "ann", 3.0, 2), vote("b", "ann", 2.0, 1)];
    let outcomes = fixture.store.write_votes(&many, &SCALE).await.unwrap();
    let expected = [VoteOutcome::Superseded, VoteOutcome::Stored, VoteOutcome::Superseded];
    assert_eq!(outcomes, expected);
    fixture.check_labels(&[&object("a"), &object("b")]).await;
}

#[tokio::test]
async fn a_label_goes_with_its_last_vote_of_so_many_scores() {
    let fixture = Fixture::new().await;
    let two = Vote {
        opinion: Opinion::of_scores(vec![2.0, 9.0]),
        conversation: turns("Colour [SCORE], light [SCORE]."),
        ..vote("a", "ann", 1.0, 1)
    };
    fixture.store.write_votes(&[vote("a", "ann", 5.0, 0), vote("a", "bob", 6.0, 0)], &SCALE).await.unwrap();
    fixture.store.write_votes(std::slice::from_ref(&two), &SCALE).await.unwrap();
    let attributes = async || {
        let labels = fixture.labels().await;
        labels.iter().map(|stored| stored.label.opinion.scores.len()).collect::<Vec<_>>()
    };
    assert_eq!(attributes().await, [1, 2]);
    fixture.check_labels(&[&object("a")]).await;
    let bob = Vote { rater: "bob".into(), ..two };
    fixture.store.write_votes(&[bob], &SCALE).await.unwrap();
    assert_eq!(attributes().await, [2]);
    fixture.check_labels(&[&object("a")]).await;
}

#[tokio::test]
async fn what_the_table_cannot_hold_is_refused_for_good() {
    let fixture = Fixture::new().await;
    let refused = vote("a", "ann", f64::NAN, 0);
    let error = fixture.store.write_votes(&[refused], &SCALE).await.unwrap_err();
    assert_eq!(error.disposition(), roc4mllm::fault::Disposition::Reject, "{error}");
}

#[tokio::test]
async fn training_reads_what_is_new_in_pages_and_a_sample_of_what_is_not() {
    let fixture = Fixture::new().await;
    let batch = |from: usize, to: usize, rater: &str| -> Vec<Vote> {
        (from..to).map(|n| vote(&format!("{n:03}"), rater, 1.0 + (n % 10) as f64, 0)).collect()
    };
    fixture.store.write_votes(&batch(0, 100, "ann"), &SCALE).await.unwrap();
    let old = fixture.store.label_watermark().await.unwrap();
    fixture.store.write_votes(&batch(90, 130, "bob"), &SCALE).await.unwrap();
    let upto = fixture.store.label_watermark().await.unwrap();
    let counts = fixture.store.count_labels(old, upto).await.unwrap();
    assert_eq!((counts.labels, counts.raters), (40, 1));
    assert_eq!(fixture.store.count_labels(0, upto).await.unwrap().labels, 130);

    // What comes while a run reads is the next run's, and takes its label with it.
    fixture.store.write_votes(&[vote("095", "cid", 9.0, 0)], &SCALE).await.unwrap();
    let mut keys = Vec::new();
    let mut after = old;
    loop {
        let page = fixture.store.new_labels(after, upto, 7).await.unwrap();
        let Some(last) = page.last() else { break };
        after = last.ingested;
        keys.extend(page.into_iter().map(|stored| stored.label.object.key));
    }
    keys.sort();
    let expected: Vec<String> = (90..130).filter(|n| *n != 95).map(|n| format!("{n:03}")).collect();
    assert_eq!(keys, expected);

    let sample = async |scores, count, seed| {
        let labels = fixture.store.sample_labels(old, 1, scores, count, seed).await.unwrap();
        labels.into_iter().map(|stored| stored.label).collect::<Vec<_>>()
    };
    let low = sample(1.0..=3.0, 5, 1).await;
    assert_eq!(low.len(), 5);
    assert!(low.iter().all(|label| label.opinion.scores[0] <= 3.0 && label.object.key.as_str() < "090"));
    assert_eq!(low, sample(1.0..=3.0, 5, 1).await, "a seed draws the same");
    let draws = [sample(1.0..=3.0, 5, 2).await, sample(1.0..=3.0, 5, 3).await];
    assert!(draws.iter().any(|draw| *draw != low), "another seed draws others");
    assert_eq!(sample(4.0..=4.0, 100, 1).await.len(), 9);
}
