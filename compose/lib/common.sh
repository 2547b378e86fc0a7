# shellcheck shell=bash
# Shared by the scripts here: messages, the data folder, whose server a URL names, waiting.

say() { echo "claimcheck: $*" >&2; }
die() { say "$*"; exit 1; }

is_root() { [[ $(id -u) == 0 ]]; }

# PostgreSQL refuses to run as root, and then all three servers run as the user that its package brings. That user
# cannot reach root's home, so root's data lies under /var/lib.
if is_root; then
  DATA=${CLAIMCHECK_DATA:-/var/lib/claimcheck/stack}
else
  DATA=${CLAIMCHECK_DATA:-$HOME/.cache/claimcheck/stack}
fi
# Absolute and without symbolic links: processes are recognised by this path.
DATA=$(realpath -m "$DATA")
START_LIMIT=${CLAIMCHECK_START_LIMIT:-120}

# Runs a command as the user who owns the servers.
AS_SERVER_USER=()
if is_root; then
  AS_SERVER_USER=(setpriv --reuid postgres --regid postgres --init-groups -- env HOME="$DATA" USER=postgres)
fi
as_server_user() { "${AS_SERVER_USER[@]}" "$@"; }

# The mark keeps us from taking over (and as root handing to another user) a folder that holds something else.
prepare_data_folder() {
  if [[ -n $(ls -A "$DATA" 2>/dev/null) && ! -e $DATA/.claimcheck ]]; then
    die "$DATA holds other things; name an empty folder with CLAIMCHECK_DATA"
  fi
  mkdir -p "$DATA"
  touch "$DATA/.claimcheck"
  if is_root; then
    chown postgres:postgres "$DATA"
    as_server_user test -w "$DATA" -a -x "$DATA" ||
      die "the user postgres cannot reach $DATA; name another folder with CLAIMCHECK_DATA"
  fi
}

# A folder of a server's own, owned by the server's user.
make_server_folder() {
  as_server_user mkdir -p "$DATA/$1"
}

# Only what this script makes is deleted, so that a wrong CLAIMCHECK_DATA costs nothing.
purge_data_folder() {
  rm -rf "${DATA:?}"/{postgres,postgres.new,rabbitmq,epmd,redis,demo,ports,passwords,rabbitmq.complete,.claimcheck}
  rm -f "$DATA"/*.log
  rmdir "$DATA" 2>/dev/null || say "$DATA holds other things and stays"
  say "the data is deleted"
}

# One `up`, `down`, `kill` or `start` at a time. Descriptor 9 is closed for the servers, or they would hold the lock.
lock_stack() {
  mkdir -p "$(dirname "$DATA")"
  exec 9>"$DATA.lock"
  if ! flock --nonblock 9; then
    say "another call works on $DATA; waiting for it"
    flock --timeout $((START_LIMIT * 3)) 9 || die "the other call did not end"
  fi
}

url_variable() {
  case $1 in
    postgres) echo DATABASE_URL ;;
    rabbitmq) echo AMQP_URL ;;
    redis) echo REDIS_URL ;;
  esac
}

# Does the environment name a server that did not come from `compose/local env`?
is_foreign() {
  local variable url
  variable=$(url_variable "$1")
  url=${!variable:-}
  [[ -n $url && " ${CLAIMCHECK_LOCAL_URLS:-} " != *" $url "* ]]
}

# The addresses of all our servers, whether they are used or not.
own_urls() {
  load_ports || return 0
  echo "$(postgres_url claimcheck_app) $(rabbitmq_url) $(redis_url)"
}

# wait_until SECONDS WHAT COMMAND…: asks until the command succeeds, and says every five seconds what it waits for.
wait_until() {
  local limit=$1 what=$2 began=$SECONDS told=$SECONDS
  shift 2
  until "$@"; do
    ((SECONDS - began < limit)) || return 1
    if ((SECONDS - told >= 5)); then
      say "waiting for $what ($((SECONDS - began)) s)"
      told=$SECONDS
    fi
    sleep 0.1
  done
}

# Waits until a server answers; fails at once when its process has ended.
await_ready() {
  local server=$1 log=$2
  if wait_until "$START_LIMIT" "$server" ready_or_dead "$server" && "${server}_ready"; then
    say "$server is ready on 127.0.0.1:$(port_of "$server")"
    return
  fi
  say "$server did not start; the last lines of $log:"
  tail -n 20 "$log" >&2 || true
  exit 1
}

ready_or_dead() {
  "$1_ready" || [[ -z $(folder_pids "$1") ]]
}
