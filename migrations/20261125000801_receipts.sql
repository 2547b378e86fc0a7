-- What each ended job cost and on what it ran. Written with the job's ending, in its transaction, and kept when the job is
-- erased or deleted: it holds no text, and usage is the sum of its rows.

ALTER TABLE jobs
    -- The API key that the job came by; none with an access token.
    ADD COLUMN IF NOT EXISTS api_key_id uuid,
    -- The ended job whose tokens this one is held against.
    ADD COLUMN replay_of uuid;

ALTER TABLE models ADD COLUMN weights_sha256 text;

-- The tokens of each choice, to hold a replay against. They go with the text.
ALTER TABLE job_outputs ADD COLUMN tokens jsonb;

CREATE TABLE receipts (
    job_id            uuid PRIMARY KEY,
    tenant_id         uuid NOT NULL,
    project_id        uuid NOT NULL,
    user_id           uuid NOT NULL,
    api_key_id        uuid,
    model             text NOT NULL,
    model_revision    text NOT NULL,
    class             text NOT NULL,
    status            text NOT NULL,
    -- As in the job's usage: both are 0 where there is no output.
    prompt_tokens     integer NOT NULL,
    completion_tokens integer NOT NULL,
    attempts          integer NOT NULL,
    lapses            integer NOT NULL,
    accepted_at       timestamptz NOT NULL,
    finished_at       timestamptz NOT NULL,
    -- Of the last attempt: from the time at which it could run to its first prefill, or to the end if there was none.
    queue_seconds     float8 NOT NULL,
    -- The rest is what the worker says with an attempt's ending, and null where none ended the job.
    prefill_seconds   float8,
    decode_seconds    float8,
    device_seconds    float8,
    padding_seconds   float8,
    weights_sha256    text,
    dtype             text,
    build             text
) WITH (fillfactor = 100);
CREATE INDEX receipts_by_project ON receipts (project_id, finished_at);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        -- Like the audit log: the services add and read, and never change.
        GRANT SELECT, INSERT ON receipts TO claimcheck_app;
    END IF;
END
$$;
