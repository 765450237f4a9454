-- One row per published checkpoint. What a row in `scores` calls its model_version begins with the
-- version here: split_part(model_version, '+', 1).
CREATE TABLE model_versions (
    -- The beginning of the digest, which names the version everywhere.
    version text PRIMARY KEY CHECK (version ~ '^sha256:[0-9a-f]{12}$'),
    -- Of the checkpoint's files: equal for equal content.
    digest text NOT NULL UNIQUE CHECK (digest ~ '^sha256:[0-9a-f]{64}$' AND starts_with(digest, version)),
    -- What it was trained from; may be a checkpoint that was never published here.
    parent text,
    -- s3://bucket/prefix of the files and their manifest.
    uri text NOT NULL,
    manifest_sha256 text NOT NULL CHECK (manifest_sha256 ~ '^[0-9a-f]{64}$'),
    -- Of what it was trained on; null for a model from elsewhere.
    dataset text,
    metrics jsonb,
    -- The release that wrote the manifest.
    code_version text NOT NULL,
    status text NOT NULL DEFAULT 'candidate' CHECK (status IN ('candidate', 'champion', 'retired', 'rejected')),
    -- The share of keys that it scores in the champion's place, and the share that it scores beside the
    -- champion without publishing.
    canary_share double precision NOT NULL DEFAULT 0 CHECK (canary_share >= 0 AND canary_share <= 1),
    shadow_share double precision NOT NULL DEFAULT 0 CHECK (shadow_share >= 0 AND shadow_share <= 1),
    -- When the checkpoint was published, entered here, and given its present status.
    created_at timestamptz NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now(),
    status_since timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT model_versions_only_candidates_on_trial
        CHECK (status = 'candidate' OR (canary_share = 0 AND shadow_share = 0))
);

CREATE UNIQUE INDEX model_versions_one_champion ON model_versions (status) WHERE status = 'champion';
CREATE UNIQUE INDEX model_versions_one_canary ON model_versions ((canary_share > 0)) WHERE canary_share > 0;

-- Every change of the champion, in order: the last row names the present one.
CREATE TABLE model_promotions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version text NOT NULL REFERENCES model_versions (version),
    -- The promotion that a rollback from here returns to; null for the first champion.
    previous bigint REFERENCES model_promotions (id),
    kind text NOT NULL CHECK (kind IN ('promote', 'rollback')),
    promoted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
