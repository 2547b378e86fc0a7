-- The jobs: a narrow row that claims and heartbeats rewrite, beside the wide texts that never change.

CREATE TABLE jobs (
    id                  uuid PRIMARY KEY,
    tenant_id           uuid NOT NULL,
    project_id          uuid NOT NULL REFERENCES projects,
    user_id             uuid NOT NULL,
    model               text NOT NULL,
    model_revision      text NOT NULL,
    class               text NOT NULL CHECK (class IN ('interactive', 'batch')),
    -- The words of common/src/domain/state.rs, which draws the arrows between them.
    status              text NOT NULL CHECK (status IN ('scheduled', 'queued', 'in_progress', 'cancelling',
                                                        'completed', 'failed', 'cancelled', 'expired')),
    priority            smallint NOT NULL DEFAULT 0,
    -- An operator may reset `attempt`; `fence` only grows, and everything a worker does is keyed by it.
    attempt             integer NOT NULL DEFAULT 0,
    max_attempts        integer NOT NULL DEFAULT 5 CHECK (max_attempts > 0),
    fence               bigint NOT NULL DEFAULT 0,
    -- Leases that ran out, counted apart from the job's own errors.
    lapses              integer NOT NULL DEFAULT 0,
    worker_id           uuid,
    lease_expires_at    timestamptz,
    -- Not to be claimed before: the scheduled time, or the end of a back-off.
    available_at        timestamptz NOT NULL DEFAULT now(),
    -- When the broker last confirmed the job's message, and how often that happened since it was queued.
    dispatched_at       timestamptz,
    dispatches          integer NOT NULL DEFAULT 0,
    prompt_tokens       integer NOT NULL,
    completion_tokens   integer NOT NULL DEFAULT 0,
    error               jsonb,
    created_at          timestamptz NOT NULL DEFAULT now(),
    started_at          timestamptz,
    cancel_requested_at timestamptz,
    finished_at         timestamptz,
    CHECK ((finished_at IS NOT NULL) = (status IN ('completed', 'failed', 'cancelled', 'expired'))),
    CHECK ((lease_expires_at IS NOT NULL) = (status IN ('in_progress', 'cancelling')))
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.02);

-- The caller's lists, newest first.
CREATE INDEX jobs_by_project ON jobs (project_id, id DESC);
CREATE INDEX jobs_by_project_status ON jobs (project_id, status, id DESC);
CREATE INDEX jobs_by_project_model ON jobs (project_id, model, id DESC);
CREATE INDEX jobs_by_project_model_status ON jobs (project_id, model, status, id DESC);
-- Rescue reads only what runs. The lease itself is not indexed, so that a heartbeat stays a heap-only update.
CREATE INDEX jobs_running ON jobs (id) WHERE status IN ('in_progress', 'cancelling');
-- The release window is counted here, and lost messages are found here.
CREATE INDEX jobs_released ON jobs (model, class, dispatched_at) WHERE status = 'queued' AND dispatched_at IS NOT NULL;
CREATE INDEX jobs_scheduled ON jobs (available_at) WHERE status = 'scheduled';
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;

-- What the caller sent. Erasing a prompt is deleting a row.
CREATE TABLE job_inputs (
    job_id     uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    prompt     jsonb NOT NULL,
    parameters jsonb NOT NULL,
    metadata   jsonb
);

-- What came of it.
CREATE TABLE job_outputs (
    job_id  uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    choices jsonb NOT NULL
);

-- Messages that the broker still owes us a confirm for: the queue's only entrance. Only the relay deletes here, and
-- only what was confirmed and not returned.
CREATE TABLE outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id       uuid NOT NULL,
    model        text NOT NULL,
    class        text NOT NULL,
    available_at timestamptz NOT NULL DEFAULT now(),
    traceparent  text
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX outbox_due ON outbox (model, class, available_at, id);
CREATE INDEX outbox_by_job ON outbox (job_id);

-- Idempotency-Key of a submit: the first answer, replayed to whoever repeats the request.
CREATE TABLE idempotency_keys (
    user_id         uuid NOT NULL,
    key             text NOT NULL,
    request_sha256  bytea NOT NULL,
    response_status smallint NOT NULL,
    response_body   jsonb NOT NULL,
    job_id          uuid NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz NOT NULL,
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_keys_expired ON idempotency_keys (expires_at);
