"""The measurement of `tests/benches/streams`: memory and events of one API process with many open streams."""
import argparse
import asyncio
import json
import tempfile
import time
import urllib.parse
from pathlib import Path

from installation import Installation, fresh_database, send

DATABASE = "bench_streams"
TINY = Path(__file__).resolve().parents[2] / "worker/models/tiny"
AT_ONCE = 64


def resident(pid: int) -> float:
    """Resident memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


class Stream:
    """One follower; counts what comes."""

    def __init__(self):
        self.bytes, self.last, self.ended = 0, 0.0, False

    async def open(self, url: str, token: str, job: str, opened: asyncio.Semaphore) -> None:
        place = urllib.parse.urlsplit(url)
        async with opened:
            reader, self.writer = await asyncio.open_connection(place.hostname, place.port)
            head = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\n\r\n"
            self.writer.write(head.encode())
            status = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in status.split(b"\r\n")[0], status
            await self.read(reader)
        self.task = asyncio.create_task(self.follow(reader))

    async def read(self, reader) -> bytes:
        data = await reader.read(65536)
        self.bytes, self.last = self.bytes + len(data), time.monotonic()
        return data

    async def follow(self, reader) -> None:
        while data := await self.read(reader):
            self.ended = self.ended or b"event: end" in data


def submit(url: str, token: str, number: int) -> list[str]:
    body = json.dumps({"prompt": "Once", "max_tokens": 4, "scheduled_at": int(time.time()) + 86400}).encode()
    return [send(f"{url}/v1/jobs", body, "application/json", token)["id"] for _ in range(number)]


async def measure(service: Installation, streams: int, seconds: int) -> None:
    token, url = service.token(), service.url
    api = service.api.process.pid
    loop = asyncio.get_running_loop()
    share = -(-streams // 16)
    jobs = await asyncio.gather(*[loop.run_in_executor(None, submit, url, token, share) for _ in range(16)])
    jobs = [job for part in jobs for job in part][:streams]
    before = resident(api)
    began, opened = time.monotonic(), asyncio.Semaphore(AT_ONCE)
    followers = [Stream() for _ in jobs]
    await asyncio.gather(*[one.open(url, token, job, opened) for one, job in zip(followers, jobs)])
    opening = time.monotonic() - began
    peak, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        peak = max(peak, resident(api))
        await asyncio.sleep(0.5)
    silent = max(time.monotonic() - one.last for one in followers)
    # Everybody hears of the end.
    cancelled = time.monotonic()
    after = None
    while True:
        body = json.dumps({} if after is None else {"after": after}).encode()
        done = await loop.run_in_executor(None, send, f"{url}/v1/jobs/cancel", body, "application/json", token)
        after = done["last_id"]
        if not done["has_more"]:
            break
    while not all(one.ended for one in followers) and time.monotonic() - cancelled < 120:
        await asyncio.sleep(0.1)
        peak = max(peak, resident(api))
    ended = sum(one.ended for one in followers)
    print(f"| streams | {len(followers)} |\n|---|---|")
    print(f"| opened in | {opening:.1f} s |")
    print(f"| memory before / at most | {before:.0f} MB / {peak:.0f} MB |")
    print(f"| a stream | {(peak - before) * 1000 / len(followers):.1f} kB |")
    print(f"| longest silence (a comment is due after 15 s) | {silent:.1f} s |")
    print(f"| all jobs cancelled and all streams ended | {ended} within {time.monotonic() - cancelled:.1f} s |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=40, help="for which the open streams are watched")
    options = parser.parse_args()
    fresh_database(DATABASE)
    with tempfile.TemporaryDirectory() as folder:
        service = Installation(Path(folder), DATABASE, TINY)
        with service.api, service.worker:
            asyncio.run(measure(service, options.streams, options.seconds))


main()
