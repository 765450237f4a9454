-- The latest scored images, which the worker's page shows.
CREATE INDEX scores_by_time ON scores (scored_at) WHERE status = 'scored';

-- The latest items that ended as dead letters, and why.
CREATE INDEX scores_failed_by_time ON scores (scored_at) WHERE status IN ('rejected', 'dead');
