# shellcheck shell=bash
# The private PostgreSQL: durable settings, loopback only, no Unix socket (its path has a length limit that a data
# folder may not keep). `claimcheck_owner` owns the databases and migrates, `claimcheck_app` only reads and writes rows.

postgres_url() { echo "postgres://$1:claimcheck@127.0.0.1:$(port_of postgres)/claimcheck"; }

postgres_launch() {
  postgres_clear_orphans
  [[ -z $(server_pids postgres) ]] || return 0
  postgres_initialise
  as_server_user rm -f "$DATA/postgres/postmaster.pid"
  say "starting postgres"
  launch_as_server postgres "$DATA/postgres.log" "$(postgres_bin)/postgres" -D "$DATA/postgres" \
    -p "$(port_of postgres)" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c max_connections=300 -c track_activity_query_size=16384 -c fsync=on -c synchronous_commit=on -c full_page_writes=on -c logging_collector=off
}

# Sessions whose postmaster was killed linger for a moment and would keep a new one from starting.
postgres_clear_orphans() {
  local pids postmaster
  pids=$(server_pids postgres)
  postmaster=$(head -n 1 "$DATA/postgres/postmaster.pid" 2>/dev/null) || true
  if [[ -n $pids ]] && ! grep -qx "${postmaster:-none}" <<<"$pids"; then
    kill_all KILL postgres
  fi
}

# A folder gets its name only when it is complete: one whose making was interrupted is made anew.
postgres_initialise() {
  [[ ! -f $DATA/postgres/PG_VERSION ]] || return 0
  rm -rf "${DATA:?}/postgres.new" "${DATA:?}/postgres"
  say "making a database cluster"
  (umask 077 && head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$DATA/passwords")
  if is_root; then chown postgres:postgres "$DATA/passwords"; fi
  # The log tells more than the terminal needs.
  (cd / && as_server_user "$(postgres_bin)/initdb" -D "$DATA/postgres.new" -U postgres --pwfile="$DATA/passwords" \
    --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8) >>"$DATA/postgres.log" 2>&1 ||
    { tail -n 20 "$DATA/postgres.log" >&2; die "the cluster could not be made"; }
  mv "$DATA/postgres.new" "$DATA/postgres"
}

postgres_ready() {
  "$(postgres_bin)/pg_isready" -q -h 127.0.0.1 -p "$(port_of postgres)" -t 5
}

postgres_await() {
  await_ready postgres "$DATA/postgres.log"
  postgres_roles || die "the roles could not be made"
}

# Repeated at every start, so that a start that was cut short here is completed by the next one.
postgres_roles() {
  PGPASSWORD=$(cat "$DATA/passwords") "$(postgres_bin)/psql" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 \
    -p "$(port_of postgres)" -U postgres -d postgres <<'SQL'
SELECT format('CREATE ROLE %I LOGIN PASSWORD %L %s', name, 'claimcheck', attributes)
FROM (VALUES ('claimcheck_owner', 'CREATEDB'), ('claimcheck_app', '')) AS wanted (name, attributes)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
SELECT 'CREATE DATABASE claimcheck OWNER claimcheck_owner'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'claimcheck') \gexec
SQL
}

# SIGINT is PostgreSQL's "fast" stop: sessions are ended, the data is written.
postgres_stop() { stop_gently postgres INT 60; }
