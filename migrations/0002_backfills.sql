-- How far each backfill has come: where `roc4mllm backfill` goes on after it was stopped.
CREATE TABLE backfills (
    -- What is scored again: an s3:// prefix, or "stored" with the version that rows must not have.
    name text PRIMARY KEY,
    topic text NOT NULL,
    -- The last object that was enqueued and acknowledged; both null before the first one.
    cursor_bucket text,
    cursor_key text,
    -- Objects enqueued so far; also what two runs at once notice each other by.
    enqueued bigint NOT NULL DEFAULT 0 CHECK (enqueued >= 0),
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CONSTRAINT backfills_cursor_whole CHECK ((cursor_bucket IS NULL) = (cursor_key IS NULL))
);
