-- Uploaded files, and the batches that do what stands in them.

-- A file's bytes lie in the object store under its id; a row comes before its object and goes after it.
CREATE TABLE files (
    id         uuid PRIMARY KEY,
    tenant_id  uuid NOT NULL,
    project_id uuid NOT NULL REFERENCES projects,
    purpose    text NOT NULL CHECK (purpose IN ('batch', 'batch_output')),
    filename   text NOT NULL,
    bytes      bigint NOT NULL DEFAULT 0,
    -- Lines that are not blank.
    lines      bigint NOT NULL DEFAULT 0,
    -- Callers see `processed` files only. What stays `uploading` was given up half-way, and the object of a `deleted` one has
    -- still to go.
    status     text NOT NULL CHECK (status IN ('uploading', 'processed', 'deleted')),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
CREATE INDEX files_by_project ON files (project_id, id DESC) WHERE status = 'processed';
CREATE INDEX files_leaving ON files (created_at) WHERE status <> 'processed' OR expires_at IS NOT NULL;

CREATE TABLE batches (
    id                uuid PRIMARY KEY,
    tenant_id         uuid NOT NULL,
    project_id        uuid NOT NULL REFERENCES projects,
    user_id           uuid NOT NULL,
    -- The key that it was made with; its jobs count for it.
    api_key_id        uuid,
    endpoint          text NOT NULL,
    input_file_id     uuid NOT NULL,
    input_bytes       bigint NOT NULL,
    completion_window text NOT NULL,
    metadata          jsonb,
    -- The ended batch whose failed lines this one does again.
    retry_of          uuid,
    -- The words of common/src/domain/batch.rs, which draws the arrows between them.
    status            text NOT NULL CHECK (status IN ('validating', 'in_progress', 'finalizing', 'cancelling',
                                                      'completed', 'failed', 'expired', 'cancelled')),
    -- How it is to end, where that is not `completed`.
    ending            text CHECK (ending IN ('failed', 'expired', 'cancelled')),
    -- The first of what is wrong with its input, and of how many.
    errors            jsonb,
    errors_count      integer NOT NULL DEFAULT 0,
    -- Lines, and those of them that have ended the one way or the other.
    total             integer NOT NULL DEFAULT 0,
    completed         integer NOT NULL DEFAULT 0,
    failed            integer NOT NULL DEFAULT 0,
    prompt_tokens     bigint NOT NULL DEFAULT 0,
    completion_tokens bigint NOT NULL DEFAULT 0,
    -- How far its input was fed: bytes, the number of the last line, and how many lines became items. They change in the
    -- transaction that writes the items.
    fed_bytes         bigint NOT NULL DEFAULT 0,
    fed_line          integer NOT NULL DEFAULT 0,
    fed               integer NOT NULL DEFAULT 0,
    output_file_id    uuid,
    error_file_id     uuid,
    output_ttl        interval,
    -- What was said at submit of whether the window is feasible.
    forecast          jsonb,
    -- For a minute: the retry of a client library that counts them finds the batch whose answer was lost.
    request_sha256    bytea NOT NULL,
    sdk_retry         integer,
    -- While it is paused, its waiting jobs are put off.
    holding           boolean NOT NULL DEFAULT false,
    -- The worker that is at it. Whatever it writes is guarded by the lease that it took.
    lease             uuid,
    lease_expires_at  timestamptz,
    -- Not to be taken up before.
    due_at            timestamptz NOT NULL DEFAULT now(),
    created_at        timestamptz NOT NULL DEFAULT now(),
    -- The end of its window.
    expires_at        timestamptz NOT NULL,
    paused_at         timestamptz,
    in_progress_at    timestamptz,
    finalizing_at     timestamptz,
    cancelling_at     timestamptz,
    completed_at      timestamptz,
    failed_at         timestamptz,
    expired_at        timestamptz,
    cancelled_at      timestamptz
) WITH (fillfactor = 50);
CREATE INDEX batches_by_project ON batches (project_id, id DESC);
CREATE INDEX batches_live ON batches (id) WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
CREATE INDEX batches_by_input ON batches (input_file_id);
CREATE INDEX batches_by_request ON batches (user_id, request_sha256, created_at);

-- One row for each line that was taken up. Beside the jobs and not in them, so that what every job passes through costs the
-- same as before. No foreign keys: rows are written by hundreds, only by whoever holds the batch.
CREATE TABLE batch_items (
    batch_id  uuid NOT NULL,
    -- Its number in the input file, from 1: a line is taken up once.
    line      integer NOT NULL,
    -- Also the id of its job, if it came to one.
    id        uuid NOT NULL,
    custom_id text,
    -- Its place in the order in which lines ended; null while its job runs.
    seq       integer,
    completed boolean,
    -- Why it did not come to a job.
    error     jsonb,
    PRIMARY KEY (batch_id, line)
);
CREATE INDEX batch_items_by_seq ON batch_items (batch_id, seq);
CREATE INDEX batch_items_by_id ON batch_items (id);

-- What an event shows where it is of no job.
ALTER TABLE events ADD COLUMN IF NOT EXISTS data jsonb;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON files, batches, batch_items TO claimcheck_app;
    END IF;
END
$$;
