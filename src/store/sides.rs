//! Reads and writes of `photo_sides` and `photo_contents`: which side of the split each photo is on, and
//! which labelled object holds which photo.

use crate::labels::LabelledObject;
use crate::split::{Assignment, ContentHash, Fingerprint, Member, Side};
use crate::store::error::StoreError;
use crate::store::labels::{COLUMNS, StoredLabel, read_label};
use crate::store::pool::Store;
use crate::store::runs::{RunError, RunLease, holds};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

/// The order of the rows is that of the photos.
const INSERT_SIDES: &str = "
INSERT INTO photo_sides (content, fingerprint, founder, side, gold)
SELECT content, fingerprint, founder, side, gold
FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::text[], $5::boolean[]) WITH ORDINALITY
AS new (content, fingerprint, founder, side, gold, place)
ORDER BY place
ON CONFLICT (content) DO NOTHING";

const UPSERT_CONTENTS: &str = "
INSERT INTO photo_contents AS stored (bucket, object_key, etag, content)
SELECT bucket, object_key, etag, content
FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[]) AS new (bucket, object_key, etag, content)
ORDER BY bucket, object_key, etag
ON CONFLICT (bucket, object_key, etag) DO UPDATE SET content = excluded.content
WHERE stored.content <> excluded.content";

/// A photo and where it belongs.
#[derive(Clone, Debug, PartialEq)]
pub struct PhotoSide {
    pub content: ContentHash,
    pub fingerprint: Fingerprint,
    pub assignment: Assignment,
    /// Whether it is held out for the gold set.
    pub gold: bool,
}

impl PhotoSide {
    /// As the splitter knows it.
    pub fn member(&self) -> Member {
        Member { content: self.content, fingerprint: Some(self.fingerprint), assignment: self.assignment }
    }
}

/// How many labels with so many scores there are in one of the equal parts of the range of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stratum {
    pub attributes: usize,
    /// From 0.
    pub part: usize,
    pub labels: u64,
}

impl Store {
    /// Up to `limit` photos in the order in which they were assigned, beyond the place `after` (0: from the
    /// first), with their places.
    pub async fn photo_sides(&self, after: i64, limit: u32) -> Result<Vec<(i64, PhotoSide)>, StoreError> {
        self.transaction(async |transaction| {
            let rows = sqlx::query(
                "SELECT ordinal, content, fingerprint, founder, side, gold FROM photo_sides \
                 WHERE ordinal > $1 ORDER BY ordinal LIMIT $2",
            )
            .persistent(false)
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(&mut **transaction)
            .await?;
            rows.iter().map(|row| Ok((row.try_get("ordinal")?, read_side(row)?))).collect()
        })
        .await
    }

    /// Stores new photos' sides, in their order, and what objects hold; for whoever has the run's lease.
    /// Every content must have a side, stored now or before. A photo that has a side keeps it.
    ///
    /// # Errors
    /// [`RunError::Lost`]: nothing is stored then.
    pub async fn write_sides(
        &self,
        lease: &RunLease,
        sides: &[PhotoSide],
        contents: &[(&LabelledObject, ContentHash)],
    ) -> Result<(), RunError> {
        let held = self
            .transaction(async |transaction| {
                if !holds(transaction, lease).await? {
                    return Ok(false);
                }
                let bytes = |hash: &ContentHash| hash.0.to_vec();
                let column = |of: &dyn Fn(&PhotoSide) -> Vec<u8>| sides.iter().map(of).collect::<Vec<_>>();
                sqlx::query(INSERT_SIDES)
                    .persistent(false)
                    .bind(column(&|side| bytes(&side.content)))
                    .bind(column(&|side| packed(&side.fingerprint)))
                    .bind(column(&|side| bytes(&side.assignment.group)))
                    .bind(sides.iter().map(|side| word(side.assignment.side)).collect::<Vec<_>>())
                    .bind(sides.iter().map(|side| side.gold).collect::<Vec<_>>())
                    .execute(&mut **transaction)
                    .await?;
                let text = |of: &dyn Fn(&LabelledObject) -> String| {
                    contents.iter().map(|(object, _)| of(object)).collect::<Vec<_>>()
                };
                sqlx::query(UPSERT_CONTENTS)
                    .persistent(false)
                    .bind(text(&|object| object.bucket.clone()))
                    .bind(text(&|object| object.key.clone()))
                    .bind(text(&|object| object.etag.clone()))
                    .bind(contents.iter().map(|(_, content)| bytes(content)).collect::<Vec<_>>())
                    .execute(&mut **transaction)
                    .await?;
                Ok(true)
            })
            .await?;
        if held { Ok(()) } else { Err(RunError::Lost(lease.run)) }
    }

    /// Labels up to `upto` of photos that are known to be held out, but not for the gold set: up to `count`,
    /// drawn at random by `seed`.
    pub async fn sample_held_out(
        &self,
        upto: i64,
        count: u32,
        seed: i64,
    ) -> Result<Vec<StoredLabel>, StoreError> {
        let statement = format!(
            "SELECT {COLUMNS} FROM labels JOIN (
                 SELECT bucket, object_key, etag, attributes
                 FROM labels JOIN photo_contents USING (bucket, object_key, etag)
                     JOIN photo_sides USING (content)
                 WHERE ingested <= $1 AND side = 'holdout' AND NOT gold
                 ORDER BY hashtextextended(bucket || '/' || object_key || '/' || etag, $3),
                     bucket, object_key, etag, attributes
                 LIMIT $2
             ) drawn USING (bucket, object_key, etag, attributes)
             ORDER BY bucket, object_key, etag, attributes"
        );
        self.transaction(async |transaction| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
            let query = query.bind(upto).bind(i64::from(count)).bind(seed);
            query.fetch_all(&mut **transaction).await?.iter().map(read_label).collect()
        })
        .await
    }

    /// Labels of the gold set's first `count` labels, in the order in which their photos came in.
    pub async fn gold_labels(&self, upto: i64, count: u32) -> Result<Vec<StoredLabel>, StoreError> {
        let statement = format!(
            "SELECT {COLUMNS} FROM photo_sides JOIN photo_contents USING (content) \
                 JOIN labels USING (bucket, object_key, etag) \
             WHERE gold AND ingested <= $1 \
             ORDER BY ordinal, bucket, object_key, etag, attributes LIMIT $2"
        );
        self.transaction(async |transaction| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
            let query = query.bind(upto).bind(i64::from(count));
            query.fetch_all(&mut **transaction).await?.iter().map(read_label).collect()
        })
        .await
    }

    /// How many labels up to `upto` there are with so many scores in each of `parts` equal parts of the
    /// range `low..high`.
    pub async fn label_strata(
        &self,
        upto: i64,
        (low, high): (f64, f64),
        parts: u32,
    ) -> Result<Vec<Stratum>, StoreError> {
        self.transaction(async |transaction| {
            let rows = sqlx::query(
                "SELECT attributes, least(greatest(width_bucket(score, $2, $3, $4), 1), $4) - 1 AS part, \
                 count(*) AS labels FROM labels WHERE ingested <= $1 GROUP BY 1, 2 ORDER BY 1, 2",
            )
            .persistent(false)
            .bind(upto)
            .bind(low)
            .bind(high)
            .bind(i32::try_from(parts).unwrap_or(i32::MAX))
            .fetch_all(&mut **transaction)
            .await?;
            let read = |row: &PgRow| {
                let (attributes, part, labels): (i32, i32, i64) =
                    (row.try_get("attributes")?, row.try_get("part")?, row.try_get("labels")?);
                let size = |number: i32| usize::try_from(number).unwrap_or_default();
                let labels = u64::try_from(labels).unwrap_or_default();
                Ok(Stratum { attributes: size(attributes), part: size(part), labels })
            };
            rows.iter().map(read).collect()
        })
        .await
    }
}

fn word(side: Side) -> &'static str {
    match side {
        Side::Training => "training",
        Side::Holdout => "holdout",
        Side::LeftOut => "left_out",
    }
}

fn packed(fingerprint: &Fingerprint) -> Vec<u8> {
    fingerprint.hashes().iter().flat_map(|hash| hash.to_be_bytes()).collect()
}

fn read_side(row: &PgRow) -> Result<PhotoSide, sqlx::Error> {
    let unreadable = |what: &'static str| sqlx::Error::Decode(what.into());
    let hash = |column: &str| -> Result<ContentHash, sqlx::Error> {
        let bytes: Vec<u8> = row.try_get(column)?;
        bytes.try_into().map(ContentHash).map_err(|_| unreadable("a content hash has 32 bytes"))
    };
    let packed: Vec<u8> = row.try_get("fingerprint")?;
    let (hashes, []) = packed.as_chunks::<8>() else {
        return Err(unreadable("a fingerprint has 80 bytes"));
    };
    let hashes: Vec<u64> = hashes.iter().map(|hash| u64::from_be_bytes(*hash)).collect();
    let hashes = hashes.try_into().map_err(|_| unreadable("a fingerprint has 80 bytes"))?;
    let side = match row.try_get::<&str, _>("side")? {
        "training" => Side::Training,
        "holdout" => Side::Holdout,
        "left_out" => Side::LeftOut,
        _ => return Err(unreadable("this side of the split is not known")),
    };
    Ok(PhotoSide {
        content: hash("content")?,
        fingerprint: Fingerprint::from_hashes(hashes),
        assignment: Assignment { group: hash("founder")?, side },
        gold: row.try_get("gold")?,
    })
}
