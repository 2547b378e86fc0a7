-- Three foreign keys cost every job a lookup and a lock each, of a row that is known to be there: an input is written by the statement
-- that writes its job, an output by the settle that holds its job, and a job's project was looked up for the request.

-- In the order in which a settle takes them.
LOCK TABLE jobs, job_inputs, job_outputs, projects;

ALTER TABLE job_inputs DROP CONSTRAINT job_inputs_job_id_fkey;
ALTER TABLE job_outputs DROP CONSTRAINT job_outputs_job_id_fkey;
-- Texts go with their jobs as before, whoever deletes these.
CREATE FUNCTION delete_texts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM job_inputs i USING gone WHERE i.job_id = gone.id;
    DELETE FROM job_outputs o USING gone WHERE o.job_id = gone.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER delete_texts AFTER DELETE ON jobs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION delete_texts();

ALTER TABLE jobs DROP CONSTRAINT jobs_project_id_fkey;
-- Projects are archived.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'claimcheck_app') THEN
        REVOKE DELETE ON projects FROM claimcheck_app;
    END IF;
END
$$;
