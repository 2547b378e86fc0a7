-- The services connect as `claimcheck_app`, who owns nothing. Where an installation has no such role (one user for
-- everything), there is nothing to grant.

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT USAGE ON SCHEMA public TO claimcheck_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON organizations, projects, users, models, model_aliases, workers, jobs,
            job_inputs, job_outputs, outbox, idempotency_keys, events TO claimcheck_app;
        GRANT SELECT, INSERT ON audit_log TO claimcheck_app;
        GRANT SELECT ON _sqlx_migrations TO claimcheck_app;
        GRANT EXECUTE ON FUNCTION ensure_audit_partition(date) TO claimcheck_app;
    END IF;
END
$$;
REVOKE EXECUTE ON FUNCTION ensure_audit_partition(date) FROM PUBLIC;
