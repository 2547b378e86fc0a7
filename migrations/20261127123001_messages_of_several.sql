-- Under load one message tells of several jobs. The broker counts messages, so what it lacks can only be found if it is known which
-- jobs came in which.

ALTER TABLE released ADD COLUMN message uuid;
COMMENT ON COLUMN released.message IS
    'the first job of its message, which is the message''s id in the broker; null if its message is of this job alone (the release before)';
