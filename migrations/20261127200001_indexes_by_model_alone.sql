-- Every job is written into each index up to twice before it ends. Lists of all models are put together from the lists of each, and what
-- a tenant has waiting is found by its projects: three indexes less.
--
-- Locked first: whoever locked a job's row meanwhile would wait for one drop, and the next for it.
LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE;
DROP INDEX jobs_waiting_or_running;
DROP INDEX jobs_ended;
DROP INDEX jobs_unfinished;
