-- For the PostgreSQL image's first start: the owner makes databases and migrates, the services connect as the other.
CREATE ROLE claimcheck_owner LOGIN CREATEDB PASSWORD 'claimcheck';
CREATE ROLE claimcheck_app LOGIN PASSWORD 'claimcheck';
ALTER DATABASE claimcheck OWNER TO claimcheck_owner;
