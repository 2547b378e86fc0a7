-- Names that operators give: each leads to one model or, by weights, to several. A name goes before a model that is called the
-- same. A switch is one transaction, and a reader sees the targets before it or those after it. Which name a job was asked for
-- by stands with the job, where it is not the model's own.

CREATE TABLE aliases (
    alias      text PRIMARY KEY,
    changed_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE alias_targets (
    alias  text NOT NULL REFERENCES aliases ON DELETE CASCADE,
    -- By the model's own name, so that no alias leads to another.
    model  text NOT NULL REFERENCES model_aliases (alias) ON DELETE CASCADE,
    weight integer NOT NULL CHECK (weight > 0),
    PRIMARY KEY (alias, model)
);

ALTER TABLE jobs ADD COLUMN requested_model text;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON aliases, alias_targets TO claimcheck_app;
    END IF;
END
$$;
