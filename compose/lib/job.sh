# shellcheck shell=bash
# One job through the service, as a client would do it with curl. JSON is cut, not parsed: the answers are our own.

PROMPT=${CLAIMCHECK_PROMPT:-Once upon a time}
JOB_LIMIT=${CLAIMCHECK_JOB_LIMIT:-120}

run_job() {
  local request id status
  log_in
  request="{\"model\":$(json_string "$MODEL_NAME"),\"prompt\":$(json_string "$PROMPT")"
  request+=',"max_tokens":200,"temperature":0.7,"seed":7}'
  printf '\nPOST %s/v1/jobs\n  %s\n' "$API_URL" "$request"
  STARTED=${EPOCHREALTIME/[.,]/}
  call POST /v1/jobs --header 'content-type: application/json' --data-binary "$request"
  [[ $CODE == 202 ]] || die "the job was not accepted: $CODE $BODY"
  id=$(field id)
  printf '  202 %s\n' "$id"
  state_seen "$(field status)"
  printf '\nGET %s/v1/jobs/%s?wait=30\n' "$API_URL" "$id"
  follow_job "$id"
  status=$(field status)
  [[ $status == completed ]] || die "the job ended as $status: $BODY"
  printf '\nThe completion (%s tokens, %s):\n\n%s\n' "$(number completion_tokens)" "$(field finish_reason)" \
    "$PROMPT$(field text)"
}

state_seen() {
  local now=${EPOCHREALTIME/[.,]/}
  printf '  %7d ms  %s\n' $(((now - STARTED) / 1000)) "$1"
}

# Prints each state as it is seen. With the validator of what we have, the answer comes when that has changed; without
# it, when the job has ended: so the first one asked with is nobody's.
follow_job() {
  local began=$SECONDS etag='"none"' status='' seen=''
  while ((SECONDS - began < JOB_LIMIT)); do
    call GET "/v1/jobs/$1?wait=30" --header "if-none-match: $etag"
    case $CODE in
      200) etag=$ETAG status=$(field status) ;;
      304) continue ;;
      # The service may be restarting; the job is not lost by that.
      000 | 503) sleep 1 && continue ;;
      *) die "the job cannot be read: $CODE $BODY" ;;
    esac
    [[ $status == "$seen" ]] || state_seen "$status"
    seen=$status
    case $status in completed | failed | cancelled | expired) return ;; esac
  done
  die "the job is still $status after $JOB_LIMIT s; see $DEMO/worker.log"
}

# A user of this installation's own, made at the first call. The name is drawn, since the database may be a shared one.
log_in() {
  local name password
  [[ -s $DEMO/user ]] || (umask 077 && echo "demo-$(random_hex 4) $(random_hex 16)" >"$DEMO/user")
  read -r name password <"$DEMO/user"
  call POST /v1/auth/register --header 'content-type: application/json' \
    --data-binary "{\"username\":\"$name\",\"email\":\"$name@example.com\",\"password\":\"$password\"}"
  # 409: registered by an earlier call.
  [[ $CODE == 201 || $CODE == 409 ]] || die "the demo user cannot be registered: $CODE $BODY"
  call POST /v1/auth/token --data-urlencode grant_type=password --data-urlencode "username=$name" \
    --data-urlencode "password=$password"
  [[ $CODE == 200 ]] || die "the demo user cannot log in: $CODE $BODY"
  TOKEN=$(field access_token)
  say "logged in as $name"
}

random_hex() { head -c "$1" /dev/urandom | od -An -tx1 | tr -d ' \n'; }

# call METHOD PATH [curl's options]: sets CODE (000: no answer), BODY and ETAG.
call() {
  local method=$1 path=$2 answer
  shift 2
  # The token goes in by a file descriptor: arguments can be read by every process of the machine.
  answer=$(curl --silent --noproxy '*' --max-time 60 --request "$method" --write-out '\n%{http_code} %header{etag}' \
    --config <([[ -z ${TOKEN:-} ]] || echo "header = \"authorization: Bearer $TOKEN\"") "$@" "$API_URL$path") || true
  BODY=${answer%$'\n'*}
  read -r CODE ETAG <<<"${answer##*$'\n'}"
}

# The first string field of that name in BODY, its escapes undone: printf knows all that the API writes but \".
field() {
  local value
  value=$(grep -oE "\"$1\":\"([^\"\\\\]|\\\\.)*\"" <<<"$BODY" | head -n 1 || true)
  value=${value#"\"$1\":\""}
  value=${value%\"}
  printf '%b' "${value//\\\"/\\x22}"
}

number() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" <<<"$BODY" | head -n 1; }

json_string() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "$text"
}
