-- Projects with members, and accounts of services.

ALTER TABLE projects
    -- Nobody acts in it any more; what it holds stays.
    ADD COLUMN archived_at timestamptz;

-- Users of other organizations who may act in a project.
CREATE TABLE project_members (
    project_id uuid NOT NULL REFERENCES projects,
    user_id    uuid NOT NULL REFERENCES users,
    role       text NOT NULL CHECK (role IN ('member', 'admin')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, user_id)
);
CREATE INDEX project_members_by_user ON project_members (user_id);

-- A service account is a user without a password and without a session that can be renewed, so that all that is said of users
-- (who did it, who may come in, whose keys rest) holds for it too.
ALTER TABLE users ADD COLUMN is_service boolean NOT NULL DEFAULT false;

CREATE TABLE service_accounts (
    id           uuid PRIMARY KEY REFERENCES users,
    project_id   uuid NOT NULL REFERENCES projects,
    name         text NOT NULL,
    -- The first characters of the secret that is in use.
    hint         text NOT NULL,
    scopes       text[] NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at   timestamptz
);
CREATE INDEX service_accounts_by_project ON service_accounts (project_id, id);

-- As for API keys: digests alone, two during a rotation's overlap.
CREATE TABLE service_account_secrets (
    sha256             bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    service_account_id uuid NOT NULL REFERENCES service_accounts,
    expires_at         timestamptz
);
CREATE INDEX service_account_secrets_by_account ON service_account_secrets (service_account_id);

-- What a session is good for; null: everything that its user may do.
ALTER TABLE sessions ADD COLUMN scopes text[];

-- Who may act where, and as what: the one place that says so. An organization's own user in all its projects, a member in
-- the project, a service in its own; nobody where it is archived.
CREATE VIEW project_access AS
    SELECT u.id AS user_id, p.id AS project_id, p.organization_id, 'admin' AS role
    FROM users u JOIN projects p ON p.organization_id = u.tenant_id
    WHERE NOT u.is_service AND p.archived_at IS NULL
    UNION ALL
    SELECT m.user_id, p.id, p.organization_id, m.role
    FROM project_members m JOIN projects p ON p.id = m.project_id
    WHERE p.archived_at IS NULL
    UNION ALL
    SELECT u.id, p.id, p.organization_id, 'member'
    FROM users u JOIN projects p ON p.id = u.project_id
    WHERE u.is_service AND p.archived_at IS NULL;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON project_members, service_accounts, service_account_secrets TO claimcheck_app;
        GRANT SELECT ON project_access TO claimcheck_app;
    END IF;
END
$$;
