"""The service under a bench: its binaries with a database of their own, on free ports, without a line for each request."""
import json
import os
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

from processes import Child


def at(url: str, database: str) -> str:
    """The same server, another database."""
    return urllib.parse.urlsplit(url)._replace(path=f"/{database}").geturl()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fresh_database(name: str) -> None:
    """A database of that name with nothing in it."""
    owner = os.environ["DATABASE_OWNER_URL"]
    for sql in [f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}"]:
        quiet = os.environ | {"PGOPTIONS": "--client-min-messages=warning"}
        subprocess.run(["psql", "--quiet", owner, "--command", sql], check=True, env=quiet)


class Installation:
    """An API and a worker that serves the model in a folder; `more` adds to their environment. The database is there."""

    def __init__(self, folder: Path, database: str, model: Path, **more: str):
        self.bin = Path(os.environ["CLAIMCHECK_BIN_DIR"])
        self.url = f"http://127.0.0.1:{free_port()}"
        worker = f"127.0.0.1:{free_port()}"
        self.metrics = f"http://{worker}/metrics"
        environment = {
            "DATABASE_URL": at(os.environ["DATABASE_URL"], database),
            "DATABASE_OWNER_URL": at(os.environ["DATABASE_OWNER_URL"], database),
            "CLAIMCHECK_HTTP_ADDR": self.url.removeprefix("http://"),
            "CLAIMCHECK_WORKER_HTTP_ADDR": worker,
            "CLAIMCHECK_JWT_SECRET": "a secret of at least thirty-two bytes",
            "CLAIMCHECK_PLAN": "unlimited",
            "CLAIMCHECK_LOGIN_RATE": "unlimited",
            "CLAIMCHECK_LOGIN_ADDRESS_RATE": "unlimited",
            "CLAIMCHECK_TOKEN_TTL": "12h",
            "CLAIMCHECK_QUEUE_PREFIX": database.replace("_", "-"),
            "CLAIMCHECK_MODEL": str(model),
            "RUST_LOG": "warn",
        } | more
        self.folder, self.environment = str(folder), environment
        subprocess.run([self.bin / "claimcheck-api", "migrate"], cwd=folder, env=os.environ | environment, check=True)
        self.api = Child("api", [str(self.bin / "claimcheck-api")], folder, f"{self.url}/readyz", **environment)
        command = [str(self.bin / "claimcheck-worker"), "run"]
        self.worker = Child("worker", command, folder, f"http://{worker}/readyz", **environment)
        self.children = [self.api, self.worker]

    def token(self) -> str:
        """An access token of a new account."""
        account = {"username": "bench", "email": "bench@example.org", "password": "correct horse battery"}
        send(f"{self.url}/v1/auth/register", json.dumps(account).encode(), "application/json")
        form = urllib.parse.urlencode({"grant_type": "password", **{k: account[k] for k in ("username", "password")}})
        answer = send(f"{self.url}/v1/auth/token", form.encode(), "application/x-www-form-urlencoded")
        return answer["access_token"]

    def counts(self) -> dict[str, float]:
        """The worker's counters now, summed over their labels."""
        sums: dict[str, float] = {}
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line and not line.startswith("#"):
                    name, value = line.rsplit(" ", 1)
                    name = name.split("{")[0]
                    sums[name] = sums.get(name, 0.0) + float(value)
        return sums


def send(url: str, body: bytes, media: str, token: str | None = None) -> dict:
    """Posts, and answers the JSON of the answer."""
    headers = {"content-type": media} | ({"authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
        return json.load(answer)
