"""The measurements of `tests/benches/service`, which prepares servers, binaries and weights and then runs this."""
import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from installation import Installation, fresh_database, send

DATABASE = "bench_service"
SLOTS, PROMPT, NEW = 32, 64, 64
TOKENS = "claimcheck_engine_tokens_generated_total"
STEPS = "claimcheck_engine_step_duration_seconds_sum"
SETTLED = "claimcheck_jobs_settled_total"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--jobs", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def without_the_service(wanted: argparse.Namespace) -> tuple[float, float]:
    """New tokens a second by themselves, prefill and decode together: of the engine at temperature 1, three requests for each
    slot, and of the model, all rows in step and none drawn."""
    command = [Path(os.environ["CLAIMCHECK_BIN_DIR"]) / "claimcheck-worker", "bench", "--model", str(wanted.model)]
    command += ["--dtype", wanted.dtype, "--batch", str(SLOTS), "--prompt-tokens", str(PROMPT), "--new-tokens", str(NEW)]
    said = subprocess.run([*command, "--rounds", "3", "--json"], check=True, stdout=subprocess.PIPE).stdout
    figures = json.loads(said)["batches"][0]
    prefill, decode = figures["prefill_tokens_per_second"], figures["decode_tokens_per_second"]
    model = SLOTS * NEW / (SLOTS * PROMPT / prefill + SLOTS * NEW / decode)
    return figures["engine"]["tokens_per_second"], model


def submit(ours: Installation, token: str, jobs: int) -> None:
    draw = random.Random(1)
    bodies = [
        {"prompt": [draw.randrange(50_000) for _ in range(PROMPT)], "max_tokens": NEW, "temperature": 1, "seed": number}
        for number in range(jobs)
    ]
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(
            lambda body: send(f"{ours.url}/v1/jobs", json.dumps(body).encode(), "application/json", token), bodies
        ):
            pass


def await_settled(ours: Installation, jobs: float) -> tuple[float, dict[str, float]]:
    """When so many jobs had settled, and the counters then."""
    while (counts := ours.counts()).get(SETTLED, 0.0) < jobs:
        time.sleep(0.05)
    return time.monotonic(), counts


def through_the_service(ours: Installation, token: str, jobs: int) -> dict[str, float]:
    """Tokens a second while all slots are taken and more jobs wait."""
    before = ours.counts().get(SETTLED, 0.0)
    submit(ours, token, jobs)
    began, first = await_settled(ours, before + SLOTS)
    ended, last = await_settled(ours, before + jobs - 2 * SLOTS)
    await_settled(ours, before + jobs)
    took = ended - began
    return {"tokens": (last[TOKENS] - first[TOKENS]) / took, "steps": (last[STEPS] - first[STEPS]) / took}


def main() -> None:
    wanted = options()
    fresh_database(DATABASE)
    with tempfile.TemporaryDirectory(prefix="claimcheck-bench-") as folder:
        ours = Installation(Path(folder), DATABASE, wanted.model, CLAIMCHECK_SLOTS=str(SLOTS), CLAIMCHECK_DTYPE=wanted.dtype)
        with ours.api, ours.worker:
            token, ratios = ours.token(), []
            through_the_service(ours, token, 4 * SLOTS)
            print("| round | model | engine | through the service | to the engine's | to the model's | time within steps |")
            print("|---|---|---|---|---|---|---|")
            for number in range(1, wanted.rounds + 1):
                (engine, model), service = without_the_service(wanted), through_the_service(ours, token, wanted.jobs)
                tokens = service["tokens"]
                ratios.append(tokens / engine)
                print(f"| {number} | {model:,.0f} | {engine:,.0f} | {tokens:,.0f} | {ratios[-1]:.2f} | {tokens / model:.2f} "
                      f"| {service['steps']:.0%} |", flush=True)
            print(f"\nmedian of the ratios to the engine's tokens a second: {statistics.median(ratios):.2f} (wanted: 0.92)")


if __name__ == "__main__":
    main()
