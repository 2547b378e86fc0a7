# shellcheck shell=bash
# The private Redis. It holds only what may be lost, so nothing is written to disk: a restart empties it.

redis_url() { echo "redis://127.0.0.1:$(port_of redis)/0"; }

redis_launch() {
  [[ -z $(server_pids redis) ]] || return 0
  make_server_folder redis
  say "starting redis"
  launch_as_server redis "$DATA/redis.log" redis-server --bind 127.0.0.1 --port "$(port_of redis)" --daemonize no \
    --dir "$DATA/redis" --save '' --appendonly no
}

redis_ready() {
  local answer
  answer=$(
    exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$(port_of redis)" || exit 0
    printf 'PING\r\n' >&3
    timeout 5 head -n 1 <&3
  )
  [[ $answer == +PONG* ]]
}

redis_await() { await_ready redis "$DATA/redis.log"; }

redis_stop() { stop_gently redis TERM 30; }
