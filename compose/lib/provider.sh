# shellcheck shell=bash
# The OpenID Connect provider that users of the demo can sign in with, where Node is there to run it. Without it the demo says
# so and goes on.

PROVIDER_URL=

start_provider() {
  local packages settings
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    say "Node is missing, so there is no provider to sign in with; all else works"
    return 0
  fi
  # shellcheck disable=SC2153 # HERE is set by compose/demo
  packages=$("$HERE/provider/prepare" 2>"$DEMO/provider.log") ||
    { say "the provider to sign in with cannot be had ($DEMO/provider.log); all else works"; return 0; }
  make_secret "$DEMO/provider-secret"
  PROVIDER_PORT=${CLAIMCHECK_PROVIDER_PORT:-$(port_in_use_by provider || echo 9092)}
  if [[ -z $(server_pids provider) ]] && port_is_taken "$PROVIDER_PORT"; then
    PROVIDER_PORT=$(free_port)
  fi
  settings="port=$PROVIDER_PORT"$'\n'"redirect=http://127.0.0.1:$API_PORT/v1/auth/demo/callback"
  if [[ -n $(server_pids provider) && $(cat "$DEMO/provider.settings" 2>/dev/null) != "$settings" ]]; then
    stop_gently provider TERM 10
  fi
  if [[ -z $(server_pids provider) ]]; then
    say "starting the provider to sign in with"
    mkdir -p "$DEMO/provider"
    echo "$settings" >"$DEMO/provider.settings"
    launch provider "$DEMO/provider.log" env "CLIENT_SECRET=$(cat "$DEMO/provider-secret")" \
      node "$HERE/provider/provider.mjs" "$packages" "$PROVIDER_PORT" "${settings#*redirect=}" claimcheck-demo
  fi
  if wait_until 30 "the provider" provider_answers; then
    PROVIDER_URL=http://127.0.0.1:$PROVIDER_PORT
  else
    say "the provider to sign in with does not start ($DEMO/provider.log); all else works"
  fi
}

provider_answers() {
  curl --silent --fail --noproxy '*' --max-time 5 --output /dev/null \
    "http://127.0.0.1:$PROVIDER_PORT/.well-known/openid-configuration"
}

# What the API is told about the provider.
provider_settings() {
  [[ -n $PROVIDER_URL ]] || return 0
  echo "CLAIMCHECK_SIGN_IN=demo"
  echo "CLAIMCHECK_SIGN_IN_DEMO_LABEL=the demo's provider"
  echo "CLAIMCHECK_SIGN_IN_DEMO_ISSUER=$PROVIDER_URL"
  echo "CLAIMCHECK_SIGN_IN_DEMO_CLIENT_ID=claimcheck-demo"
  echo "CLAIMCHECK_SIGN_IN_DEMO_CLIENT_SECRET_FILE=$DEMO/provider-secret"
}

# What a browser does: goes to the provider, says who it is, agrees, and comes back.
show_sign_in() {
  local here=$API_URL/v1/auth/demo/start name jar
  [[ -n $PROVIDER_URL ]] || return 0
  read -r name _ <"$DEMO/user"
  name=guest-$PROVIDER_PORT-${name#demo-}
  jar=$(mktemp)
  printf '\nGET %s\n' "$here"
  browse "$jar" "$here"
  printf '  303 %s…\n' "${SENT_TO%%\?*}"
  for _ in 1 2 3 4 5 6 7 8; do
    here=$SENT_TO
    [[ $here != "$API_URL"/* ]] || break
    browse "$jar" "$here"
    # A page: who it is is asked for, then whether it may be told.
    case $SENT_TO$PAGE in
      http*) ;;
      *'name="login"'*) browse "$jar" "$here" --data-urlencode "login=$name" --data 'prompt=login&password=any' ;;
      *) browse "$jar" "$here" --data prompt=consent ;;
    esac
  done
  printf 'GET %s…\n' "${here%%\?*}"
  TOKEN=
  call GET "${here#"$API_URL"}" --cookie "$jar"
  rm -f "$jar"
  [[ $CODE == 200 ]] || die "nobody was signed in: $CODE $BODY"
  # shellcheck disable=SC2034 # read by job.sh
  TOKEN=$(field access_token)
  call GET /v1/auth/identities
  printf '  200 signed in as %s, for whom %s vouches\n' "$(field email)" "$(field issuer)"
}

# browse JAR URL [curl's options]: sets PAGE, and SENT_TO if it is a redirect.
browse() {
  local jar=$1 url=$2 answer
  shift 2
  answer=$(curl --silent --noproxy '*' --max-time 20 --cookie "$jar" --cookie-jar "$jar" \
    --write-out '\n%{redirect_url}' "$@" "$url") || die "$url does not answer"
  PAGE=${answer%$'\n'*}
  SENT_TO=${answer##*$'\n'}
}
