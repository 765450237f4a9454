//! Reads and writes of `backfills`: how far each backfill has come.

use crate::store::error::StoreError;
use crate::store::pool::Store;
use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

/// The last object of a backfill that is certainly enqueued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub bucket: String,
    pub key: String,
}

/// One backfill, as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackfillState {
    pub name: String,
    pub topic: String,
    pub cursor: Option<Cursor>,
    pub enqueued: u64,
    pub started_at: OffsetDateTime,
    pub finished_at: Option<OffsetDateTime>,
}

impl BackfillState {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let bucket: Option<String> = row.try_get("cursor_bucket")?;
        let key: Option<String> = row.try_get("cursor_key")?;
        let enqueued: i64 = row.try_get("enqueued")?;
        Ok(Self {
            name: row.try_get("name")?,
            topic: row.try_get("topic")?,
            cursor: bucket.zip(key).map(|(bucket, key)| Cursor { bucket, key }),
            enqueued: enqueued.unsigned_abs(),
            started_at: row.try_get("started_at")?,
            finished_at: row.try_get("finished_at")?,
        })
    }
}

const BEGIN: &str = "INSERT INTO backfills (name, topic) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";

const RESTART: &str = "
UPDATE backfills SET topic = $2, cursor_bucket = NULL, cursor_key = NULL, enqueued = 0,
    started_at = now(), updated_at = now(), finished_at = NULL
WHERE name = $1";

const READ: &str = "
SELECT name, topic, cursor_bucket, cursor_key, enqueued, started_at, finished_at
FROM backfills WHERE name = $1";

const ADVANCE: &str = "
UPDATE backfills SET cursor_bucket = $3, cursor_key = $4, enqueued = enqueued + $5, updated_at = now()
WHERE name = $1 AND enqueued = $2 AND finished_at IS NULL";

const FINISH: &str = "
UPDATE backfills SET finished_at = now(), updated_at = now() WHERE name = $1 AND enqueued = $2";

impl Store {
    /// The backfill of that name: a new one, or where an earlier run left off. With `restart` it
    /// begins anew.
    pub async fn open_backfill(
        &self,
        name: &str,
        topic: &str,
        restart: bool,
    ) -> Result<BackfillState, StoreError> {
        self.transaction(async |transaction| {
            let begin = sqlx::query(BEGIN).persistent(false).bind(name).bind(topic);
            begin.execute(&mut **transaction).await?;
            if restart {
                let restart = sqlx::query(RESTART).persistent(false).bind(name).bind(topic);
                restart.execute(&mut **transaction).await?;
            }
            let row = sqlx::query(READ).persistent(false).bind(name).fetch_one(&mut **transaction).await?;
            BackfillState::read(&row)
        })
        .await
    }

    /// Notes that `count` objects up to `to` are enqueued, if `state` is still what the table says;
    /// `false` if another process has moved it meanwhile.
    pub async fn advance_backfill(
        &self,
        state: &BackfillState,
        to: &Cursor,
        count: u64,
    ) -> Result<bool, StoreError> {
        let (before, count) = (signed(state.enqueued), signed(count));
        self.transaction(async |transaction| {
            let query = sqlx::query(ADVANCE).persistent(false).bind(&state.name).bind(before);
            let query = query.bind(&to.bucket).bind(&to.key).bind(count);
            Ok(query.execute(&mut **transaction).await?.rows_affected() == 1)
        })
        .await
    }

    /// Notes that everything is enqueued; `false` as with [`Self::advance_backfill`].
    pub async fn finish_backfill(&self, state: &BackfillState) -> Result<bool, StoreError> {
        let enqueued = signed(state.enqueued);
        self.transaction(async |transaction| {
            let query = sqlx::query(FINISH).persistent(false).bind(&state.name).bind(enqueued);
            Ok(query.execute(&mut **transaction).await?.rows_affected() == 1)
        })
        .await
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
