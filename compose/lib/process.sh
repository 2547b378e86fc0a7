# shellcheck shell=bash
# Which processes are ours: those of a server's program whose working folder is the server's folder in the data folder.
# There are no pid files of our own, so none can be stale.

server_program() {
  case $1 in
    postgres) echo postgres ;;
    rabbitmq) echo beam.smp ;;
    redis) echo redis-server ;;
    epmd) echo epmd ;;
    api) echo claimcheck-api ;;
    worker) echo claimcheck-worker ;;
    # What its threads are called depends on Node's version.
    provider) echo '*' ;;
  esac
}

server_folder() {
  case $1 in
    api | worker | provider) echo "$DATA/demo/$1" ;;
    *) echo "$DATA/$1" ;;
  esac
}

# The pids that work in a server's folder, oldest first: also a start script that is not the server yet.
folder_pids() { pids_in "$(server_folder "$1")"; }

pids_in() {
  local folder=$1 path target
  # Processes that end while we look are no error.
  { find /proc/[0-9]*/cwd -maxdepth 0 -printf '%p %l\n' 2>/dev/null || true; } |
    while read -r path target; do
      [[ $target != "$folder" ]] || cut -d/ -f3 <<<"$path"
    done | sort -n
}

# The pids of a server, children included. The kernel keeps 15 characters of a program's name.
server_pids() {
  local program pid
  program=$(server_program "$1")
  for pid in $(folder_pids "$1"); do
    [[ $program != '*' && $(cat "/proc/$pid/comm" 2>/dev/null) != "${program:0:15}" ]] || echo "$pid"
  done
}

# The process whose parent is not one of the server's: PostgreSQL's postmaster, or simply the server.
main_pid() {
  local pids pid parent
  pids=$(server_pids "$1")
  for pid in $pids; do
    parent=$(sed 's/.*) . \([0-9]*\) .*/\1/' "/proc/$pid/stat" 2>/dev/null) || continue
    if ! grep -qx "$parent" <<<"$pids"; then
      echo "$pid"
      return
    fi
  done
}

# launch SERVER LOG COMMAND…: in the background, in its folder, in a session of its own.
launch() {
  local server=$1 log=$2
  shift 2
  (
    cd "$(server_folder "$server")" || exit 1
    exec setsid --fork "$@" 8>&- 9>&- </dev/null >>"$log" 2>&1
  )
}

launch_as_server() {
  local server=$1 log=$2
  shift 2
  launch "$server" "$log" "${AS_SERVER_USER[@]}" "$@"
}

# Servers whose data folder was deleted under them serve nothing, and hold their ports.
end_bereaved() {
  local server pids
  for server in postgres rabbitmq redis epmd; do
    pids=$(pids_in "$(server_folder "$server") (deleted)")
    [[ -n $pids ]] || continue
    say "ending a $server whose data folder was deleted"
    # shellcheck disable=SC2086 # one argument a pid
    kill -KILL $pids 2>/dev/null || true
  done
}

none_left() { [[ -z $(server_pids "$1") ]]; }

# signal_all SIGNAL SERVER: its processes of this moment.
signal_all() {
  local pids
  pids=$(server_pids "$2")
  # shellcheck disable=SC2086 # one argument a pid
  [[ -z $pids ]] || kill "-$1" $pids 2>/dev/null || true
}

# kill_all SIGNAL SERVER: also what was forked meanwhile.
kill_all() {
  signal_all "$1" "$2"
  wait_until 30 "the end of $2" kill_again "$1" "$2" || die "$2 does not end"
}

kill_again() {
  ! none_left "$2" || return 0
  signal_all "$1" "$2"
  return 1
}

# stop_gently SERVER SIGNAL SECONDS: asks the main process, then forces.
stop_gently() {
  local pid
  pid=$(main_pid "$1")
  [[ -n $pid ]] || return 0
  kill "-$2" "$pid" 2>/dev/null || true
  if ! wait_until "$3" "$1 to stop" none_left "$1"; then
    say "$1 did not stop within $3 s; killing it"
    kill_all KILL "$1"
  fi
  say "$1 has stopped"
}
