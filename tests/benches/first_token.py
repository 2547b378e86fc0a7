"""From a start to the first token of a prompt of 64, for `tests/benches/engine`, with files that were read just before.

Ours is the whole process, from its start to its end; llama.cpp counts from where its libraries are imported. Both in alternation.
"""
import os
import statistics
import subprocess
import sys
import time

ROUNDS = 7
PROMPT = 64
PAIRS = {"32 bits": ("f32", "llamacpp"), "16 bits": ("bf16", "llamacpp-f16"), "8 bits": ("int8", "llamacpp-q8")}
PEER = """
import sys, time
folder, name, model, prompt, threads = sys.argv[1:]
sys.path.insert(0, folder)
import peers
kind, options = peers.PEERS[name]
prompt = [[number * 97 % 50_000 for number in range(int(prompt))]]
peer = kind(model, 1, len(prompt[0]) + 1, int(threads), **options)
peer.run(prompt, 1)
print(time.perf_counter() - peer.imported)
"""


def ours(worker: str, model: str, dtype: str) -> float:
    began = time.perf_counter()
    # A token a byte.
    command = [worker, "generate", "--model", model, "--dtype", dtype, "--prompt", "x" * PROMPT, "--max-tokens", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def theirs(folder: str, model: str, name: str) -> float:
    command = [sys.executable, "-c", PEER, folder, name, model, str(PROMPT), str(os.cpu_count())]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def main() -> None:
    folder, worker, model = sys.argv[1:]
    print("\n### Start to first token, seconds\n")
    print("| weights | ours | llama.cpp | ratio | wanted |")
    print("|---|---|---|---|---|")
    for precision, (dtype, name) in PAIRS.items():
        theirs(folder, model, name)  # its own kind of file is made once
        rounds = [(ours(worker, model, dtype), theirs(folder, model, name)) for _ in range(ROUNDS)]
        mine, peer = (statistics.median(side) for side in zip(*rounds))
        print(f"| {precision} | {mine:.2f} | {peer:.2f} | {mine / peer:.2f} | ≤ 1.2 {'' if mine <= 1.2 * peer else '(missed)'} |")


if __name__ == "__main__":
    main()
