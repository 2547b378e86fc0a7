"""The work of `tests/schema/run`: an installation of its own, an admin's API key, and schemathesis on every route."""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from installation import Installation, fresh_database, send

DATABASE = "schema_check"
TINY = Path(__file__).resolve().parents[2] / "worker/models/tiny"
# Every answer is one that the document names for its route, in status, type, headers and shape; none is a server's error.
CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "ignored_auth",
]
# They pause whole classes of jobs, drain the worker, lead names astray, and may end the key or the account that everything else is asked
# with: they come last.
LAST = "^/v1/admin/(aliases|pauses|users|workers)|^/v1/api_keys/"


def admin_key(ours: Installation) -> str:
    """An API key with every scope, of an admin: unlike a session it does not end with a logout that is tried."""
    token = ours.token()
    command = [ours.bin / "claimcheck-api", "role", "bench", "admin"]
    subprocess.run(command, cwd=ours.folder, env=os.environ | ours.environment, check=True)
    wanted = {"name": "schema", "scopes": ["jobs:read", "jobs:write", "batches", "webhooks", "admin"]}
    return send(f"{ours.url}/v1/api_keys", json.dumps(wanted).encode(), "application/json", token)["key"]


def operations(url: str) -> int:
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as answer:
        paths = json.load(answer)["paths"]
    verbs = {"get", "put", "post", "patch", "delete"}
    return sum(verb in verbs for path in paths.values() for verb in path)


def still_alive(ours: Installation) -> bool:
    """Whether both processes live, and no request ended in a panic."""
    logged = (Path(ours.folder) / "api.log").read_text(errors="replace")
    panics = re.findall(r".*panicked.*", logged)
    print(*panics, sep="\n")
    return not panics and all(child.process.poll() is None for child in ours.children)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--cases", type=int, default=400, help="about so many made-up requests in all")
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    fresh_database(DATABASE)
    with tempfile.TemporaryDirectory() as folder:
        more = {"CLAIMCHECK_WEBHOOK_KEY": "a webhook key of at least thirty-two bytes", "CLAIMCHECK_FILES": f"{folder}/files"}
        ours = Installation(Path(folder), DATABASE, TINY, **more)
        with ours.api, ours.worker:
            key, count = admin_key(ours), operations(ours.url)
            command = [
                str(Path(sys.executable).parent / "schemathesis"), "run", f"{ours.url}/openapi.json",
                "--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing",
                "--max-examples", str(-(-asked.cases // count)), "--seed", str(asked.seed), "--workers", "1",
                "--request-timeout", "300", "--continue-on-failure", "--no-shrink", "--no-color",
                "--suppress-health-check", "all", "--generation-database", "none",
                "--generation-with-security-parameters", "false",
            ]
            quiet = os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

            def run(*which: str) -> bool:
                return subprocess.run([*command, *which], cwd=folder, env=quiet).returncode == 0

            held = run("--exclude-path-regex", LAST)
            # Were the key no good any more, every answer would have been 401, and nothing shown.
            asking = urllib.request.Request(f"{ours.url}/v1/models", headers={"authorization": f"Bearer {key}"})
            urllib.request.urlopen(asking, timeout=10).close()
            held = run("--include-path-regex", LAST) and held
            return int(not (held and still_alive(ours)))


if __name__ == "__main__":
    sys.exit(main())
