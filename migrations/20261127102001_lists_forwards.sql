-- Lists read the newest job first, backwards. With its newest entry last a list's index is filled at its end, page by page: with `id DESC`
-- each new entry went to the front, and whoever fills pages there leaves them half empty behind.
--
-- Locked first: whoever locked a job's row while the indexes are made would wait for them, and their drop for it.
LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE;
CREATE INDEX jobs_waiting_or_running ON jobs (project_id, status, id) WHERE finished_at IS NULL;
CREATE INDEX jobs_waiting_or_running_by_model ON jobs (project_id, model, status, id) WHERE finished_at IS NULL;
CREATE INDEX jobs_ended ON jobs (project_id, status, id) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_ended_by_model ON jobs (project_id, model, status, id) WHERE finished_at IS NOT NULL;
DROP INDEX jobs_unended_by_status;
DROP INDEX jobs_unended_by_model_status;
DROP INDEX jobs_ended_by_status;
DROP INDEX jobs_ended_by_model_status;
