"""The measurement of `tests/benches/logins`: how probes and jobs fare while many sign in at once, again and again."""
import argparse
import asyncio
import collections
import json
import tempfile
import time
import urllib.parse
from pathlib import Path

from installation import Installation, fresh_database

DATABASE = "bench_logins"
TINY = Path(__file__).resolve().parents[2] / "worker/models/tiny"
PROBE_EVERY, JOB_EVERY = 0.02, 0.2
FORM = "application/x-www-form-urlencoded"


async def send(place: urllib.parse.SplitResult, head: str, body: str = "") -> int:
    """One request on a connection of its own; answers the status."""
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(f"{head}\r\nhost: bench\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        line = await reader.readline()
        await reader.read()
        return int(line.split()[1]) if line else 0
    finally:
        writer.close()


async def sign_in(place, until: float, statuses: collections.Counter) -> None:
    form = urllib.parse.urlencode({"grant_type": "password", "username": "bench", "password": "correct horse battery"})
    while time.monotonic() < until:
        statuses[await send(place, f"POST /v1/auth/token HTTP/1.1\r\ncontent-type: {FORM}", form)] += 1


async def time_each(every: float, until: float, request, times: list[float], wanted: int) -> None:
    """Sends at a constant rate, whatever the answers take: a slow one must not keep others from being asked."""

    async def one() -> None:
        began = time.monotonic()
        status = await request()
        times.append(time.monotonic() - began)
        assert status == wanted, status

    async with asyncio.TaskGroup() as group:
        while time.monotonic() < until:
            group.create_task(one())
            await asyncio.sleep(every)


def told(times: list[float]) -> str:
    ordered = sorted(times)
    at = lambda share: ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000
    return f"{len(ordered)} asked, p50 {at(0.5):.1f} ms, p99 {at(0.99):.1f} ms, worst {ordered[-1] * 1000:.1f} ms"


async def measure(ours: Installation, token: str, parallel: int, seconds: float) -> None:
    place, until = urllib.parse.urlsplit(ours.url), time.monotonic() + seconds
    statuses, probes, jobs = collections.Counter(), [], []
    job = json.dumps({"prompt": "Once", "max_tokens": 1})
    head = f"POST /v1/jobs HTTP/1.1\r\nauthorization: Bearer {token}\r\ncontent-type: application/json"
    async with asyncio.TaskGroup() as group:
        for _ in range(parallel):
            group.create_task(sign_in(place, until, statuses))
        group.create_task(time_each(PROBE_EVERY, until, lambda: send(place, "GET /healthz HTTP/1.1"), probes, 200))
        group.create_task(time_each(JOB_EVERY, until, lambda: send(place, head, job), jobs, 202))
    print(f"{parallel} sign in at a time, {seconds:.0f} s: {dict(sorted(statuses.items()))}")
    print(f"/healthz: {told(probes)}\nPOST /v1/jobs: {told(jobs)}")
    beyond = set(statuses) - {200, 429, 503}
    assert not beyond, f"answered {beyond}"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--parallel", type=int, default=200)
    options.add_argument("--seconds", type=float, default=20)
    asked = options.parse_args()
    fresh_database(DATABASE)
    with tempfile.TemporaryDirectory() as folder:
        ours = Installation(Path(folder), DATABASE, TINY)
        with ours.api, ours.worker:
            asyncio.run(measure(ours, ours.token(), asked.parallel, asked.seconds))


if __name__ == "__main__":
    main()
