# shellcheck shell=bash
# Which ports the stack listens on: remembered in the data folder, so that an address stays what it was.
# They lie below the range that the kernel hands to outgoing connections, or a client that dials a killed server again
# and again could be given the server's own port.

declare -A PORTS=()
PORT_NAMES=(postgres rabbitmq redis epmd distribution)

default_port() {
  local index
  if [[ -n ${CLAIMCHECK_PORT_BASE:-} ]]; then
    for index in "${!PORT_NAMES[@]}"; do
      [[ ${PORT_NAMES[index]} != "$1" ]] || echo $((CLAIMCHECK_PORT_BASE + index))
    done
    return
  fi
  case $1 in
    postgres) echo 21432 ;;
    rabbitmq) echo 21672 ;;
    redis) echo 21379 ;;
    epmd) echo 21369 ;;
    distribution) echo 21673 ;;
  esac
}

port_of() { echo "${PORTS[$1]}"; }

# Reads the remembered ports; false when there are none or the file was cut short.
load_ports() {
  local name port
  [[ -r $DATA/ports ]] || return 1
  while read -r name port; do
    if [[ $port =~ ^[0-9]+$ ]] && ((port > 1023 && port < 65536)); then PORTS[$name]=$port; fi
  done <"$DATA/ports"
  for name in "${PORT_NAMES[@]}"; do
    [[ -n ${PORTS[$name]:-} ]] || return 1
  done
}

store_ports() {
  local name
  for name in "${PORT_NAMES[@]}"; do
    echo "$name ${PORTS[$name]}"
  done >"$DATA/ports.new"
  mv "$DATA/ports.new" "$DATA/ports"
}

port_is_taken() {
  (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# A port is changed only while its server is down: a running one keeps its own.
choose_ports() {
  local name
  # Servers of ours whose ports nobody knows any more cannot be used.
  load_ports || stop_all
  for name in "${PORT_NAMES[@]}"; do
    [[ -n ${PORTS[$name]:-} ]] || PORTS[$name]=$(default_port "$name")
    [[ -z $(holder_of_port "$name") ]] || continue
    if port_is_taken "${PORTS[$name]}"; then
      say "port ${PORTS[$name]} for $name is taken by something else"
      PORTS[$name]=$(free_port)
      say "$name gets port ${PORTS[$name]}"
    fi
  done
  store_ports
}

# The processes of ours that hold a port now.
holder_of_port() {
  case $1 in
    distribution) server_pids rabbitmq ;;
    *) server_pids "$1" ;;
  esac
}

# The search begins at a place that depends on the data folder, so that two stacks do not race for one port.
free_port() {
  local port start
  start=$((21700 + $(cksum <<<"$DATA" | cut -d' ' -f1) % 8000))
  for ((port = start; port < start + 2000; port++)); do
    if [[ " ${PORTS[*]} " != *" $port "* ]] && ! port_is_taken "$port"; then
      echo "$port"
      return
    fi
  done
  die "no free port between $start and $port"
}
