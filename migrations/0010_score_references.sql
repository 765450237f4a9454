-- What the latest scores of a model version are compared with, so that drift is noticed: its first ones, where
-- whoever published it says nothing of its scores.
CREATE TABLE score_references (
    -- As in scores.model_version.
    model_version text PRIMARY KEY,
    -- The model's range, and the scores in equal bins over it, the lowest first.
    min_score double precision NOT NULL,
    max_score double precision NOT NULL CHECK (max_score > min_score),
    counts bigint[] NOT NULL,
    sum double precision NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
