-- What is needed to know a request that was sent before.

-- `json` keeps the answer as it was written, so that a replay is the same to the byte.
ALTER TABLE idempotency_keys
    ALTER COLUMN response_body TYPE json,
    ADD COLUMN response_headers jsonb NOT NULL DEFAULT '{}';

-- Jobs that callers named themselves (PUT /v1/jobs/{client_id}). A name lives as long as its job.
CREATE TABLE client_jobs (
    project_id     uuid NOT NULL,
    client_id      text NOT NULL,
    request_sha256 bytea NOT NULL,
    job_id         uuid NOT NULL REFERENCES jobs ON DELETE CASCADE,
    PRIMARY KEY (project_id, client_id)
);
CREATE INDEX client_jobs_by_job ON client_jobs (job_id);

-- Jobs that came without a key from a client library which counts its retries. They are remembered for a minute, so
-- that a retry finds the job of the request whose answer was lost.
CREATE TABLE sdk_requests (
    job_id         uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    credential     uuid NOT NULL,
    request_sha256 bytea NOT NULL,
    -- The number of the retry that made or last found the job. Only a later one may find it again.
    retry          integer NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sdk_requests_by_body ON sdk_requests (credential, request_sha256, created_at);
CREATE INDEX sdk_requests_by_age ON sdk_requests (created_at);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON client_jobs, sdk_requests TO claimcheck_app;
    END IF;
END
$$;
