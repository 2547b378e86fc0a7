-- What can be asked for. Workers register what they serve; the API resolves names and counts tokens by this table, so
-- that it never needs the model's files.

CREATE TABLE models (
    name             text NOT NULL,
    revision         text NOT NULL,
    context_length   integer NOT NULL CHECK (context_length > 0),
    vocabulary_size  integer NOT NULL CHECK (vocabulary_size > 0),
    dtype            text NOT NULL,
    tokenizer        bytea NOT NULL,
    tokenizer_sha256 text NOT NULL,
    registered_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, revision)
);

-- A name that requests use, pointing at the revision that answers it. Registering a model points its own name at it.
CREATE TABLE model_aliases (
    alias    text PRIMARY KEY,
    name     text NOT NULL,
    revision text NOT NULL,
    FOREIGN KEY (name, revision) REFERENCES models
);

-- Worker processes and what they can take at once; a row is one life of one process.
CREATE TABLE workers (
    id             uuid PRIMARY KEY,
    model          text NOT NULL,
    model_revision text NOT NULL,
    prefetch       integer NOT NULL,
    started_at     timestamptz NOT NULL DEFAULT now(),
    last_seen_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX workers_by_model ON workers (model, last_seen_at);
