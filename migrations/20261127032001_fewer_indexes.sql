-- A list without a state is put together from the lists of each (common/src/store/jobs.rs): these two were written three times a job,
-- since each change of a job's state is a new version of its row.
DROP INDEX jobs_by_project;
DROP INDEX jobs_by_project_model;
