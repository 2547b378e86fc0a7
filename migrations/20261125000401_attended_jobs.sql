-- Jobs whose callers wait for them at an open connection. The API process that holds the connection renews the row; when
-- nobody does any more, the caller has hung up or the process is gone, and the job is cancelled unless it has ended.
CREATE TABLE attended_jobs (
    job_id         uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    attended_until timestamptz NOT NULL
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX attended_jobs_lapsed ON attended_jobs (attended_until);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON attended_jobs TO claimcheck_app;
    END IF;
END
$$;
