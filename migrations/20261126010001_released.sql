-- Where a job's message is noted while the broker has it: beside `jobs`, whose row and indexes are wide, since it is written and
-- deleted once for every job. `jobs.dispatched_at` is given up; its column and index go when no process reads them any more.

-- A queued job whose message was confirmed and that nobody has claimed. Written by the relay with the end of the outbox row and
-- deleted by whoever takes the job out of the queue, both while they hold the job's row. No foreign key: that lock is enough.
CREATE TABLE released (
    job_id      uuid PRIMARY KEY,
    model       text NOT NULL,
    class       text NOT NULL,
    tenant_id   uuid NOT NULL,
    -- When the broker last confirmed the job's message.
    released_at timestamptz NOT NULL DEFAULT now(),
    -- A worker fell silent over it: its message may well have gone to that worker again.
    rescued     boolean NOT NULL DEFAULT false
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
-- The release window is counted here, and lost messages are found here.
CREATE INDEX released_by_queue ON released (model, class, released_at);

-- How often a lost message was sent again since the job was queued. (Until now every message counted.)
COMMENT ON COLUMN jobs.dispatches IS 'how often its message was sent again since it was queued';

-- Processes of the release before go on by `dispatched_at` until they are replaced. The others never name the column, and then
-- this costs nothing.
CREATE FUNCTION mirror_dispatch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'queued' AND NEW.dispatched_at IS NOT NULL THEN
        INSERT INTO released (job_id, model, class, tenant_id, rescued)
        VALUES (NEW.id, NEW.model, NEW.class, NEW.tenant_id, NEW.lapses > 0)
        ON CONFLICT (job_id) DO UPDATE SET released_at = excluded.released_at;
    ELSE
        DELETE FROM released WHERE job_id = NEW.id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER mirror_dispatch AFTER UPDATE OF dispatched_at ON jobs FOR EACH ROW EXECUTE FUNCTION mirror_dispatch();

INSERT INTO released (job_id, model, class, tenant_id, released_at, rescued)
SELECT id, model, class, tenant_id, dispatched_at, lapses > 0 FROM jobs
WHERE status = 'queued' AND dispatched_at IS NOT NULL;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON released TO claimcheck_app;
    END IF;
END
$$;
