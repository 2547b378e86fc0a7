-- Every ending was written to this index, and only who asked for what came after an event that is gone was ever answered by it: the
-- feed's own index and the primary key do that as well.
DROP INDEX events_by_project;
