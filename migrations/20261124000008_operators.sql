-- What operators need: what is unfinished, whose share is how large, which workers came to life.

-- Unfinished jobs of a tenant: quotas count here, and what is cancelled together is found here.
CREATE INDEX jobs_unfinished ON jobs (tenant_id, id) WHERE finished_at IS NULL;

-- A tenant's own limits; who has no row has those of the configuration.
CREATE TABLE tenant_limits (
    tenant_id   uuid PRIMARY KEY,
    -- Jobs that wait (scheduled or queued); a submit beyond it is refused.
    max_queued  integer CHECK (max_queued >= 0),
    -- Jobs with the broker or a worker; what is beyond it waits in the outbox.
    max_running integer CHECK (max_running > 0)
);

-- Set when the worker has loaded its model: one that never gets there, again and again, is crash-looping.
ALTER TABLE workers ADD COLUMN ready_at timestamptz;
UPDATE workers SET ready_at = started_at;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON tenant_limits TO claimcheck_app;
    END IF;
END
$$;
