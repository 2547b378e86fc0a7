-- When a job must be done, how it is tried again, when its texts go, and what became of those that could not be done.

ALTER TABLE jobs
    -- Not finished by then: expired.
    ADD COLUMN deadline_at timestamptz,
    -- Not claimed once by then: expired.
    ADD COLUMN start_by    timestamptz,
    -- Of the present attempt; an attempt may only take so long.
    ADD COLUMN claimed_at  timestamptz,
    -- Why the attempt before this one failed.
    ADD COLUMN last_error  jsonb,
    -- The ended job that this one does again.
    ADD COLUMN retry_of    uuid,
    -- `false`: prompt and output go some minutes after the output was first fetched.
    ADD COLUMN store       boolean NOT NULL DEFAULT true,
    -- Prompt and output go this long after the job's end.
    ADD COLUMN ttl         interval,
    ADD COLUMN erase_at    timestamptz,
    ADD COLUMN erased_at   timestamptz;

-- What waits too long. `fence = 0`: no attempt has begun.
CREATE INDEX jobs_expiring ON jobs ((least(deadline_at, CASE WHEN fence = 0 THEN start_by END)))
    WHERE status IN ('scheduled', 'queued') AND (deadline_at IS NOT NULL OR start_by IS NOT NULL);
CREATE INDEX jobs_erasable ON jobs (erase_at) WHERE erase_at IS NOT NULL AND erased_at IS NULL;

-- What the relay orders and shares out by. Rows that the code before this migration writes count as nobody's.
ALTER TABLE outbox
    ADD COLUMN tenant_id   uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    ADD COLUMN priority    smallint NOT NULL DEFAULT 0,
    ADD COLUMN deadline_at timestamptz;
UPDATE outbox o SET tenant_id = j.tenant_id FROM jobs j WHERE j.id = o.job_id;
-- By the job and not by the row: what is tried again has the place that it had, before all that came later.
CREATE INDEX outbox_by_share ON outbox (model, class, tenant_id, priority DESC, deadline_at, job_id);
DROP INDEX outbox_due;

-- Jobs that failed for good, until somebody does them again. Like the audit log it never holds a prompt or an output.
CREATE TABLE dead_letters (
    job_id      uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    tenant_id   uuid NOT NULL,
    project_id  uuid NOT NULL,
    model       text NOT NULL,
    -- The code of the last error, or `attempts_exhausted`.
    reason      text NOT NULL,
    attempts    integer NOT NULL,
    lapses      integer NOT NULL,
    worker_id   uuid,
    last_error  jsonb,
    created_at  timestamptz NOT NULL DEFAULT now(),
    redriven_at timestamptz,
    redriven_as uuid
);
CREATE INDEX dead_letters_by_project ON dead_letters (project_id, job_id DESC);
CREATE INDEX dead_letters_waiting ON dead_letters (job_id) WHERE redriven_at IS NULL;

-- What operators have stopped for now. Jobs wait, are accepted all the same, and say so.
CREATE TABLE pauses (
    scope      text NOT NULL CHECK (scope IN ('class', 'model', 'tenant')),
    value      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by uuid NOT NULL,
    PRIMARY KEY (scope, value)
);
CREATE FUNCTION is_paused(model text, class text, tenant uuid) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM pauses p WHERE p.scope = 'class' AND p.value = class
                      OR p.scope = 'model' AND p.value = model OR p.scope = 'tenant' AND p.value = tenant::text)
$$;

-- A worker that is to take no more jobs and to end when those it has are done.
ALTER TABLE workers ADD COLUMN draining boolean NOT NULL DEFAULT false;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON dead_letters, pauses TO claimcheck_app;
    END IF;
END
$$;
