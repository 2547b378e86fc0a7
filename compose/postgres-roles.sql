-- For the PostgreSQL image's first start: the owner makes databases and migrates, the services connect as the other.
\getenv owner_password OWNER_PASSWORD
\getenv app_password APP_PASSWORD
CREATE ROLE claimcheck_owner LOGIN CREATEDB PASSWORD :'owner_password';
CREATE ROLE claimcheck_app LOGIN PASSWORD :'app_password';
ALTER DATABASE claimcheck OWNER TO claimcheck_owner;
