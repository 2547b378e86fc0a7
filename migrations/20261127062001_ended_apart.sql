-- Lists of what has ended apart from lists of what has not: a job's claim and its steps before it ends are written to indexes that hold
-- nothing but what waits and runs, however many jobs there are; the large ones are written once, at its end. Lists are put together
-- from those of each state (common/src/store/jobs.rs), each of which says which of the two it is.
CREATE INDEX jobs_unended_by_status ON jobs (project_id, status, id DESC) WHERE finished_at IS NULL;
CREATE INDEX jobs_unended_by_model_status ON jobs (project_id, model, status, id DESC) WHERE finished_at IS NULL;
CREATE INDEX jobs_ended_by_status ON jobs (project_id, status, id DESC) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_ended_by_model_status ON jobs (project_id, model, status, id DESC) WHERE finished_at IS NOT NULL;
DROP INDEX jobs_by_project_status;
DROP INDEX jobs_by_project_model_status;
