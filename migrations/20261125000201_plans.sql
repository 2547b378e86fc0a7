-- A tenant's own plan, which names its request rates in the configuration (CLAIMCHECK_PLANS). Null is the default one.
ALTER TABLE tenant_limits ADD COLUMN plan text;
CREATE INDEX tenant_limits_with_plan ON tenant_limits (tenant_id) WHERE plan IS NOT NULL;
