"""What `tests/benches/engine-gpu` runs: parity, throughput beside transformers, and a table of kernels."""

import argparse
import csv
import datetime
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures" / "parity"
# The first heading of the page that is written by hand.
BY_HAND = "## What is known besides"
PAGE = HERE.parents[1] / "docs" / "benchmarks" / "engine-gpu.md"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", required=True, help="claimcheck-worker, built with the device's feature")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="bf16", choices=["f32", "bf16"])
    parser.add_argument("--batch", default="1,32,256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--shape", default="gpt2")
    parser.add_argument("--peers", default="eager,compiled")
    parser.add_argument("--peer-device", help="where torch computes, if not on --device: cpu tries the script out")
    parser.add_argument("--order", default="fixed", choices=["fixed", "fast"])
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    args.peer_device = args.peer_device or args.device
    args.worker = str(Path(args.worker).resolve())
    return args


def bench(args, spec, device=None, dtype=None):
    return [args.worker, "bench", "--device", device or args.device, "--dtype", dtype or args.dtype, "--order", args.order,
            str(spec)]


def worker(args, spec, device=None, dtype=None, keep=True):
    """One run of our bench: its line of JSON. With `keep`, what it compiled is there for the next."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spec.json")
        path.write_text(json.dumps(spec))
        command = bench(args, path, device, dtype)
        done = subprocess.run(command, capture_output=True, text=True, cwd=args.kernels if keep else None)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def spec_of(model, prompts, new, repeats=1):
    return {"model": str(model), "prompts": prompts, "long_prompt": [], "new": new, "threads": os.cpu_count(),
            "repeats": repeats}


def fixtures(args):
    """The models whose greedy text transformers wrote down: do we write it, on the card and on the processor?"""
    def one(folder):
        expected = json.loads((folder / "expected.json").read_text())
        spec = spec_of(folder, [expected["prompt"], expected["ids"][:1]], len(expected["greedy"]))
        here = worker(args, spec, dtype="f32", keep=False)["tokens"][0]
        cpu = worker(args, spec, device="cpu", dtype="f32", keep=False)["tokens"][0]
        return folder.name, here == expected["greedy"], cpu == expected["greedy"]

    # Side by side, since each compiles kernels of its own for longer than it computes.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, sorted(FIXTURES.iterdir())))


def company(args, model, cfg):
    """Rows of one prompt each, alone and together: equal tokens, whatever the step's company."""
    prompts = draw(cfg, 100, args.prompt, seed=7)
    together = worker(args, spec_of(model, prompts, args.new))["tokens"]
    # One alone, and ten of them.
    some = [prompts[33:34], prompts[40:50]]
    apart = [worker(args, spec_of(model, rows, args.new))["tokens"] for rows in some]
    equal = [tokens == together[prompts.index(row)] for rows, got in zip(some, apart) for row, tokens in zip(rows, got)]
    return sum(equal), len(equal), len(prompts)


def draw(cfg, batch, length, seed=1):
    generator = random.Random(f"{seed} {batch} {length}")
    return [[generator.randrange(cfg["vocab_size"] - 1) for _ in range(length)] for _ in range(batch)]


class Transformers:
    """The same weights by Hugging Face transformers: greedy, so many tokens a row, the cache on. Its tokens stay on the
    device until the last one, which is more than a service could do."""

    def __init__(self, model, dtype, compiled, device):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        self.torch, self.transformers, self.compiled, self.device = torch, transformers, compiled, device
        kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.model = transformers.GPT2LMHeadModel.from_pretrained(model, dtype=kind).eval().to(device)
        self.forwards = {}

    def forward(self, ids, cache, places):
        """The likeliest tokens after `ids`, which stand at `places`."""
        out = self.model(ids, past_key_values=cache, position_ids=places, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def step(self, batch):
        """One forward of a token a row; compiled once for each batch size, with CUDA graphs where there is CUDA."""
        if not self.compiled:
            return self.forward
        if batch not in self.forwards:
            self.forwards[batch] = self.torch.compile(self.forward, mode="reduce-overhead", fullgraph=True)
        return self.forwards[batch]

    def now(self):
        if self.device.startswith("cuda"):
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def run(self, prompts, new):
        """Seconds of the prefill and of the rest, and the tokens."""
        torch = self.torch
        ids = torch.tensor(prompts, device=self.device)
        batch, length = ids.shape
        if self.compiled:
            cache = self.transformers.StaticCache(config=self.model.config, max_cache_len=length + new)
        else:
            cache = self.transformers.DynamicCache(config=self.model.config)
        step, places = self.step(batch), torch.arange(length + new, device=self.device).unsqueeze(0)
        with torch.inference_mode():
            begin = self.now()
            token = self.forward(ids, cache, places[:, :length])
            tokens, middle = [token], self.now()
            for place in range(length, length + new - 1):
                # Copied, since the next replay of a graph writes to the same memory.
                token = step(token.clone(), cache, places[:, place:place + 1].clone()).clone()
                tokens.append(token)
            end = self.now()
        return middle - begin, end - middle, torch.cat(tokens, 1).tolist()

    def measure(self, prompts, new, repeats=2):
        """What `repeats` runs took, and the tokens of the last."""
        self.run(prompts, new)  # The warm-up, with what is compiled.
        self.run(prompts, new)
        runs = [self.run(prompts, new) for _ in range(repeats)]
        return [run[:2] for run in runs], runs[-1][2]


def bandwidth():
    """Bytes a second that the card copies, both ways counted; nothing without torch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        best = max(best, 2 * source.nbytes / (begin.elapsed_time(end) / 1e3))
    return best


def step_bytes(cfg, dtype, batch, context):
    """Bytes that a decode step has to read: all weights once, and every row's keys and values."""
    width, layers, size = cfg["n_embd"], cfg["n_layer"], {"f32": 4, "bf16": 2}[dtype]
    weights = layers * 12 * width * width + cfg["vocab_size"] * width
    return size * (weights + batch * context * layers * 2 * width)


def kernels(args, model, cfg, batches):
    """The kernels of one decode step for each batch size, by Nsight Compute: `[(batch, kernel, grid, calls, microseconds)]`."""
    if not shutil.which("ncu"):
        return None
    rows = []
    for batch in batches:
        with tempfile.TemporaryDirectory() as folder:
            spec, log = Path(folder, "spec.json"), Path(folder, "log.csv")
            spec.write_text(json.dumps(spec_of(model, draw(cfg, batch, args.prompt), 3)))
            # The card's clocks are left as they are.
            command = ["ncu", "--clock-control", "none", "--metrics", "gpu__time_duration.sum", "--csv", "--log-file", str(log),
                       *bench(args, spec)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=args.kernels)
            if done.returncode:
                print(done.stderr[-2000:], file=sys.stderr)
                return None
            lines = [line for line in log.read_text().splitlines() if line.startswith('"')]
        calls = list(csv.DictReader(lines))
        begin = max(at for at, call in enumerate(calls) if call["Kernel Name"].startswith("embed"))
        step = {}
        for call in calls[begin:]:
            # Nanoseconds, or microseconds as another version has it.
            unit = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0}[call["Metric Unit"]]
            time_of = step.setdefault((call["Kernel Name"], call["Grid Size"]), [])
            time_of.append(float(call["Metric Value"].replace(",", "")) * unit)
        rows += [(batch, kernel, grid, len(times), sum(times)) for (kernel, grid), times in step.items()]
    return rows


def first_line(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    except OSError:
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.stdout else "unknown"


def versions(peers):
    """What the peers are."""
    if not peers:
        return []
    try:
        import torch
        import transformers
    except ImportError as error:
        return [f"{error}"]
    return [f"torch {torch.__version__}, transformers {transformers.__version__}, by the host's clock, device synchronized."]


def median(values):
    return statistics.median(values) if values else None


def measure(args, model, cfg, batches, peers, notes, done):
    """`{(engine, batch): {"decode": [...], "prefill": [...]}}`, every engine in turn in every round; `done` is told after each.

    A peer that fails is left out from then on, and the page says why."""
    engines = {"ours": None}
    figures = {}
    for peer in peers:
        try:
            engines[peer] = Transformers(model, args.dtype, peer == "compiled", args.peer_device)
        except Exception as error:  # Whatever it is, our own figures are worth having.
            notes.append(f"transformers, {peer}: {error!r}")
    for turn in range(args.rounds):
        for batch in batches:
            prompts = draw(cfg, batch, args.prompt)
            for name, engine in list(engines.items()):
                print(f"round {turn + 1}, batch {batch}: {name}", file=sys.stderr, flush=True)
                if engine is None:
                    answer = worker(args, spec_of(model, prompts, args.new, repeats=2))
                    runs = [(run["prefill_s"], run["decode_s"]) for run in answer["runs"]]
                    ours, launches = answer["tokens"], answer.get("launches")
                    if launches and not turn:
                        notes.append(f"Batch {batch}: {launches['kernels_per_step']:.0f} kernels and "
                                     f"{launches['readbacks_per_step']:.1f} read-backs a step.")
                else:
                    try:
                        runs, theirs = engine.measure(prompts, args.new)
                    except Exception as error:
                        notes.append(f"transformers, {name}, batch {batch}: {error!r}"[:1000])
                        del engines[name]
                        continue
                    if not turn:
                        same = sum(a == b for a, b in zip(ours, theirs))
                        notes.append(f"Batch {batch}: {same} of {batch} rows as transformers, {name}, writes them.")
                for prefill, decode in runs:
                    row = figures.setdefault((name, batch), {"prefill": [], "decode": []})
                    row["prefill"].append(batch * args.prompt / prefill)
                    row["decode"].append(batch * (args.new - 1) / decode)
            done(figures)
    return figures


def by_hand(page):
    """What stands in the page and was not written by this script."""
    _, heading, text = (page.read_text() if page.exists() else "").partition(BY_HAND)
    return f"\n{heading}{text}" if heading else ""


def page(args, cfg, batches, peers, parity, equal, figures, notes, copied, table):
    name = first_line(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    commit = first_line(["git", "rev-parse", "--short", "HEAD"])
    lines = [
        "# The engine on a graphics card", "",
        f"`tests/benches/engine-gpu` on {datetime.date.today()}, commit {commit}, {args.device}: {name}. GPT-2 in the shape of "
        f"{args.shape} with random weights in {args.dtype}, {args.order} order, {args.prompt} prompt and {args.new} new tokens a row, greedy; medians "
        f"of {args.rounds} rounds of two runs each, every engine in turn.", "",
        "## Parity", "",
        "Greedy text of the fixtures, which transformers wrote down (f32):", "",
        "| model | on the card | on the processor |", "|---|---|---|",
    ]
    say = {True: "equal", False: "**differs**"}
    lines += [f"| {model} | {say[here]} | {say[cpu]} |" for model, here, cpu in parity]
    lines += ["", f"Rows that write the same alone, or ten together, as they do in a batch of {equal[2]}: {equal[0]} of {equal[1]}.", ""]
    lines += ["## Throughput", ""]
    lines += ["| figure | batch | ours | " + "".join(f"transformers, {peer} | ours to it | " for peer in peers)
              + "of the bandwidth bound |", "|---|---|---|" + "---|---|" * len(peers) + "---|"]
    for figure in ["decode", "prefill"]:
        for batch in batches:
            ours = median(figures.get(("ours", batch), {}).get(figure))
            if ours is None:
                continue
            cells = []
            for peer in peers:
                theirs = median(figures.get((peer, batch), {}).get(figure))
                cells += [f"{theirs:,.0f}", f"{ours / theirs:.2f}"] if theirs else ["failed", "–"]
            bound = "–"
            if figure == "decode" and copied:
                steps = copied / step_bytes(cfg, args.dtype, batch, args.prompt + args.new / 2)
                bound = f"{ours / (steps * batch):.0%}"
            lines.append(f"| {figure}, tokens a second | {batch} | {ours:,.0f} | " + "".join(f"{cell} | " for cell in cells) + f"{bound} |")
    lines += [""] + [f"- {note}" for note in notes]
    lines += ["", f"The card copies {copied / 1e12:.2f} TB/s." if copied else "The card's bandwidth was not measured.", "", "## Kernels", ""]
    if table:
        lines += ["One decode step, by Nsight Compute: each kernel is timed by itself, with nothing in the caches.", ""]
        lines += ["| batch | kernel | grid | calls | µs together |", "|---|---|---|---|---|"]
        lines += [f"| {batch} | `{kernel}` | {grid} | {calls} | {time:.1f} |" for batch, kernel, grid, calls, time in table]
    else:
        lines.append("Not measured.")
    args.out.write_text("\n".join(lines) + "\n" + by_hand(args.out))


def main():
    args = arguments()
    batches = [int(batch) for batch in args.batch.split(",")]
    peers = [] if args.peers == "none" else args.peers.split(",")
    with tempfile.TemporaryDirectory() as folder:
        # No figure has compiling in it.
        args.kernels = folder
        Path(folder, "cubecl.toml").write_text(f'[compilation]\ncache = {{ file = "{folder}/kernels" }}\n')
        model = Path(folder, args.shape)
        made = [args.worker, "bench", "--device", "cpu", "--random", args.shape, "--save", str(model), "--batch", "1",
                "--prompt-tokens", "1", "--new-tokens", "1", "--rounds", "1"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        cfg = json.loads((model / "config.json").read_text())
        parity = fixtures(args)
        equal = company(args, model, cfg)
        notes, copied = versions(peers), bandwidth()

        def write(figures, table=None):
            page(args, cfg, batches, peers, parity, equal, figures, notes, copied, table)

        # After every batch size, so that a run that is cut short leaves what it has.
        figures = measure(args, model, cfg, batches, peers, notes, write)
        write(figures, kernels(args, model, cfg, batches))
    print(args.out)


if __name__ == "__main__":
    main()
