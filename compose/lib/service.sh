# shellcheck shell=bash
# The API and the worker as background processes. One that runs is left alone, unless its program was built anew or
# it would be configured otherwise now.

MODEL=${CLAIMCHECK_MODEL:-$ROOT/worker/models/tiny}
MODEL_NAME=${CLAIMCHECK_MODEL_NAME:-claimcheck-tiny}

check_needs() {
  command -v cargo >/dev/null || die "cargo is missing; install Rust (https://rustup.rs) and try again in a new shell"
  [[ -f $MODEL/config.json ]] || die "there is no model in $MODEL"
}

start_service() {
  make_secret "$DEMO/jwt-secret"
  make_secret "$DEMO/webhook-key"
  # shellcheck disable=SC2034 # read by job.sh
  API_URL=http://127.0.0.1:$API_PORT
  say "bringing the schema up to date"
  (cd "$DEMO" && CLAIMCHECK_LOG=pretty "$BIN/claimcheck-api" migrate) >"$DEMO/migrate.log" 2>&1 ||
    { tail -n 20 "$DEMO/migrate.log" >&2; die "the migrations failed"; }
  ensure_running api "$API_PORT" "$BIN/claimcheck-api" serve
  ensure_running worker "$WORKER_PORT" "$BIN/claimcheck-worker" run --model "$MODEL" --model-name "$MODEL_NAME"
}

# They sign access tokens and seal the secrets of webhooks. Kept, so that those outlive a restart.
make_secret() {
  [[ -s $1 ]] || (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$1")
}

# A port that was asked for wins, then the one in use, then the usual one.
choose_service_ports() {
  API_PORT=${CLAIMCHECK_PORT:-$(port_in_use_by api || echo 8080)}
  WORKER_PORT=${CLAIMCHECK_WORKER_PORT:-$(port_in_use_by worker || echo 9091)}
  if [[ -z $(server_pids api) ]] && port_is_taken "$API_PORT"; then
    die "port $API_PORT is taken; choose another one: CLAIMCHECK_PORT=8081 compose/demo"
  fi
  if [[ -z $(server_pids worker) ]] && port_is_taken "$WORKER_PORT"; then
    WORKER_PORT=$(free_port)
  fi
}

port_in_use_by() {
  [[ -n $(server_pids "$1") ]] && sed -n 's/^port=//p' "$DEMO/$1.settings" 2>/dev/null
}

# What a process was started with; when it differs from what it would be started with now, it is started anew.
settings_of() {
  cat <<END
port=$2
servers=$DATABASE_URL $AMQP_URL $REDIS_URL
model=$MODEL $MODEL_NAME
provider=$PROVIDER_URL
END
}

# ensure_running SERVICE PORT COMMAND…
ensure_running() {
  local service=$1 port=$2 settings sign_in
  shift 2
  mapfile -t sign_in < <(provider_settings)
  settings=$(settings_of "$service" "$port")
  if [[ -n $(server_pids "$service") ]]; then
    if is_current "$service" "$settings"; then
      say "$service runs on 127.0.0.1:$port"
    else
      say "$service has changed; starting it anew"
      stop_gently "$service" TERM 45
    fi
  fi
  if [[ -z $(server_pids "$service") ]]; then
    say "starting $service"
    mkdir -p "$DEMO/$service"
    echo "$settings" >"$DEMO/$service.settings"
    launch "$service" "$DEMO/$service.log" env NO_COLOR=1 CLAIMCHECK_LOG=pretty \
      "CLAIMCHECK_JWT_SECRET=$(cat "$DEMO/jwt-secret")" "CLAIMCHECK_WEBHOOK_KEY=$(cat "$DEMO/webhook-key")" \
      "CLAIMCHECK_WEBHOOK_ALLOW=127.0.0.0/8,::1/128" "CLAIMCHECK_PUBLIC_URL=http://127.0.0.1:$API_PORT" \
      "CLAIMCHECK_FILES=$DEMO/files" "CLAIMCHECK_HTTP_ADDR=127.0.0.1:$API_PORT" \
      "CLAIMCHECK_WORKER_HTTP_ADDR=127.0.0.1:$WORKER_PORT" \
      "${sign_in[@]}" CLAIMCHECK_PLAN=unlimited CLAIMCHECK_LOGIN_RATE=unlimited CLAIMCHECK_LOGIN_ADDRESS_RATE=unlimited "$@"
  fi
  await_service "$service" "$port"
}

# A program that was built anew shows as deleted in the process that runs the old one.
is_current() {
  local executable
  executable=$(readlink "/proc/$(main_pid "$1")/exe") || return 1
  [[ $executable != *" (deleted)" && $(cat "$DEMO/$1.settings" 2>/dev/null) == "$2" ]]
}

await_service() {
  if ! wait_until "$START_LIMIT" "$1" answers_or_dead "$1" "$2" || ! answers "$2"; then
    say "$1 is not ready; the last lines of $DEMO/$1.log:"
    tail -n 20 "$DEMO/$1.log" >&2
    exit 1
  fi
}

answers() { curl --silent --fail --noproxy '*' --max-time 5 --output /dev/null "http://127.0.0.1:$1/readyz"; }

answers_or_dead() { answers "$2" || [[ -z $(folder_pids "$1") ]]; }
