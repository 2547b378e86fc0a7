-- Budgets: how many tokens and how much money a tenant or an API key may use, once or in each period.

CREATE TABLE budgets (
    -- The tenant's or the API key's own id: one budget each.
    id              uuid PRIMARY KEY,
    tenant_id       uuid NOT NULL,
    max_tokens      bigint CHECK (max_tokens >= 0),
    -- In billionths of the unit that prices are written in.
    max_cost        bigint CHECK (max_cost >= 0),
    -- Null: it is never renewed.
    period_seconds  integer CHECK (period_seconds > 0),
    -- Moves on by whole periods; what was spent before is forgotten then, what is reserved stays.
    period_began_at timestamptz NOT NULL DEFAULT now(),
    -- By jobs that have ended in this period.
    spent_tokens    bigint NOT NULL DEFAULT 0,
    spent_cost      bigint NOT NULL DEFAULT 0,
    -- The sums of this budget's reservations.
    reserved_tokens bigint NOT NULL DEFAULT 0 CHECK (reserved_tokens >= 0),
    reserved_cost   bigint NOT NULL DEFAULT 0 CHECK (reserved_cost >= 0),
    CHECK (max_tokens IS NOT NULL OR max_cost IS NOT NULL)
);

-- The most that an unfinished job may use, of each budget that it counts against. Written with the job, deleted with its end, when
-- what it used is added to what was spent, at the prices of its beginning.
CREATE TABLE reservations (
    job_id           uuid NOT NULL,
    budget_id        uuid NOT NULL REFERENCES budgets ON DELETE CASCADE,
    tokens           bigint NOT NULL,
    cost             bigint NOT NULL,
    prompt_price     bigint NOT NULL,
    completion_price bigint NOT NULL,
    PRIMARY KEY (job_id, budget_id)
);
CREATE INDEX reservations_by_budget ON reservations (budget_id);

-- Tokens of the prompts of a tenant's waiting jobs of class `batch`; lines of batches beyond it wait in their files.
ALTER TABLE tenant_limits ADD COLUMN max_batch_tokens bigint CHECK (max_batch_tokens >= 0);

-- A budget as it is now: whole periods that have passed since it was last written count. One that began after `now()` (of a
-- transaction that is older) has not passed.
CREATE FUNCTION budget_period(began timestamptz, seconds integer) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN seconds IS NULL THEN began
        ELSE began + interval '1 second' * seconds * greatest(0, floor(extract(epoch FROM now() - began) / seconds)::float8) END
$$;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON budgets, reservations TO claimcheck_app;
    END IF;
END
$$;
