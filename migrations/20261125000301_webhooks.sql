-- Telling callers what happened: every event is handed to those who want it in the transaction that wrote it.

-- Ids by time (RFC 9562, version 7) for what SQL itself writes down.
CREATE FUNCTION uuid_v7() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
            || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid
$$;

ALTER TABLE events
    -- What the event shows besides its job, or instead of one.
    ADD COLUMN data     jsonb,
    -- Only for this endpoint, and not in the feed: an example.
    ADD COLUMN audience uuid,
    -- The transaction that wrote it. Ids are drawn before the commit, so that a reader by id would pass over what is
    -- committed late; the feed reads by this, up to the oldest transaction that is still at work. Constant first, so that the
    -- table is not rewritten.
    ADD COLUMN xid      xid8 NOT NULL DEFAULT '0';
ALTER TABLE events
    ALTER COLUMN xid SET DEFAULT pg_current_xact_id(),
    ALTER COLUMN id SET DEFAULT uuid_v7();
CREATE INDEX events_feed ON events (project_id, xid, id);
-- They go with nobody's job, so they are forgotten by their age.
CREATE INDEX events_of_no_job ON events (created_at) WHERE job_id IS NULL;

-- Where a project wants its events. One without a URL signs for the URLs that jobs bring along.
CREATE TABLE webhook_endpoints (
    id               uuid PRIMARY KEY,
    tenant_id        uuid NOT NULL,
    project_id       uuid NOT NULL REFERENCES projects,
    url              text,
    description      text,
    -- Which events; none named is all but `job.started`.
    events           text[] NOT NULL DEFAULT '{}',
    payload          text NOT NULL DEFAULT 'thin' CHECK (payload IN ('thin', 'full')),
    -- Sealed, since they may hold a password; the names are shown.
    headers          bytea,
    header_names     text[] NOT NULL DEFAULT '{}',
    -- Most deliveries a second, and most at the same time.
    rate_limit       integer CHECK (rate_limit > 0),
    concurrency      integer NOT NULL DEFAULT 16 CHECK (concurrency > 0),
    status           text NOT NULL DEFAULT 'enabled' CHECK (status IN ('enabled', 'disabled')),
    -- `requested`, `gone` (it answered 410) or `failing` (nothing but failures for days)
    disabled_reason  text,
    -- The first failure since the last success.
    failing_since    timestamptz,
    -- Until when the rate limit is used up.
    paced_until      timestamptz,
    -- Sealed with CLAIMCHECK_WEBHOOK_KEY: they are needed to sign, hence no hashes.
    secret           bytea NOT NULL,
    old_secret       bytea,
    old_secret_until timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    deleted_at       timestamptz,
    CHECK ((status = 'disabled') = (disabled_reason IS NOT NULL))
);
CREATE INDEX webhook_endpoints_by_project ON webhook_endpoints (project_id, id) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX webhook_endpoints_for_jobs ON webhook_endpoints (project_id) WHERE url IS NULL;
-- Empty as a rule: what begins is written down as an event only where somebody asked for it.
CREATE INDEX webhook_endpoints_of_starts ON webhook_endpoints (project_id)
    WHERE 'job.started' = ANY (events) AND deleted_at IS NULL;

-- URLs that jobs bring along.
CREATE TABLE job_webhooks (
    job_id      uuid PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    -- Who signs.
    endpoint_id uuid NOT NULL,
    -- Deliveries of one lane share a limit: those to one receiver.
    lane        uuid NOT NULL,
    url         text NOT NULL,
    events      text[] NOT NULL DEFAULT '{}',
    payload     text NOT NULL CHECK (payload IN ('thin', 'full'))
);

-- An event on its way to an endpoint. It has no payload of its own: that is made from the event and its job each time.
CREATE TABLE webhook_deliveries (
    endpoint_id uuid NOT NULL,
    event_id    uuid NOT NULL,
    lane        uuid NOT NULL,
    -- ready → sending → delivered, failed, or waiting until it is ready again
    status      text NOT NULL DEFAULT 'ready' CHECK (status IN ('ready', 'sending', 'waiting', 'delivered', 'failed')),
    -- Only grows: what a dispatcher writes is keyed by it. `tries` begins anew when it is sent again on request.
    attempt     integer NOT NULL DEFAULT 0,
    tries       integer NOT NULL DEFAULT 0,
    -- The end of the lease while it is being sent, the next try while it waits.
    next_at     timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    PRIMARY KEY (endpoint_id, event_id),
    CHECK ((next_at IS NOT NULL) = (status IN ('sending', 'waiting'))),
    CHECK ((ended_at IS NOT NULL) = (status IN ('delivered', 'failed')))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX webhook_deliveries_ready ON webhook_deliveries (lane, event_id) WHERE status = 'ready';
CREATE INDEX webhook_deliveries_sending ON webhook_deliveries (lane) WHERE status = 'sending';
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX webhook_deliveries_failed ON webhook_deliveries (endpoint_id, event_id) WHERE status = 'failed';
CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL;

-- What came of each attempt.
CREATE TABLE webhook_attempts (
    endpoint_id uuid NOT NULL,
    event_id    uuid NOT NULL,
    number      integer NOT NULL,
    started_at  timestamptz NOT NULL,
    latency_ms  integer,
    -- Of the answer, if there was one.
    status_code integer,
    -- A word for what went wrong, and a sentence about it.
    error       text,
    message     text,
    -- The first bytes of the answer.
    answer      text,
    PRIMARY KEY (endpoint_id, event_id, number),
    FOREIGN KEY (endpoint_id, event_id) REFERENCES webhook_deliveries ON DELETE CASCADE
);

CREATE FUNCTION webhook_wants(events text[], type text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN cardinality(events) = 0 THEN type <> 'job.started' ELSE type = ANY (events) END
$$;

-- Whoever writes events, of this release or of the one before, in whatever transaction: their deliveries are written with
-- them or not at all. Where nobody wants them it costs two look-ups by index.
CREATE FUNCTION hand_on_events() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    made bigint;
BEGIN
    INSERT INTO webhook_deliveries (endpoint_id, event_id, lane)
        SELECT p.id, e.id, p.id FROM new_events e JOIN webhook_endpoints p ON p.project_id = e.project_id
        WHERE p.deleted_at IS NULL AND p.status = 'enabled' AND p.url IS NOT NULL
            AND CASE WHEN e.audience IS NULL THEN webhook_wants(p.events, e.type) ELSE e.audience = p.id END
        UNION ALL
        SELECT w.endpoint_id, e.id, w.lane FROM new_events e JOIN job_webhooks w ON w.job_id = e.job_id
        WHERE webhook_wants(w.events, e.type);
    GET DIAGNOSTICS made = ROW_COUNT;
    IF made > 0 THEN
        PERFORM pg_notify('claimcheck_webhooks', '');
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER hand_on AFTER INSERT ON events REFERENCING NEW TABLE AS new_events
    FOR EACH STATEMENT EXECUTE FUNCTION hand_on_events();

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_endpoints, job_webhooks, webhook_deliveries, webhook_attempts
            TO claimcheck_app;
    END IF;
END
$$;
