-- What a score was computed from, so that the same content under another name need not be scored again. Both
-- are null in rows of earlier releases and in rows without a score.
ALTER TABLE scores
    -- SHA-256 of the object's bytes.
    ADD COLUMN content_sha256 bytea CHECK (octet_length(content_sha256) = 32),
    -- The way in which its pixels were read.
    ADD COLUMN preprocess_revision integer;

-- "Has this content a score already?"
CREATE INDEX scores_by_content ON scores (content_sha256) WHERE content_sha256 IS NOT NULL;
