-- Who acted from where, and a seal on what was written.

ALTER TABLE audit_log
    -- `token`, `key:<uuid>`; null for the service itself.
    ADD COLUMN credential text,
    ADD COLUMN address    text,
    -- As the answer's `x-request-id`.
    ADD COLUMN request_id text,
    ADD COLUMN outcome    text NOT NULL DEFAULT 'ok' CHECK (outcome IN ('ok', 'refused'));

-- Each sealed row, in the order of their ids: `link` is the SHA-256 of the link before it and of `row_sha256`. A row that is
-- changed no longer has its hash, one that is gone leaves its seal, and a seal that is moved or gone breaks the chain.
CREATE TABLE audit_seals (
    seq         bigint PRIMARY KEY,
    audit_id    bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    row_sha256  bytea NOT NULL,
    link        bytea NOT NULL,
    sealed_at   timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX audit_seals_by_row ON audit_seals (audit_id);

-- Months that the owner let go: their rows and seals may be missing, up to this seal.
CREATE TABLE audit_drops (
    before     timestamptz PRIMARY KEY,
    last_seq   bigint NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT now()
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT ON audit_seals TO claimcheck_app;
        GRANT SELECT ON audit_drops TO claimcheck_app;
    END IF;
END
$$;
