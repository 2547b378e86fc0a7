-- A key may stand for a request that makes many jobs or none (retrying by filter, redriving): its answer is kept all the same.
ALTER TABLE idempotency_keys ALTER COLUMN job_id DROP NOT NULL;
