-- The keys that sign access tokens, shared by all replicas of the API, so that they can be rotated without a restart.

CREATE TABLE signing_keys (
    -- Thumbprint of the public half (RFC 7638).
    kid        text PRIMARY KEY,
    -- The private half, sealed with the service's secret: of no use to whoever has the database alone.
    sealed     bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Of the keys whose time has come, the one whose time came last signs.
    signs_from timestamptz,
    -- From then on what it signed is not accepted.
    retired_at timestamptz
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE ON signing_keys TO claimcheck_app;
    END IF;
END
$$;
