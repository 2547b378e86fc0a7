-- What happened: events for callers (webhooks and feeds read them), the audit log for operators.

CREATE TABLE events (
    id         uuid PRIMARY KEY,
    project_id uuid NOT NULL,
    type       text NOT NULL,
    job_id     uuid,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX events_by_project ON events (project_id, id);
CREATE INDEX events_by_job ON events (job_id);

-- Never holds a prompt, an output or a secret. The application role may add and read, never change.
CREATE TABLE audit_log (
    id          bigint GENERATED ALWAYS AS IDENTITY,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    tenant_id   uuid,
    -- `user:<uuid>`, `worker:<uuid>`, `service`
    actor       text NOT NULL,
    action      text NOT NULL,
    -- The uuid of what was acted upon.
    subject     uuid,
    details     jsonb,
    PRIMARY KEY (id, occurred_at)
) PARTITION BY RANGE (occurred_at);
CREATE INDEX audit_log_by_tenant ON audit_log (tenant_id, id);
CREATE INDEX audit_log_by_subject ON audit_log (subject, id);

-- Takes what no month covers, so that a forgotten partition costs tidiness and not an insert.
CREATE TABLE audit_log_default PARTITION OF audit_log DEFAULT;

-- Makes the partition of a month unless it is there. Runs as its owner, since the application role may not create.
CREATE FUNCTION ensure_audit_partition(month date) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    first date := date_trunc('month', month);
    name  text := 'audit_log_' || to_char(first, 'YYYY_MM');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ensure_audit_partition'));
    IF to_regclass(name) IS NULL THEN
        EXECUTE format('CREATE TABLE %I PARTITION OF audit_log FOR VALUES FROM (%L) TO (%L)',
                       name, first, first + interval '1 month');
    END IF;
END
$$;
SELECT ensure_audit_partition(current_date);
SELECT ensure_audit_partition((current_date + interval '1 month')::date);
