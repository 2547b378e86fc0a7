-- The answer that is kept for a repeated request shows the job's parameters and metadata: when they are erased, it is found here.
CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job_id);
