# shellcheck shell=bash
# The private RabbitMQ: own node name, cookie, port mapper (epmd), configuration and data, all loopback only. The
# machine's files under /etc/rabbitmq and /var/lib/rabbitmq are not read.

rabbitmq_url() { echo "amqp://claimcheck:claimcheck@127.0.0.1:$(port_of rabbitmq)/%2f"; }

rabbitmq_launch() {
  [[ -z $(server_pids rabbitmq) ]] || return 0
  # The first boot makes the schema and the user; one that was cut short is begun anew.
  [[ -f $DATA/rabbitmq.complete ]] || rm -rf "${DATA:?}/rabbitmq/mnesia"
  rabbitmq_configure
  epmd_launch
  say "starting rabbitmq"
  raise_open_files
  launch_as_server rabbitmq "$DATA/rabbitmq.log" env "${RABBITMQ_ENV[@]}" /usr/lib/rabbitmq/bin/rabbitmq-server
}

rabbitmq_configure() {
  local home=$DATA/rabbitmq
  make_server_folder rabbitmq
  RABBITMQ_ENV=(
    "HOME=$home" LANG=C.UTF-8
    "ERL_EPMD_PORT=$(port_of epmd)" ERL_EPMD_ADDRESS=127.0.0.1
    RABBITMQ_NODENAME=claimcheck@localhost
    "RABBITMQ_DIST_PORT=$(port_of distribution)"
    "RABBITMQ_CONF_ENV_FILE=$home/env.conf" "RABBITMQ_CONFIG_FILE=$home/rabbitmq.conf"
    "RABBITMQ_ADVANCED_CONFIG_FILE=$home/advanced.config" "RABBITMQ_ENABLED_PLUGINS_FILE=$home/enabled_plugins"
    "RABBITMQ_MNESIA_BASE=$home/mnesia" "RABBITMQ_LOG_BASE=$home/log" "RABBITMQ_SCHEMA_DIR=$home/schema"
    "RABBITMQ_GENERATED_CONFIG_DIR=$home/schema" "RABBITMQ_PID_FILE=$home/rabbitmq.pid"
    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}"
  )
  as_server_user tee "$home/rabbitmq.conf" >/dev/null <<CONF
listeners.tcp.local = 127.0.0.1:$(port_of rabbitmq)
default_user = claimcheck
default_pass = claimcheck
log.console = false
CONF
  echo '[].' | as_server_user tee "$home/enabled_plugins" "$home/advanced.config" >/dev/null
  as_server_user touch "$home/env.conf"
  rabbitmq_cookie
}

# Erlang refuses a cookie that others can read; a broken or missing one is made anew, since one node has no peers.
rabbitmq_cookie() {
  local cookie=$DATA/rabbitmq/.erlang.cookie
  [[ ! -s $cookie ]] || return 0
  rm -f "$cookie"
  (umask 077 && head -c 20 /dev/urandom | od -An -tx1 | tr -d ' \n' | as_server_user tee "$cookie" >/dev/null)
  chmod 400 "$cookie"
}

epmd_launch() {
  [[ -z $(server_pids epmd) ]] || return 0
  make_server_folder epmd
  launch_as_server epmd "$DATA/rabbitmq.log" epmd -port "$(port_of epmd)" -address 127.0.0.1
  wait_until "$START_LIMIT" epmd port_is_taken "$(port_of epmd)" || die "epmd did not start; see $DATA/rabbitmq.log"
}

# The broker wants many files; what the machine allows is used, up to a sensible number.
raise_open_files() {
  local most
  most=$(ulimit -Hn)
  [[ $most != unlimited ]] && ((most < 65536)) || most=65536
  ulimit -Sn "$most" 2>/dev/null || true
}

# The broker listens last of all, and answers a protocol header with a frame of type 1 (Connection.Start).
rabbitmq_ready() {
  local first
  first=$(
    exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$(port_of rabbitmq)" || exit 0
    printf 'AMQP\x00\x00\x09\x01' >&3
    timeout 5 head -c 1 <&3 | od -An -tu1
  )
  [[ ${first// /} == 1 ]]
}

rabbitmq_await() {
  await_ready rabbitmq "$DATA/rabbitmq.log"
  touch "$DATA/rabbitmq.complete"
}

# Runs rabbitmqctl against the private node.
rabbitmq_control() {
  rabbitmq_configure
  as_server_user env "${RABBITMQ_ENV[@]}" /usr/lib/rabbitmq/bin/rabbitmqctl --quiet "$@" </dev/null >/dev/null
}

rabbitmq_stop() {
  stop_gently rabbitmq TERM 60
  kill_all TERM epmd
}
