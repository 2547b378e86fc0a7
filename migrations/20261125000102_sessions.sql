-- Sessions: a sign-in begins one, access tokens name it, and whatever ends it (logout, another password, a stolen refresh
-- token) ends all of its tokens with the next request.

CREATE TABLE sessions (
    id            uuid PRIMARY KEY,
    user_id       uuid NOT NULL REFERENCES users,
    created_at    timestamptz NOT NULL DEFAULT now(),
    -- Absolute: renewing does not put it off.
    expires_at    timestamptz NOT NULL,
    ended_at      timestamptz,
    ended_because text
);
CREATE INDEX sessions_going_on ON sessions (user_id, id) WHERE ended_at IS NULL;
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

-- Digests of refresh tokens. Used ones stay, so that one which comes back is known for what it is.
CREATE TABLE refresh_tokens (
    sha256     bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at    timestamptz
);
CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON sessions, refresh_tokens TO claimcheck_app;
    END IF;
END
$$;
