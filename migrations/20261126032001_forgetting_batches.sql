-- What retention looks for among batches, so that it need not walk them all: which ended when, and whether the failed lines of one
-- are being done again.
CREATE INDEX batches_ended ON batches (greatest(completed_at, failed_at, expired_at, cancelled_at));
CREATE INDEX batches_retrying ON batches (retry_of)
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
