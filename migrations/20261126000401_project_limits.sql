-- An organization's own limits on one of its projects, beside those on the whole organization. Budgets of projects are rows of
-- `budgets` under the project's id.

CREATE TABLE project_limits (
    project_id uuid PRIMARY KEY REFERENCES projects,
    -- Requests that generate, as `60/min`; null: as many as the callers' own rates let through.
    rate       text,
    -- Jobs that wait; null: as many as the organization may have.
    max_queued integer CHECK (max_queued >= 0)
);
CREATE INDEX project_limits_with_rate ON project_limits (project_id) WHERE rate IS NOT NULL;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON project_limits TO claimcheck_app;
    END IF;
END
$$;
