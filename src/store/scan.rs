//! Walks through `scores` a page at a time, each page a short transaction of its own.

use crate::object::{ObjectRef, ScoreId};
use crate::store::backfills::Cursor;
use crate::store::error::StoreError;
use crate::store::pool::Store;
use crate::store::row::StoredScore;
use sqlx::{AssertSqlSafe, Row};
use time::OffsetDateTime;

/// The newest row of each key beyond the cursor, and whether that object has a row of the version.
/// Keys whose object is known to be removed or missing are left out.
///
/// The keys of a page come first and by index alone. In one step the planner would sort all rows beyond the
/// cursor, since it takes a second key in one bucket for hardly any rows.
const OBJECTS: &str = "
WITH page AS MATERIALIZED (
    SELECT bucket, object_key FROM scores
    WHERE (bucket, object_key) > ($1, $2) AND deleted_at IS NULL
        AND status IN ('scored', 'rejected', 'dead')
    ORDER BY bucket, object_key
    LIMIT $4)
SELECT latest.bucket, latest.object_key, latest.version_id, latest.etag, $3::text IS NOT NULL AND EXISTS (
    SELECT FROM scores done
    WHERE done.bucket = latest.bucket AND done.object_key = latest.object_key
        AND done.model_version = $3
        AND done.version_id IS NOT DISTINCT FROM latest.version_id
        AND done.etag IS NOT DISTINCT FROM latest.etag) AS done
FROM (SELECT DISTINCT bucket, object_key FROM page) key
CROSS JOIN LATERAL (
    SELECT bucket, object_key, version_id, etag FROM scores
    WHERE scores.bucket = key.bucket AND scores.object_key = key.object_key AND deleted_at IS NULL
        AND status IN ('scored', 'rejected', 'dead')
    ORDER BY sequencer DESC NULLS LAST, scored_at DESC
    LIMIT 1) latest
ORDER BY latest.bucket, latest.object_key";

/// A page of stored objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPage {
    /// Those without a row of the version, in key order.
    pub objects: Vec<ObjectRef>,
    /// The last object that was looked at; `None` once there are no more.
    pub last: Option<Cursor>,
}

impl Store {
    /// Up to `limit` stored objects beyond `after`, in the order that Postgres sorts keys in; those
    /// that have a row of `model_version` are looked at and left out. Fewer where objects have several rows.
    pub async fn stored_objects(
        &self,
        model_version: Option<&str>,
        after: Option<&Cursor>,
        limit: u32,
    ) -> Result<ObjectPage, StoreError> {
        let (bucket, key) = after.map_or(("", ""), |cursor| (&cursor.bucket, &cursor.key));
        self.transaction(async |transaction| {
            let query = sqlx::query(OBJECTS).persistent(false).bind(bucket).bind(key);
            let rows = query.bind(model_version).bind(i64::from(limit)).fetch_all(&mut **transaction).await?;
            let mut page = ObjectPage { objects: Vec::with_capacity(rows.len()), last: None };
            for row in rows {
                let object = ObjectRef {
                    version_id: row.try_get("version_id")?,
                    etag: row.try_get("etag")?,
                    ..ObjectRef::new(
                        row.try_get::<String, _>("bucket")?,
                        row.try_get::<String, _>("object_key")?,
                    )
                };
                page.last = Some(Cursor { bucket: object.bucket.clone(), key: object.key.clone() });
                if !row.try_get::<bool, _>("done")? {
                    page.objects.push(object);
                }
            }
            Ok(page)
        })
        .await
    }

    /// Up to `limit` rows beyond `after`, by id, that were scored at or after `since`.
    pub async fn rows_by_id(
        &self,
        since: Option<OffsetDateTime>,
        after: Option<ScoreId>,
        limit: u32,
    ) -> Result<Vec<StoredScore>, StoreError> {
        let statement = format!(
            "SELECT {} FROM scores WHERE ($1::uuid IS NULL OR id > $1) \
             AND ($2::timestamptz IS NULL OR scored_at >= $2) ORDER BY id LIMIT $3",
            StoredScore::COLUMNS
        );
        self.transaction(async |transaction| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(after.map(|id| id.0));
            let rows = query.bind(since).bind(i64::from(limit)).fetch_all(&mut **transaction).await?;
            rows.iter().map(StoredScore::read).collect()
        })
        .await
    }
}
