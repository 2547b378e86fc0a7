-- API keys: credentials of programs. A key acts as its user, within its own scopes and limits.

CREATE TABLE api_keys (
    id           uuid PRIMARY KEY,
    tenant_id    uuid NOT NULL REFERENCES organizations,
    project_id   uuid NOT NULL REFERENCES projects,
    user_id      uuid NOT NULL REFERENCES users,
    name         text NOT NULL,
    -- The first characters of the key that is in use, for people to tell keys apart.
    hint         text NOT NULL,
    scopes       text[] NOT NULL,
    -- Null: any.
    models       text[],
    -- Most `max_tokens` of one request; null: the service's own limit.
    max_tokens   integer CHECK (max_tokens > 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    -- Written in groups, some seconds late.
    last_used_at timestamptz,
    usage_count  bigint NOT NULL DEFAULT 0
);
CREATE INDEX api_keys_by_user ON api_keys (user_id, id);

-- The key itself is kept nowhere: only its digest, which is enough to find it. It is drawn from 160 random bits, so that
-- a fast digest cannot be reversed. During a rotation's overlap a key has two.
CREATE TABLE api_key_secrets (
    sha256     bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    api_key_id uuid NOT NULL REFERENCES api_keys,
    -- The end of the overlap; null for the one in use.
    expires_at timestamptz
);
CREATE INDEX api_key_secrets_by_key ON api_key_secrets (api_key_id);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON api_keys, api_key_secrets TO claimcheck_app;
    END IF;
END
$$;
