-- What each rater said of each object: the latest vote of each, one row.
CREATE TABLE votes (
    bucket text NOT NULL,
    object_key text NOT NULL,
    -- Empty where it is not known: then the vote is on whatever the key holds.
    etag text NOT NULL,
    rater text NOT NULL,
    -- One per [SCORE] of the answer. The comparison refuses NaN too, which sorts above every number.
    scores double precision[] NOT NULL
        CHECK (cardinality(scores) > 0 AND -1e6 <= ALL (scores) AND 1e6 >= ALL (scores)),
    -- Where many people voted at once: their share in each bin, a list per score.
    distributions jsonb,
    -- How many people's vote it is.
    raters integer NOT NULL CHECK (raters > 0),
    -- Question and answer, where they are not the usual ones.
    conversation jsonb,
    labelled_at timestamptz NOT NULL,
    -- The order of arrival, drawn from votes_ingested. Whoever draws a number holds an advisory lock until
    -- its commit, so none ever becomes visible behind a higher one: what is above a number that was seen
    -- is all that came later.
    ingested bigint NOT NULL,
    PRIMARY KEY (bucket, object_key, etag, rater)
);

CREATE SEQUENCE votes_ingested OWNED BY votes.ingested;

-- Raters since a number.
CREATE INDEX votes_by_arrival ON votes (ingested);

-- What all raters of an object think, written in the transaction that writes their votes.
CREATE TABLE labels (
    bucket text NOT NULL,
    object_key text NOT NULL,
    etag text NOT NULL,
    -- How many scores it has; votes with different numbers of them answer different questions.
    attributes integer NOT NULL CHECK (attributes > 0),
    -- The mean of all raters' votes; the first of `scores`.
    score double precision NOT NULL CHECK (score >= -1e6 AND score <= 1e6),
    scores double precision[] NOT NULL,
    -- The share of raters in each bin, a list per score.
    distributions jsonb NOT NULL,
    raters integer NOT NULL CHECK (raters > 0),
    conversation jsonb,
    labelled_at timestamptz NOT NULL,
    -- That of its latest vote.
    ingested bigint NOT NULL,
    PRIMARY KEY (bucket, object_key, etag, attributes)
);

-- Labels since a number, in order.
CREATE INDEX labels_by_arrival ON labels (ingested);

-- Labels of one range of scores, which a stratified sample is drawn from.
CREATE INDEX labels_by_score ON labels (attributes, score);
