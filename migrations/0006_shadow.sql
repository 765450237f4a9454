-- How a model that scores live images without publishing agrees with the one that published, summed over
-- every image that both have scored. The sums are of scores as they are, so that workers add to them in any
-- order.
CREATE TABLE shadow_agreement (
    -- Both as rows of `scores` name them.
    candidate text NOT NULL,
    champion text NOT NULL,
    images bigint NOT NULL CHECK (images >= 0),
    sum_champion double precision NOT NULL,
    sum_candidate double precision NOT NULL,
    sum_champion_squared double precision NOT NULL,
    sum_candidate_squared double precision NOT NULL,
    sum_product double precision NOT NULL,
    sum_absolute_difference double precision NOT NULL,
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (candidate, champion)
);

-- A bounded uniform sample of those pairs, for what sums cannot tell, such as the agreement of ranks: the
-- ones with the lowest ids, which are hashes.
CREATE TABLE shadow_pairs (
    candidate text NOT NULL,
    champion text NOT NULL,
    -- The row of the published score.
    id uuid NOT NULL,
    champion_score double precision NOT NULL,
    candidate_score double precision NOT NULL,
    PRIMARY KEY (candidate, champion, id)
);
