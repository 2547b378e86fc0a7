-- Erasing a job also takes back what receivers answered to its webhooks, since an answer may repeat what it was sent: its endpoints,
-- deleted ones as well, are found here.
CREATE INDEX webhook_endpoints_of_project ON webhook_endpoints (project_id, id);
