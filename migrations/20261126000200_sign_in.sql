-- Signing in with others: OpenID Connect providers and GitHub.

-- Who a user is elsewhere. The issuer, not the name that our configuration gives it, says whose subject it is: a name can be
-- given to another provider, and then means other people.
CREATE TABLE identities (
    id           uuid PRIMARY KEY,
    user_id      uuid NOT NULL REFERENCES users,
    issuer       text NOT NULL,
    subject      text NOT NULL,
    -- As the issuer had verified it when the link was made.
    email        text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz
);
-- The names of these indexes tell the API what is taken.
CREATE UNIQUE INDEX identities_issuer_subject_key ON identities (issuer, subject);
CREATE UNIQUE INDEX identities_user_issuer_key ON identities (user_id, issuer);

-- Whoever came by a provider has no password: the hash that they are given is of a secret that nobody knows.
ALTER TABLE users ADD COLUMN has_password boolean NOT NULL DEFAULT true;

-- Sign-ins that have begun: the digest of the secret that their browser holds in a cookie. A row is taken once.
CREATE TABLE sign_ins (
    sha256     bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    provider   text NOT NULL,
    -- Set when a session's user links the provider to their account.
    session_id uuid REFERENCES sessions ON DELETE CASCADE,
    expires_at timestamptz NOT NULL
);
CREATE INDEX sign_ins_by_expiry ON sign_ins (expires_at);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON identities, sign_ins TO claimcheck_app;
    END IF;
END
$$;
