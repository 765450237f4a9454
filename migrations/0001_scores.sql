-- One row per item that reached a terminal state, keyed by what was scored and by which model.
CREATE TABLE scores (
    id uuid PRIMARY KEY,
    -- Null only for a record too malformed to name an object.
    bucket text,
    object_key text,
    version_id text,
    etag text,
    -- Padded with zeros to 32 characters on the right: then byte order is the order of events.
    sequencer text COLLATE "C",
    model text NOT NULL,
    model_version text NOT NULL,
    status text NOT NULL CHECK (status IN ('scored', 'rejected', 'gone', 'deleted', 'dead')),
    -- Double precision and not real, so that a reader gets the very number that the output has.
    -- The CHECK refuses NaN too, which Postgres sorts above every number.
    score double precision CHECK (score >= -1e6 AND score <= 1e6),
    -- One score per [SCORE] in the answer; the first one is `score`.
    scores double precision[],
    -- One list of bin probabilities per score.
    distributions jsonb,
    text text,
    error jsonb,
    scored_at timestamptz NOT NULL,
    -- Set once the object is known to be removed; a replay never clears it.
    deleted_at timestamptz,
    source_topic text,
    source_partition integer,
    source_offset bigint,
    source_item integer,
    CONSTRAINT scores_score_if_scored CHECK ((status = 'scored') = (score IS NOT NULL))
);

-- "Top N by score", of all or from a threshold on.
CREATE INDEX scores_by_score ON scores (score);

-- "Latest by key", and the rows that a removal marks.
CREATE INDEX scores_by_object ON scores (bucket, object_key, model, sequencer DESC NULLS LAST);

-- Removals, which a row that arrives late is held against.
CREATE INDEX scores_tombstones ON scores (bucket, object_key) WHERE status = 'deleted';
