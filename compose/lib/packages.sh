# shellcheck shell=bash
# Finds the servers' programs, and installs Debian's packages when one is missing and that is allowed.

postgres_bin() {
  local folder
  folder=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
  [[ -x $folder/postgres ]] && echo "$folder"
}

# The loader, and a driver for it: a card's, or Mesa's software one.
has_vulkan() {
  /sbin/ldconfig -p | grep 'libvulkan\.so\.1' >/dev/null || return 1
  compgen -G '/usr/share/vulkan/icd.d/*.json' >/dev/null || compgen -G '/etc/vulkan/icd.d/*.json' >/dev/null
}

has_program() {
  case $1 in
    postgres) [[ -n $(postgres_bin) ]] ;;
    rabbitmq) [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] ;;
    redis) command -v redis-server >/dev/null ;;
    haproxy) [[ -x /usr/sbin/haproxy ]] ;;
    vulkan) has_vulkan ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

package_of() {
  case $1 in
    postgres) echo postgresql ;;
    rabbitmq) echo rabbitmq-server ;;
    redis) echo redis-server ;;
    vulkan) echo mesa-vulkan-drivers libvulkan1 ;;
    # Without the symbols of the C library it does not start.
    valgrind) echo valgrind libc6-dbg ;;
    cc) echo gcc libc6-dev ;;
    *) echo "$1" ;;
  esac
}

# install_missing PROGRAM…
install_missing() {
  local program packages=() root=()
  for program in "$@"; do
    # shellcheck disable=SC2207 # package names hold no blanks
    has_program "$program" || packages+=($(package_of "$program"))
  done
  ((${#packages[@]})) || return 0
  command -v apt-get >/dev/null || die "please install: ${packages[*]}"
  if ! is_root; then
    sudo -n true 2>/dev/null || die "please install what is missing: sudo apt-get install -y ${packages[*]}"
    root=(sudo -n)
  fi
  say "installing ${packages[*]} (once)"
  apt_install || die "the packages could not be installed; try: sudo apt-get install -y ${packages[*]}"
}

# Reads `packages` and `root` of its caller. A policy-rc.d that answers 101 keeps the packages from starting services
# of their own, which nobody asked for and which would take the usual ports.
apt_install() {
  local policy=/usr/sbin/policy-rc.d log status=0
  log=$(mktemp)
  if [[ -e $policy ]]; then policy=; fi
  if [[ -n $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
    "${root[@]}" chmod 755 "$policy"
  fi
  "${root[@]}" apt-get -o DPkg::Lock::Timeout=300 update </dev/null >"$log" 2>&1 || true
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y \
    --no-install-recommends "${packages[@]}" </dev/null >>"$log" 2>&1 || status=$?
  [[ -z $policy ]] || "${root[@]}" rm -f "$policy"
  ((status == 0)) || tail -n 20 "$log" >&2
  rm -f "$log"
  return "$status"
}
