"""The measurements of `tests/benches/batches`, which prepares servers and binaries and then runs this."""
import argparse
import http.client
import json
import os
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import noop_model
from installation import Installation, at, send
from processes import cpu_seconds

DATABASE = "bench_batches"
BOUNDARY = "bench-boundary"
CALLERS = 32
LIMIT = 1800
ENDED = ("completed", "failed", "expired", "cancelled")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--single", type=int, default=5_000, help="single jobs that the lines are compared with")
    parser.add_argument("--large-mib", type=int, default=195, help="size of the large file; 0 leaves it out")
    return parser.parse_args()


def sql(statement: str, database: str | None = None) -> str:
    url = os.environ["DATABASE_OWNER_URL"]
    command = ["psql", "-qAt", at(url, database) if database else url, "-c", statement]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def line(number: int, length: int) -> bytes:
    prompt = (f"Story {number}: " + "once upon a time there was a queue, " * (length // 36 + 1))[:length]
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
    text = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(text).encode() + b"\n"


class Memory:
    """The greatest resident size of each process while it watches, in MiB."""

    def __init__(self, children):
        self.pids = {child.name: child.process.pid for child in children}
        self.most: dict[str, float] = {}

    def now(self) -> dict[str, float]:
        found = {}
        for name, pid in self.pids.items():
            for row in Path(f"/proc/{pid}/status").read_text().splitlines():
                if row.startswith("VmRSS:"):
                    found[name] = int(row.split()[1]) / 1024
        return found

    def __enter__(self):
        self.before, self.stop = self.now(), threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.stop.wait(0.1):
            for name, size in self.now().items():
                self.most[name] = max(self.most.get(name, 0.0), size)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def growth(self, name: str) -> str:
        return f"{self.before[name]:.0f} → {self.most[name]:.0f} (+{self.most[name] - self.before[name]:.0f})"


class Caller:
    def __init__(self, installation: Installation):
        self.url, self.token = installation.url, installation.token()

    def get(self, path: str) -> dict:
        request = urllib.request.Request(self.url + path, headers={"authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def lines_of(self, file: str | None) -> int:
        if file is None:
            return 0
        request = urllib.request.Request(f"{self.url}/v1/files/{file}/content", headers={"authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: answer.read(1 << 20), b""))

    def upload(self, path: Path) -> str:
        head = (f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{BOUNDARY}\r\n'
                f'content-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n').encode()
        tail = f"\r\n--{BOUNDARY}--\r\n".encode()
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=600)
        connection.putrequest("POST", "/v1/files")
        connection.putheader("authorization", f"Bearer {self.token}")
        connection.putheader("content-type", f"multipart/form-data; boundary={BOUNDARY}")
        connection.putheader("content-length", str(len(head) + path.stat().st_size + len(tail)))
        connection.endheaders(head)
        with path.open("rb") as source:
            for chunk in iter(lambda: source.read(1 << 20), b""):
                connection.send(chunk)
        connection.send(tail)
        answer = connection.getresponse()
        said = json.load(answer)
        if answer.status != 200:
            raise SystemExit(f"the upload was refused: {said}")
        return said["id"]

    def batch(self, file: str) -> str:
        body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        return send(f"{self.url}/v1/batches", json.dumps(body).encode(), "application/json", self.token)["id"]

    def until(self, batch: str, holds) -> dict:
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:
            found = self.get(f"/v1/batches/{batch}")
            if holds(found):
                return found
            time.sleep(0.1)
        raise SystemExit(f"not in time: {found}")

    def single(self, number: int) -> None:
        """Submits single jobs over one connection each caller, as fast as they are accepted."""
        def submit(numbers):
            connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=60)
            headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
            for each in numbers:
                body = json.loads(line(each, 200))["body"]
                connection.request("POST", "/v1/jobs", json.dumps(body), headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 202, answer.status
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(submit, [range(start, number, CALLERS) for start in range(CALLERS)]))
        while int(sql("SELECT count(*) FROM jobs WHERE finished_at IS NULL", DATABASE)):
            time.sleep(0.1)


def cpu(installation: Installation, work) -> tuple[float, dict[str, float]]:
    """Seconds that work takes, and CPU seconds of each process."""
    data = os.environ["CLAIMCHECK_BENCH_DATA"]
    before, began = cpu_seconds(installation.children, data), time.monotonic()
    work()
    seconds, after = time.monotonic() - began, cpu_seconds(installation.children, data)
    return seconds, {name: after[name] - before.get(name, 0.0) for name in sorted(after)}


def cell(seconds: dict[str, float], items: int) -> str:
    whole = sum(seconds.values()) / items * 1e6
    return f"{whole:.0f} ({', '.join(f'{name} {value / items * 1e6:.0f}' for name, value in seconds.items())})"


def measure(caller: Caller, installation: Installation, path: Path, lines: int) -> dict:
    """One batch from the upload to its files."""
    found: dict = {}

    def work():
        began = time.time()
        file = caller.upload(path)
        found["upload"] = time.time() - began
        batch = caller.batch(file)
        found["batch"] = caller.until(batch, lambda batch: batch["status"] in ENDED)
        first = sql("SELECT extract(epoch FROM min(started_at)) FROM jobs WHERE class = 'batch'", DATABASE)
        found["first"] = float(first) - began if first else None

    with Memory(installation.children) as memory:
        found["seconds"], found["cpu"] = cpu(installation, work)
        batch = found["batch"]
        found["lines"] = caller.lines_of(batch["output_file_id"]), caller.lines_of(batch["error_file_id"])
    found["memory"] = memory
    if sum(found["lines"]) != lines:
        raise SystemExit(f"{found['lines']} of {lines} lines are in the files")
    return found


def run(wanted: argparse.Namespace, folder: Path) -> None:
    for statement in (f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", f"CREATE DATABASE {DATABASE}"):
        sql(statement)
    noop_model.write(folder / "noop")
    installation = Installation(folder, DATABASE, folder / "noop", CLAIMCHECK_FILES=str(folder / "files"),
                                CLAIMCHECK_SLOTS="256", CLAIMCHECK_RELEASE_WINDOW="2048")
    with installation.api, installation.worker:
        caller = Caller(installation)
        caller.single(2000)
        seconds, single = cpu(installation, lambda: caller.single(wanted.single))
        print(f"\n{wanted.single} single jobs: {wanted.single / seconds:.0f}/s, CPU µs a job: {cell(single, wanted.single)}", flush=True)
        path = folder / "in.jsonl"
        path.write_bytes(b"".join(line(number, 40 + number % 161) for number in range(wanted.lines)))
        batch = measure(caller, installation, path, wanted.lines)
        ratio = sum(batch["cpu"].values()) / wanted.lines / (sum(single.values()) / wanted.single)
        print(f"\n{wanted.lines} lines, {path.stat().st_size / 1e6:.1f} MB: {batch['lines'][0]} in the output, {batch['lines'][1]} errors, "
              f"{batch['seconds']:.1f} s ({wanted.lines / batch['seconds']:.0f}/s)")
        print(f"upload {batch['upload']:.2f} s, first line runs {batch['first']:.2f} s after the upload began")
        print(f"CPU µs a line: {cell(batch['cpu'], wanted.lines)}; {ratio:.2f} × a single job's")
        print("memory, MiB: " + ", ".join(f"{name} {batch['memory'].growth(name)}" for name in ("api", "worker")), flush=True)
        if wanted.large_mib:
            lines = 50_000
            with path.open("wb") as out:
                # Longer than the model's context: each line is refused when it is taken up, and stands in the error file.
                for number in range(lines):
                    out.write(line(number, wanted.large_mib * (1 << 20) // lines - 160))
            large = measure(caller, installation, path, lines)
            print(f"\n{lines} lines, {path.stat().st_size / 1e6:.1f} MB, all beyond the context: {large['lines'][1]} errors, "
                  f"upload {large['upload']:.1f} s, all {large['seconds']:.1f} s")
            print("memory, MiB: " + ", ".join(f"{name} {large['memory'].growth(name)}" for name in ("api", "worker")), flush=True)


def main() -> None:
    wanted = options()
    with tempfile.TemporaryDirectory(prefix="claimcheck-bench-") as folder:
        run(wanted, Path(folder))


if __name__ == "__main__":
    main()
