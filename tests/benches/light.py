"""One job at a time: what the service adds at light load, beside what the servers under it take by themselves."""
import http.client
import json
import os
import time
import urllib.parse

import aio_pika
import asyncpg

from installation import Installation

QUEUE = "bench-intake-floor"
# How long the engine's steps took so far, all together.
ENGINE = "claimcheck_engine_step_duration_seconds_sum"


class Floor:
    """The least that a durable job costs here: three transactions that are flushed (submit, claim, settle) and one message that
    a quorum queue confirms, one after the other."""

    async def __aenter__(self):
        self.db = await asyncpg.connect(os.environ["DATABASE_OWNER_URL"])
        await self.db.execute("CREATE TABLE IF NOT EXISTS bench_floor (n int)")
        self.broker = await aio_pika.connect(os.environ["AMQP_URL"])
        self.channel = await self.broker.channel(publisher_confirms=True)
        await self.channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        return self

    async def measure(self) -> float:
        began = time.perf_counter()
        await self.db.execute("INSERT INTO bench_floor VALUES (1)")
        message = aio_pika.Message(b"1", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self.channel.default_exchange.publish(message, routing_key=QUEUE)
        await self.db.execute("INSERT INTO bench_floor VALUES (2)")
        await self.db.execute("INSERT INTO bench_floor VALUES (3)")
        return (time.perf_counter() - began) * 1e3

    async def __aexit__(self, *_):
        await self.channel.queue_delete(QUEUE)
        await self.broker.close()
        await self.db.execute("DROP TABLE bench_floor")
        await self.db.close()


class Client:
    """A caller with one connection, who submits a job and waits for its result."""

    def __init__(self, url: str, token: str, job: dict):
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
        self.headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        self.job = json.dumps(job)

    def send(self, method: str, path: str, body: str | None = None) -> dict:
        self.connection.request(method, path, body, self.headers)
        answer = json.load(self.connection.getresponse())
        if "error" in answer and answer["error"]:
            raise SystemExit(f"{method} {path}: {answer['error']}")
        return answer

    def measure(self) -> float:
        began = time.perf_counter()
        job = self.send("POST", "/v1/jobs", self.job)
        job = self.send("GET", f"/v1/jobs/{job['id']}?wait=60")
        took = (time.perf_counter() - began) * 1e3
        if job["status"] != "completed":
            raise SystemExit(f"the job is {job['status']}")
        return took


async def measure(ours: Installation, token: str, job: dict, jobs: int) -> dict[str, list[float]]:
    """Milliseconds of each job, from the submit to the result in hand, and of the floor, in alternation; and of the engine's
    own steps, a job's share of all."""
    client, found = Client(ours.url, token, job), {"job": [], "floor": []}
    async with Floor() as floor:
        for _ in range(50):
            await floor.measure()
            client.measure()
        before = ours.counts()[ENGINE]
        for _ in range(jobs):
            found["floor"].append(await floor.measure())
            found["job"].append(client.measure())
    found["engine"] = [(ours.counts()[ENGINE] - before) / jobs * 1e3]
    return found


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
