-- Up to which number of arrival labels were there when a version was trained; null where that is not known.
-- What is above it is new to the version.
ALTER TABLE model_versions ADD COLUMN label_watermark bigint CHECK (label_watermark >= 0);

-- One row per run of `roc4mllm retrain`, and per trial of a checkpoint from elsewhere.
CREATE TABLE retrain_runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('retrain', 'trial')),
    -- Null until it has ended.
    outcome text CHECK (outcome IN ('accepted', 'rejected', 'nothing_to_do', 'failed', 'abandoned')),
    reason text,
    -- Whoever has the token works on the run, as long as the heartbeat is younger than the lease. A released
    -- run waits for the next one to go on with it.
    lease_token uuid NOT NULL,
    lease_ms bigint NOT NULL CHECK (lease_ms > 0),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    released boolean NOT NULL DEFAULT false,
    holder text NOT NULL,
    -- How often somebody began to work on it.
    attempts integer NOT NULL DEFAULT 1,
    -- What goes on just now.
    stage text,
    done bigint NOT NULL DEFAULT 0,
    total bigint NOT NULL DEFAULT 0,
    -- The version that is challenged, and the labels that are new to it: above the one number of arrival and
    -- up to the other.
    champion text,
    after_label bigint,
    upto_label bigint,
    -- The digest of what was selected, and how much of it there is.
    dataset text,
    counts jsonb,
    challenger text,
    metrics jsonb,
    verdict jsonb,
    -- Where the HTML report is.
    report text,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    CONSTRAINT retrain_runs_ended CHECK ((outcome IS NULL) = (ended_at IS NULL))
);

-- One at a time.
CREATE UNIQUE INDEX retrain_runs_one_open ON retrain_runs ((outcome IS NULL)) WHERE outcome IS NULL;

-- Which side of the split a photo is on, for ever: whoever has learned from a photo is never judged by it or
-- by a copy of it.
CREATE TABLE photo_sides (
    -- SHA-256 of the file.
    content bytea PRIMARY KEY CHECK (octet_length(content) = 32),
    -- Photos that came first are compared with those that come later.
    ordinal bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    -- Perceptual hashes, eight bytes each.
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 80),
    -- The earliest photo that this one is a copy of, over any number of near-copies.
    founder bytea NOT NULL CHECK (octet_length(founder) = 32),
    side text NOT NULL CHECK (side IN ('training', 'holdout', 'left_out')),
    -- Whether it is held out for the gold set, on which every model is measured.
    gold boolean NOT NULL,
    CONSTRAINT photo_sides_gold_is_held_out CHECK (NOT gold OR side = 'holdout')
);

-- The gold set, in the order in which it came together.
CREATE INDEX photo_sides_gold ON photo_sides (ordinal) WHERE gold;

-- What each labelled object held when it was last fetched.
CREATE TABLE photo_contents (
    bucket text NOT NULL,
    object_key text NOT NULL,
    -- Empty where the label has none.
    etag text NOT NULL,
    content bytea NOT NULL REFERENCES photo_sides (content),
    PRIMARY KEY (bucket, object_key, etag)
);

CREATE INDEX photo_contents_by_content ON photo_contents (content);
