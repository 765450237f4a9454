//! Writes of `votes`, and of the `labels` that they come to.

use crate::failpoint;
use crate::labels::{Label, LabelledObject, Opinion, Scale, Turn, Vote};
use crate::store::error::StoreError;
use crate::store::pool::Store;
use crate::store::scores::{array_literal, json};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Postgres, Row, Transaction};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use time::OffsetDateTime;

/// One writer at a time, until its commit is visible: so numbers become visible in order, and of two
/// writers on one object the second sees the first one's votes. A process that sleeps with the lock loses its
/// connection. The number is nobody else's.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7095321847266), \
                    set_config('idle_in_transaction_session_timeout', $1, true)";
/// In milliseconds; a writer that works asks again within a few.
const IDLE_TIMEOUT: &str = "5000";

/// Of two votes by one rater on one object the later one stays. It counts as new if it says something else.
const UPSERT: &str = "
INSERT INTO votes AS stored (
    bucket, object_key, etag, rater, scores, distributions, raters, conversation, labelled_at, ingested)
SELECT
    bucket, object_key, etag, rater, scores::double precision[], distributions::jsonb, raters,
    conversation::jsonb, labelled_at, nextval('votes_ingested')
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::text[],
    $9::timestamptz[])
AS new (bucket, object_key, etag, rater, scores, distributions, raters, conversation, labelled_at)
ON CONFLICT (bucket, object_key, etag, rater) DO UPDATE SET
    scores = excluded.scores, distributions = excluded.distributions, raters = excluded.raters,
    conversation = excluded.conversation, labelled_at = excluded.labelled_at,
    ingested = CASE
        WHEN (stored.scores, stored.distributions, stored.raters, stored.conversation)
            IS NOT DISTINCT FROM
            (excluded.scores, excluded.distributions, excluded.raters, excluded.conversation)
        THEN stored.ingested ELSE excluded.ingested END
WHERE excluded.labelled_at > stored.labelled_at
RETURNING bucket, object_key, etag, rater";

/// Every vote on some objects, in an order that does not depend on which came first.
const VOTES: &str = "
SELECT votes.bucket, votes.object_key, votes.etag, votes.rater, scores, distributions, raters, conversation,
    labelled_at, ingested
FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (bucket, object_key, etag)
JOIN votes USING (bucket, object_key, etag)
ORDER BY votes.bucket, votes.object_key, votes.etag, votes.rater";

const UPSERT_LABELS: &str = "
INSERT INTO labels AS stored (
    bucket, object_key, etag, attributes, score, scores, distributions, raters, conversation, labelled_at,
    ingested)
SELECT
    bucket, object_key, etag, attributes, (scores::double precision[])[1], scores::double precision[],
    distributions::jsonb, raters, conversation::jsonb, labelled_at, ingested
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::text[], $7::integer[], $8::text[],
    $9::timestamptz[], $10::bigint[])
AS new (
    bucket, object_key, etag, attributes, scores, distributions, raters, conversation, labelled_at, ingested)
ON CONFLICT (bucket, object_key, etag, attributes) DO UPDATE SET
    score = excluded.score, scores = excluded.scores, distributions = excluded.distributions,
    raters = excluded.raters, conversation = excluded.conversation, labelled_at = excluded.labelled_at,
    ingested = excluded.ingested";

/// Labels of objects that have no vote of so many scores any more.
const DELETE_LABELS: &str = "
DELETE FROM labels
USING unnest($1::text[], $2::text[], $3::text[]) AS touched (bucket, object_key, etag)
WHERE labels.bucket = touched.bucket AND labels.object_key = touched.object_key
    AND labels.etag = touched.etag
    AND NOT EXISTS (
        SELECT FROM votes
        WHERE votes.bucket = labels.bucket AND votes.object_key = labels.object_key
            AND votes.etag = labels.etag AND cardinality(votes.scores) = labels.attributes)";

/// What became of a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VoteOutcome {
    /// It is the rater's vote now.
    Stored,
    /// The rater's vote is another, given later or at the same time; or this one, stored before.
    Superseded,
}

impl VoteOutcome {
    /// The word in metrics and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Superseded => "superseded",
        }
    }
}

/// A vote as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredVote {
    pub vote: Vote,
    pub ingested: i64,
}

impl Store {
    /// Writes votes, and the labels that they come to with those already there. What became of each, in
    /// order. Everything is durable once this returns, and it may be repeated after any error.
    ///
    /// Votes must have been checked against `scale`. Stored ones that do not fit it are left out of labels.
    pub async fn write_votes(&self, votes: &[Vote], scale: &Scale) -> Result<Vec<VoteOutcome>, StoreError> {
        if votes.is_empty() {
            return Ok(Vec::new());
        }
        let kept = latest(votes);
        let rows: Vec<&Vote> = kept.values().map(|index| &votes[*index]).collect();
        let written = self
            .transaction(async |transaction| {
                sqlx::query(LOCK).persistent(false).bind(IDLE_TIMEOUT).execute(&mut **transaction).await?;
                let written = upsert(transaction, &rows).await?;
                failpoint::reach("row-inserted");
                let touched: BTreeSet<&LabelledObject> = written.iter().map(|(object, _)| object).collect();
                let touched: Vec<&LabelledObject> = touched.into_iter().collect();
                if !touched.is_empty() {
                    let votes = select(transaction, &touched).await?;
                    label(transaction, &touched, &votes, scale).await?;
                }
                Ok(written)
            })
            .await?;
        let stored = |index: usize, vote: &Vote| {
            kept.get(&(&vote.object, vote.rater.as_str())) == Some(&index)
                && written.contains(&(vote.object.clone(), vote.rater.clone()))
        };
        let outcome = |(index, vote): (usize, &Vote)| match stored(index, vote) {
            true => VoteOutcome::Stored,
            false => VoteOutcome::Superseded,
        };
        Ok(votes.iter().enumerate().map(outcome).collect())
    }

    /// Every vote on these objects, by object and rater.
    pub async fn votes_on(&self, objects: &[&LabelledObject]) -> Result<Vec<StoredVote>, StoreError> {
        self.transaction(async |transaction| select(transaction, objects).await).await
    }
}

/// Where the vote of each rater on each object that counts is among `votes`: the latest, and of equals the
/// first. In key order, as rows are locked.
fn latest(votes: &[Vote]) -> BTreeMap<(&LabelledObject, &str), usize> {
    let mut kept = BTreeMap::new();
    for (index, vote) in votes.iter().enumerate() {
        let best = kept.entry((&vote.object, vote.rater.as_str())).or_insert(index);
        if vote.labelled_at > votes[*best].labelled_at {
            *best = index;
        }
    }
    kept
}

async fn upsert(
    transaction: &mut Transaction<'_, Postgres>,
    votes: &[&Vote],
) -> Result<HashSet<(LabelledObject, String)>, sqlx::Error> {
    let mut columns = Columns::default();
    let (mut raters, mut names) = (Vec::new(), Vec::new());
    for vote in votes {
        columns.push(&vote.object, &vote.opinion, &vote.conversation, vote.labelled_at)?;
        raters.push(stored_count(vote.opinion.raters));
        names.push(vote.rater.as_str());
    }
    let written = sqlx::query(UPSERT)
        .persistent(false)
        .bind(columns.bucket)
        .bind(columns.key)
        .bind(columns.etag)
        .bind(names)
        .bind(columns.scores)
        .bind(columns.distributions)
        .bind(raters)
        .bind(columns.conversation)
        .bind(columns.labelled_at)
        .fetch_all(&mut **transaction)
        .await?;
    written.iter().map(|row| Ok((read_object(row)?, row.try_get("rater")?))).collect()
}

async fn select(
    transaction: &mut Transaction<'_, Postgres>,
    objects: &[&LabelledObject],
) -> Result<Vec<StoredVote>, sqlx::Error> {
    let (buckets, keys, etags) = columns_of(objects);
    let query = sqlx::query(VOTES).persistent(false).bind(buckets).bind(keys).bind(etags);
    query.fetch_all(&mut **transaction).await?.iter().map(read_vote).collect()
}

/// Writes the labels of `touched` objects anew from all of their votes.
async fn label(
    transaction: &mut Transaction<'_, Postgres>,
    touched: &[&LabelledObject],
    votes: &[StoredVote],
    scale: &Scale,
) -> Result<(), sqlx::Error> {
    let mut groups: BTreeMap<(&LabelledObject, usize), Vec<&StoredVote>> = BTreeMap::new();
    for stored in votes {
        if let Err(refusal) = stored.vote.opinion.check(scale) {
            let (object, rater) = (&stored.vote.object, &stored.vote.rater);
            tracing::warn!(?object, rater, %refusal, "a stored vote does not fit the scale and is left out");
            continue;
        }
        groups.entry((&stored.vote.object, stored.vote.opinion.scores.len())).or_default().push(stored);
    }
    let mut columns = Columns::default();
    let (mut attributes, mut raters, mut ingested) = (Vec::new(), Vec::new(), Vec::new());
    for group in groups.values() {
        let votes: Vec<&Vote> = group.iter().map(|stored| &stored.vote).collect();
        let Some(label) = Label::of_votes(&votes, scale) else { continue };
        columns.push(&label.object, &label.opinion, &label.conversation, label.labelled_at)?;
        raters.push(stored_count(label.opinion.raters));
        ingested.push(group.iter().map(|stored| stored.ingested).max().unwrap_or_default());
        attributes.push(stored_count(label.opinion.scores.len()));
    }
    let Columns { bucket, key, etag, scores, distributions, conversation, labelled_at } = columns;
    sqlx::query(UPSERT_LABELS)
        .persistent(false)
        .bind(bucket)
        .bind(key)
        .bind(etag)
        .bind(attributes)
        .bind(scores)
        .bind(distributions)
        .bind(raters)
        .bind(conversation)
        .bind(labelled_at)
        .bind(ingested)
        .execute(&mut **transaction)
        .await?;
    let (buckets, keys, etags) = columns_of(touched);
    sqlx::query(DELETE_LABELS)
        .persistent(false)
        .bind(buckets)
        .bind(keys)
        .bind(etags)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// What votes and labels have in common, as `unnest` takes it.
#[derive(Default)]
struct Columns {
    bucket: Vec<String>,
    key: Vec<String>,
    etag: Vec<String>,
    /// As array literals: `unnest` would flatten an array of arrays.
    scores: Vec<String>,
    distributions: Vec<Option<String>>,
    conversation: Vec<Option<String>>,
    labelled_at: Vec<OffsetDateTime>,
}

impl Columns {
    fn push(
        &mut self,
        object: &LabelledObject,
        opinion: &Opinion,
        conversation: &[Turn],
        labelled_at: OffsetDateTime,
    ) -> Result<(), sqlx::Error> {
        let distributions = &opinion.distributions;
        self.bucket.push(object.bucket.clone());
        self.key.push(object.key.clone());
        self.etag.push(object.etag.clone());
        self.scores.push(array_literal(&opinion.scores));
        self.distributions.push((!distributions.is_empty()).then(|| json(distributions)).transpose()?);
        self.conversation.push((!conversation.is_empty()).then(|| json(&conversation)).transpose()?);
        self.labelled_at.push(labelled_at);
        Ok(())
    }
}

/// The columns that name objects.
fn columns_of(objects: &[&LabelledObject]) -> (Vec<String>, Vec<String>, Vec<String>) {
    let column =
        |of: fn(&LabelledObject) -> &String| objects.iter().map(|object| of(object).clone()).collect();
    (column(|object| &object.bucket), column(|object| &object.key), column(|object| &object.etag))
}

/// What an `integer` holds; an opinion has no more.
fn stored_count(count: impl TryInto<i32>) -> i32 {
    count.try_into().unwrap_or(i32::MAX)
}

pub(super) fn read_object(row: &PgRow) -> Result<LabelledObject, sqlx::Error> {
    Ok(LabelledObject {
        bucket: row.try_get("bucket")?,
        key: row.try_get("object_key")?,
        etag: row.try_get("etag")?,
    })
}

pub(super) fn read_opinion(row: &PgRow) -> Result<Opinion, sqlx::Error> {
    let distributions: Option<Json<Vec<Vec<f64>>>> = row.try_get("distributions")?;
    Ok(Opinion {
        scores: row.try_get("scores")?,
        distributions: distributions.map(|Json(lists)| lists).unwrap_or_default(),
        raters: u32::try_from(row.try_get::<i32, _>("raters")?).unwrap_or_default(),
    })
}

pub(super) fn read_conversation(row: &PgRow) -> Result<Vec<Turn>, sqlx::Error> {
    let conversation: Option<Json<Vec<Turn>>> = row.try_get("conversation")?;
    Ok(conversation.map(|Json(turns)| turns).unwrap_or_default())
}

fn read_vote(row: &PgRow) -> Result<StoredVote, sqlx::Error> {
    let vote = Vote {
        object: read_object(row)?,
        rater: row.try_get("rater")?,
        opinion: read_opinion(row)?,
        conversation: read_conversation(row)?,
        labelled_at: row.try_get("labelled_at")?,
    };
    Ok(StoredVote { vote, ingested: row.try_get("ingested")? })
}
