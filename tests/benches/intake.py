"""The measurements of `tests/benches/intake`, which prepares tools and servers and then runs this."""
import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

import asyncpg
import jwt

import growth
import light
import noop_model
from installation import Installation, at, free_port, fresh_database
from processes import Child, cpu_seconds

PROMPT = {"prompt": "Once upon a time", "max_tokens": 1, "temperature": 0}
DATABASES = {"ours": "bench_intake", "peer": "bench_intake_peer"}
PEER_SECRET = "x" * 32
SETTLE_LIMIT = 180


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--large", type=int, default=1_000_000, help="rows of the large table; 0 leaves it out")
    parser.add_argument("--light", type=int, default=300, help="jobs of the measurement at light load, one at a time")
    parser.add_argument("--json", type=Path, help="writes every measurement to this file")
    return parser.parse_args()


async def load(url: str, token: str, connections: int, seconds: int, rate: int | None = None) -> dict:
    """One run of the load generator: how many were accepted a second, and how long they waited in milliseconds."""
    return await (at_rate(url, token, connections, seconds, rate) if rate else at_most(url, token, connections, seconds))


async def at_most(url: str, token: str, connections: int, seconds: int) -> dict:
    """As many as there is room for, by wrk: of the generators it takes least of the cores that it shares with what it measures."""
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "30s"]
    command += ["-s", str(Path(__file__).with_name("submit.lua")), f"{url}/v1/jobs"]
    said = await output(command, TOKEN=token, BODY=json.dumps(PROMPT))
    found = json.loads(said.splitlines()[-1])
    if found["refused"] or found["failed"]:
        print(f"  not accepted: {found}", file=sys.stderr)
    accepted = found["answered"] - found["refused"]
    return {"accepted": accepted, "a_second": accepted / found["seconds"], "p50": found["p50"], "p99": found["p99"]}


async def at_rate(url: str, token: str, connections: int, seconds: int, rate: int) -> dict:
    """So many a second, by oha, which counts from the moment that each was due."""
    command = ["oha", "--no-tui", "--output-format", "json", "-w", "-z", f"{seconds}s", "-c", str(connections)]
    command += ["-q", str(rate), "--latency-correction", "-m", "POST", "-T", "application/json", "-d", json.dumps(PROMPT)]
    command += ["-H", f"authorization: Bearer {token}"]
    said = json.loads(await output([*command, f"{url}/v1/jobs"]))
    codes = said["statusCodeDistribution"]
    accepted, others = codes.pop("202", 0), codes
    if others or said["errorDistribution"]:
        print(f"  not accepted: {others} {said['errorDistribution']}", file=sys.stderr)
    percentiles = said["latencyPercentiles"]
    return {
        "accepted": accepted,
        "a_second": accepted / said["summary"]["total"],
        "p50": percentiles["p50"] * 1e3,
        "p99": percentiles["p99"] * 1e3,
    }


async def output(command: list[str], **more: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | more, stdout=subprocess.PIPE)
    said = (await process.communicate())[0].decode()
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return said


def ours_in(folder: Path, database: str) -> Installation:
    """The service under test, whose worker runs a model that costs next to nothing."""
    noop_model.write(folder / "noop")
    return Installation(
        folder, database, folder / "noop", CLAIMCHECK_SLOTS="256",
        # So wide that all can be published while nobody consumes.
        CLAIMCHECK_RELEASE_WINDOW="1000000",
    )


class Watch:
    """Looks at the database while a load runs."""

    RELEASED = "SELECT count(*) FROM released"
    UNFINISHED = "SELECT count(*) FROM jobs WHERE finished_at IS NULL"

    def __init__(self, db: asyncpg.Connection):
        self.db, self.released = db, 0

    async def watch(self) -> None:
        while True:
            self.released = max(self.released, await self.db.fetchval(self.RELEASED))
            await asyncio.sleep(0.5)

    async def settled(self) -> None:
        until = time.monotonic() + SETTLE_LIMIT
        while await self.db.fetchval(self.UNFINISHED):
            if time.monotonic() > until:
                raise SystemExit("the jobs did not settle in time")
            await asyncio.sleep(0.05)


async def measure_ours(
    ours: Installation, token: str, db: asyncpg.Connection, wanted: argparse.Namespace, rate: int | None = None,
    consumed: bool = True,
) -> dict:
    """One load, from the first submit to the last settle. Unless it is consumed, the worker is frozen until it is over."""
    watch = Watch(db)
    if not consumed:
        ours.worker.freeze()
    data = os.environ.get("CLAIMCHECK_BENCH_DATA", "")
    looked_at = await growth.pages(db)
    since = await db.fetchval("SELECT clock_timestamp()")
    wal, cpu, began = await db.fetchval("SELECT pg_current_wal_lsn()::text"), cpu_seconds(ours.children, data), time.monotonic()
    task = asyncio.create_task(watch.watch())
    result = await load(ours.url, token, wanted.connections, wanted.seconds, rate)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    result["outbox_at_end"] = await db.fetchval("SELECT count(*) FROM outbox")
    result["unfinished_at_end"] = await db.fetchval(Watch.UNFINISHED)
    if not consumed:
        ours.worker.thaw()
        began = time.monotonic()
    await watch.settled()
    result["settled_a_second"] = result["accepted"] / (time.monotonic() - began)
    after = cpu_seconds(ours.children, data)
    jobs = max(result["accepted"], 1)
    result["cpu_us"] = {name: (after[name] - cpu.get(name, 0.0)) / jobs * 1e6 for name in sorted(after)}
    result["wal_bytes"] = int(await db.fetchval("SELECT pg_current_wal_lsn() - $1::text::pg_lsn", wal)) / jobs
    await asyncio.sleep(growth.PAGES_TOLD)
    result["pages"] = (await growth.pages(db) - looked_at) / jobs
    result["released_most"] = watch.released
    row = await db.fetchrow(
        """SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - created_at)) * 1e3 AS p50,
                  percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - created_at)) * 1e3 AS p99
           FROM jobs WHERE created_at > $1""", since)
    result["pickup_p50"], result["pickup_p99"] = float(row["p50"] or 0), float(row["p99"] or 0)
    return result


async def measure_peer(child: Child, url: str, token: str, wanted: argparse.Namespace) -> dict:
    data = os.environ.get("CLAIMCHECK_BENCH_DATA", "")
    cpu = cpu_seconds([child], data)
    result = await load(url, token, wanted.connections, wanted.seconds)
    after, jobs = cpu_seconds([child], data), max(result["accepted"], 1)
    result["cpu_us"] = {name: (after[name] - cpu.get(name, 0.0)) / jobs * 1e6 for name in sorted(after)}
    return result


def median(results: list[dict], name: str) -> float:
    return statistics.median(result[name] for result in results)


def table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n")
    for cells in [heads, ["---"] * len(heads), *rows]:
        print("| " + " | ".join(cells) + " |")
    sys.stdout.flush()


async def peer_ready(wanted: argparse.Namespace, environment: dict) -> str:
    """Makes the peer's tables and its one user; answers a token."""
    script = """
import asyncio, app
from sqlalchemy import insert
async def main():
    async with app.engine.begin() as connection:
        await connection.run_sync(app.Base.metadata.create_all)
        await connection.execute(insert(app.User).values(username="bench"))
asyncio.run(main())
"""
    python = [sys.executable, "-B", "-c", script]
    subprocess.run(python, cwd=wanted.peer, env=os.environ | environment, check=True)
    return jwt.encode({"sub": "bench"}, PEER_SECRET, algorithm="HS256")


def peer_child(wanted: argparse.Namespace, folder: Path, environment: dict, port: int) -> Child:
    command = [sys.executable, "-B", "-m", "uvicorn", "app:app", "--workers", "2", "--port", str(port), "--no-access-log"]
    return Child("peer", command, folder, f"http://127.0.0.1:{port}/openapi.json", cwd=str(wanted.peer), **environment)


def cpu_cell(results: list[dict]) -> str:
    """The median of the whole, and of each part."""
    whole = statistics.median(sum(result["cpu_us"].values()) for result in results)
    parts = {part: statistics.median(result["cpu_us"].get(part, 0) for result in results) for part in results[0]["cpu_us"]}
    return f"{whole:.0f} ({', '.join(f'{part} {value:.0f}' for part, value in parts.items())})"


def cost_row(name: str, results: list[dict]) -> list[str]:
    numbers = [f"{median(results, 'a_second'):.0f}", f"{median(results, 'p50'):.1f}", f"{median(results, 'p99'):.1f}"]
    numbers += [f"{median(results, value):.0f}" for value in ("settled_a_second", "wal_bytes", "pages")]
    numbers += [cpu_cell(results)]
    return [name, *numbers, *(f"{median(results, value):.0f}" for value in ("released_most", "outbox_at_end"))]


ACCEPTED_HEADS = ["", "accepted/s", "p50 ms", "p99 ms"]
COST_HEADS = ["rows in jobs", "accepted/s", "p50 ms", "p99 ms", "settled/s", "WAL bytes a job", "pages a job", "CPU µs a job", "released, most", "outbox at end"]


async def run(wanted: argparse.Namespace, folder: Path) -> dict:
    for name in DATABASES.values():
        fresh_database(name)
    port = free_port()
    database = at(os.environ["DATABASE_OWNER_URL"], DATABASES["peer"])
    peer_environment = {
        "PEER_DATABASE_URL": urllib.parse.urlsplit(database)._replace(scheme="postgresql+asyncpg").geturl(),
        "PEER_AMQP_URL": os.environ["AMQP_URL"], "PEER_REDIS_URL": os.environ["REDIS_URL"], "PEER_SECRET": PEER_SECRET,
    }
    peer_token = await peer_ready(wanted, peer_environment)
    found: dict = {"ours": [], "peer": [], "alone": [], "beside": [], "half": [], "light": {}, "rows": {}}
    ours = ours_in(folder, DATABASES["ours"])
    await with_children(ours, wanted, folder, peer_environment, port, peer_token, found)
    if wanted.large:
        found["rows"] = await growth.measure(ours_in, folder, measure_ours, wanted, wanted.large)
        cost(found["rows"])
    return found


async def with_children(ours, wanted, folder, peer_environment, port, peer_token, found) -> None:
    peer_url = f"http://127.0.0.1:{port}"
    with ours.api, ours.worker, peer_child(wanted, folder, peer_environment, port) as peer:
        token = ours.token()
        db = await asyncpg.connect(at(os.environ["DATABASE_OWNER_URL"], DATABASES["ours"]))
        # First, on a machine that has been at light load so far: some grow slower under a load that goes on.
        found["light"] = await light.measure(ours, token, PROMPT, wanted.light)
        at_light_load(found["light"])
        warm = argparse.Namespace(**vars(wanted) | {"seconds": 3})
        await measure_ours(ours, token, db, warm)
        await measure_peer(peer, peer_url, peer_token, warm)
        for number in range(wanted.rounds):
            found["ours"].append(await measure_ours(ours, token, db, wanted))
            found["peer"].append(await measure_peer(peer, peer_url, peer_token, wanted))
            print(f"round {number + 1}: {found['ours'][-1]['a_second']:.0f}/s and {found['peer'][-1]['a_second']:.0f}/s", flush=True)
        comparison(found)
        half = int(median(found["ours"], "settled_a_second") / 2)
        for _ in range(wanted.rounds):
            found["half"].append(await measure_ours(ours, token, db, wanted, half))
        table("At half load", ["submitted/s", "p50 ms", "p99 ms", "pickup p50 ms", "pickup p99 ms"],
              [[f"{half}"] + [f"{median(found['half'], name):.1f}" for name in ("p50", "p99", "pickup_p50", "pickup_p99")]])
        # Last, since what it leaves behind for the vacuum would be in the way of the others.
        for _ in range(wanted.rounds):
            found["alone"].append(await measure_ours(ours, token, db, wanted, consumed=False))
            found["beside"].append(await measure_peer(peer, peer_url, peer_token, wanted))
        intake_alone(found)
        await db.close()


def cost(by_rows: dict[int, list[dict]]) -> None:
    rows = [cost_row(f"{rows:,}", results) for rows, results in by_rows.items()]
    table("What a job costs, from submit to settle with a no-op engine", COST_HEADS, rows)
    small, large = by_rows.values()
    costs = {"CPU": lambda one: sum(one["cpu_us"].values()), "of it Postgres": lambda one: one["cpu_us"]["postgres"],
             "WAL": lambda one: one["wal_bytes"], "pages": lambda one: one["pages"]}
    grown = (f"{name} {statistics.median(map(of, large)) / statistics.median(map(of, small)):.2f}" for name, of in costs.items())
    print(f"\nwith the rows a job's costs grow to: {', '.join(grown)} times as much")
    vacuums = " and ".join(f"{median(results, 'vacuum_pages'):.0f}" for results in by_rows.values())
    print(f"a vacuum after a round, which is not counted above, looks at {vacuums} pages", flush=True)


def comparison(found: dict) -> None:
    rows = [accepted_row(name, found[key]) + [cpu_cell(found[key])]
            for name, key in (("Claimcheck, with its worker", "ours"), ("FastAPI, without one", "peer"))]
    table("Accepted submissions", [*ACCEPTED_HEADS, "CPU µs a job"], rows)
    print(f"\n{ratio(found['ours'], found['peer'])}")
    print(f"our p99 is {median(found['ours'], 'p99') / median(found['peer'], 'p50'):.2f} of the peer's p50", flush=True)


def intake_alone(found: dict) -> None:
    """The same work on both sides: to publish what was accepted. Whoever consumes it comes later."""
    rows = [accepted_row(name, found[key]) for name, key in (("Claimcheck", "alone"), ("FastAPI", "beside"))]
    table("Accepted and published while nobody consumes", ACCEPTED_HEADS, rows)
    print(f"\n{ratio(found['alone'], found['beside'])}")
    print(f"what waited then was settled at {median(found['alone'], 'settled_a_second'):.0f} a second", flush=True)


def accepted_row(name: str, results: list[dict]) -> list[str]:
    return [name] + [f"{median(results, value):.1f}" for value in ("a_second", "p50", "p99")]


def ratio(ours: list[dict], peer: list[dict]) -> str:
    rounds = [a["a_second"] / b["a_second"] for a, b in zip(ours, peer)]
    return f"ratio: {statistics.median(rounds):.1f} × (rounds: {', '.join(f'{one:.1f}' for one in rounds)})"


def at_light_load(found: dict[str, list[float]]) -> None:
    rows = [[name] + [light.percentile(found[key], share) for share in (0.5, 0.99)]
            for name, key in (("a job, submit to result", "job"), ("three flushes and a lone confirm", "floor"))]
    engine = found["engine"][0]
    rows.append(["the engine's own steps, on average", engine, engine])
    rows.append(["added", *(ours - least - engine for ours, least in zip(rows[0][1:], rows[1][1:]))])
    table("One job at a time, in alternation with its floor", ["", "p50 ms", "p99 ms"],
          [[row[0], *(f"{value:.1f}" for value in row[1:])] for row in rows])


def main() -> None:
    wanted = options()
    with tempfile.TemporaryDirectory(prefix="claimcheck-bench-") as folder:
        found = asyncio.run(run(wanted, Path(folder)))
    if wanted.json:
        wanted.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
