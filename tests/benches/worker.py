"""Idle and start of a worker, for `tests/benches/worker`, which prepares servers, binaries and weights and then runs this."""
import argparse
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from installation import Installation, free_port, fresh_database
from processes import cpu_seconds

DATABASE = "bench_worker"
IDLE_SECONDS = 60
STARTS = 5


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="f32")
    return parser.parse_args()


def idle_share(ours: Installation) -> float:
    """Of one core, while there is nothing to do."""
    time.sleep(5)
    before, began = cpu_seconds([ours.worker], ours.folder)["worker"], time.monotonic()
    time.sleep(IDLE_SECONDS)
    return (cpu_seconds([ours.worker], ours.folder)["worker"] - before) / (time.monotonic() - began)


def seconds_to_ready(ours: Installation) -> float:
    """From the start of one more worker to its first yes."""
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | ours.environment | {"CLAIMCHECK_WORKER_HTTP_ADDR": address}
    began = time.monotonic()
    process = subprocess.Popen(
        [ours.bin / "claimcheck-worker", "run", "--role", "generate"], cwd=ours.folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://{address}/readyz", timeout=1)
                return time.monotonic() - began
            except OSError:
                time.sleep(0.005)
        raise SystemExit(f"the worker ended with {process.returncode}")
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    wanted = options()
    fresh_database(DATABASE)
    with tempfile.TemporaryDirectory(prefix="claimcheck-bench-") as folder:
        ours = Installation(Path(folder), DATABASE, wanted.model, CLAIMCHECK_DTYPE=wanted.dtype)
        with ours.api, ours.worker:
            print(f"idle worker: {idle_share(ours):.2%} of a core (wanted: < 1 %)", flush=True)
            ready = statistics.median(seconds_to_ready(ours) for _ in range(STARTS))
            print(f"start to ready with warm files: {ready:.2f} s, median of {STARTS} (wanted: ≤ 1.5 s)")


if __name__ == "__main__":
    main()
