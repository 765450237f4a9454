//! Reads and writes of `shadow_agreement` and `shadow_pairs`.

use crate::object::ScoreId;
use crate::store::error::StoreError;
use crate::store::pool::Store;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// Pairs that are kept of each candidate and champion, but for those that wait to be trimmed.
pub const PAIRS_KEPT: i64 = 2_000;

/// One image as both models score it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShadowPair {
    /// The row of the published score.
    pub id: ScoreId,
    pub champion: f64,
    pub candidate: f64,
}

/// Sums over the images that two models have both scored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ShadowSums {
    pub images: u64,
    pub champion: f64,
    pub candidate: f64,
    pub champion_squared: f64,
    pub candidate_squared: f64,
    pub product: f64,
    pub absolute_difference: f64,
}

impl ShadowSums {
    pub fn add(&mut self, pair: &ShadowPair) {
        let ShadowPair { champion, candidate, .. } = *pair;
        self.images += 1;
        self.champion += champion;
        self.candidate += candidate;
        self.champion_squared += champion * champion;
        self.candidate_squared += candidate * candidate;
        self.product += champion * candidate;
        self.absolute_difference += (candidate - champion).abs();
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let images: i64 = row.try_get("images")?;
        Ok(Self {
            images: images.unsigned_abs(),
            champion: row.try_get("sum_champion")?,
            candidate: row.try_get("sum_candidate")?,
            champion_squared: row.try_get("sum_champion_squared")?,
            candidate_squared: row.try_get("sum_candidate_squared")?,
            product: row.try_get("sum_product")?,
            absolute_difference: row.try_get("sum_absolute_difference")?,
        })
    }
}

impl<'a> FromIterator<&'a ShadowPair> for ShadowSums {
    fn from_iter<I: IntoIterator<Item = &'a ShadowPair>>(pairs: I) -> Self {
        let mut sums = Self::default();
        pairs.into_iter().for_each(|pair| sums.add(pair));
        sums
    }
}

/// What is recorded of a candidate beside one champion.
#[derive(Clone, Debug, PartialEq)]
pub struct ShadowRecord {
    /// Both as rows of `scores` name them.
    pub candidate: String,
    pub champion: String,
    /// Over every image.
    pub sums: ShadowSums,
    /// Of at most [`PAIRS_KEPT`] images, by id.
    pub sample: Vec<ShadowPair>,
}

/// Last of all, so that its row is locked for no longer than a commit takes.
const ADD: &str = "
INSERT INTO shadow_agreement AS known (
    candidate, champion, images, sum_champion, sum_candidate, sum_champion_squared, sum_candidate_squared,
    sum_product, sum_absolute_difference)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (candidate, champion) DO UPDATE SET
    images = known.images + excluded.images,
    sum_champion = known.sum_champion + excluded.sum_champion,
    sum_candidate = known.sum_candidate + excluded.sum_candidate,
    sum_champion_squared = known.sum_champion_squared + excluded.sum_champion_squared,
    sum_candidate_squared = known.sum_candidate_squared + excluded.sum_candidate_squared,
    sum_product = known.sum_product + excluded.sum_product,
    sum_absolute_difference = known.sum_absolute_difference + excluded.sum_absolute_difference,
    last_at = now()";

/// In the order of ids: of two workers that have scored the same images one waits for the other.
const SAMPLE: &str = "
INSERT INTO shadow_pairs (candidate, champion, id, champion_score, candidate_score)
SELECT $1, $2, new.*
FROM unnest($3::uuid[], $4::double precision[], $5::double precision[]) AS new (id, champion_score, candidate_score)
ORDER BY new.id
ON CONFLICT (candidate, champion, id) DO NOTHING";

/// One worker at a time trims, and the others leave it to the next one.
const MAY_TRIM: &str =
    "SELECT pg_try_advisory_xact_lock(hashtextextended(format('shadow %s %s', $1, $2), 0))";

/// From the first id too many on, which is looked up once; nothing where there is none. With a list of ids a
/// planner that knows nothing of the table yet may go through the list once for each row.
const TRIM: &str = "
DELETE FROM shadow_pairs WHERE candidate = $1 AND champion = $2 AND id >= (
    SELECT id FROM shadow_pairs WHERE candidate = $1 AND champion = $2 ORDER BY id OFFSET $3 LIMIT 1)";

const READ: &str = "
SELECT candidate, champion, images, sum_champion, sum_candidate, sum_champion_squared, sum_candidate_squared,
    sum_product, sum_absolute_difference
FROM shadow_agreement WHERE candidate = $1 OR starts_with(candidate, $1 || '+')
ORDER BY last_at DESC, candidate, champion";

const READ_SAMPLE: &str = "
SELECT id, champion_score, candidate_score FROM shadow_pairs
WHERE candidate = $1 AND champion = $2 ORDER BY id LIMIT $3";

impl Store {
    /// Adds images that `candidate` and `champion` (versions as in `scores`) have both scored.
    ///
    /// # Errors
    /// [`StoreError`]; then none of them is recorded.
    pub async fn record_shadow(
        &self,
        candidate: &str,
        champion: &str,
        pairs: &[ShadowPair],
    ) -> Result<(), StoreError> {
        let sums: ShadowSums = pairs.iter().collect();
        let images = i64::try_from(sums.images).unwrap_or(i64::MAX);
        let ids: Vec<Uuid> = pairs.iter().map(|pair| pair.id.0).collect();
        let published: Vec<f64> = pairs.iter().map(|pair| pair.champion).collect();
        let shadowed: Vec<f64> = pairs.iter().map(|pair| pair.candidate).collect();
        self.transaction(async |transaction| {
            let sample = sqlx::query(SAMPLE).persistent(false).bind(candidate).bind(champion);
            let sample = sample.bind(&ids).bind(&published).bind(&shadowed);
            sample.execute(&mut **transaction).await?;
            let may_trim = sqlx::query_scalar(MAY_TRIM).persistent(false).bind(candidate).bind(champion);
            if may_trim.fetch_one(&mut **transaction).await? {
                let trim = sqlx::query(TRIM).persistent(false).bind(candidate).bind(champion);
                trim.bind(PAIRS_KEPT).execute(&mut **transaction).await?;
            }
            let add = sqlx::query(ADD).persistent(false).bind(candidate).bind(champion).bind(images);
            let add = add.bind(sums.champion).bind(sums.candidate).bind(sums.champion_squared);
            let add = add.bind(sums.candidate_squared).bind(sums.product).bind(sums.absolute_difference);
            add.execute(&mut **transaction).await?;
            Ok(())
        })
        .await
    }

    /// What is recorded of `candidate`, as rows or the registry name it: one entry a champion, the latest
    /// first.
    ///
    /// # Errors
    /// [`StoreError`] when Postgres does not answer.
    pub async fn shadow_records(&self, candidate: &str) -> Result<Vec<ShadowRecord>, StoreError> {
        self.transaction(async |transaction| {
            let rows = sqlx::query(READ).persistent(false).bind(candidate);
            let rows = rows.fetch_all(&mut **transaction).await?;
            let mut records = Vec::with_capacity(rows.len());
            for row in &rows {
                let candidate: String = row.try_get("candidate")?;
                let champion: String = row.try_get("champion")?;
                let sample = sqlx::query(READ_SAMPLE).persistent(false).bind(&candidate).bind(&champion);
                let sample = sample.bind(PAIRS_KEPT).fetch_all(&mut **transaction).await?;
                let sample = sample.iter().map(read_pair).collect::<Result<_, _>>()?;
                records.push(ShadowRecord { candidate, champion, sums: ShadowSums::read(row)?, sample });
            }
            Ok(records)
        })
        .await
    }
}

fn read_pair(row: &PgRow) -> Result<ShadowPair, sqlx::Error> {
    Ok(ShadowPair {
        id: ScoreId(row.try_get("id")?),
        champion: row.try_get("champion_score")?,
        candidate: row.try_get("candidate_score")?,
    })
}
