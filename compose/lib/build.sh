# shellcheck shell=bash
# Builds the release binaries, with progress also where there is no terminal.

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/claimcheck/target}
# shellcheck disable=SC2034 # read by service.sh
BIN=$CARGO_TARGET_DIR/release

build_binaries() {
  say "building the binaries (the first time takes some minutes)"
  if [[ -t 2 ]]; then
    (cd "$ROOT" && cargo build --release --locked --bins 8>&-) || die "the build failed"
  else
    build_with_lines
  fi
}

# Counts cargo's lines, so that a log shows every few seconds that it goes on.
build_with_lines() {
  local log=$DEMO/build.log cargo began=$SECONDS told=$SECONDS
  (cd "$ROOT" && exec cargo build --release --locked --bins --color never 8>&- </dev/null >"$log" 2>&1) &
  cargo=$!
  # shellcheck disable=SC2064 # this build, not a later one
  trap "kill $cargo 2>/dev/null || true" EXIT
  while kill -0 "$cargo" 2>/dev/null; do
    sleep 0.5
    if ((SECONDS - told >= 10)); then
      told=$SECONDS
      say "  $((SECONDS - began)) s: $(crates_begun "$log") crates begun, now $(latest_crate "$log")"
    fi
  done
  trap - EXIT
  if ! wait "$cargo"; then
    tail -n 40 "$log" >&2
    die "the build failed"
  fi
  say "built in $((SECONDS - began)) s"
}

crates_begun() { grep -c '^ *Compiling' "$1" || true; }

latest_crate() {
  tail -n 1 "$1" | sed 's/^ *//; s/ (.*//'
}
