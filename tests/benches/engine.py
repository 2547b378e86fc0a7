"""The tables of `tests/benches/engine`, from the JSON that the peers' bench writes."""
import json
import sys

# Ours, the peers of the same precision, and the ratios aimed at for batch 1, 8 and 32.
PRECISIONS = {
    "32 bits": ("f32", ["hf", "ct2", "llamacpp"], [1.05, 1.2, 1.3]),
    "16 bits": ("bf16", ["llamacpp-f16"], [1.0, 1.2, 1.2]),
    "8 bits": ("int8", ["ct2-int8", "llamacpp-q8"], [1.1, 1.2, 1.1]),
}


def main():
    data = json.load(open(sys.argv[1]))
    results = {(row["peer"].removeprefix("claimcheck-"), row["batch"]): row for row in data["results"]}
    batches = sorted({batch for _, batch in results})

    def median(peer, batch, figure):
        row = results.get((peer, batch), {})
        return row[figure]["median"] if row.get(figure) else None

    def table(title, figure, wanted, best=max, only=batches):
        print(f"\n### {title}\n")
        print("| weights | batch | ours | peers | ratio to the best | wanted |")
        print("|---|---|---|---|---|---|")
        for name, (ours, peers, targets) in PRECISIONS.items():
            for place, batch in enumerate(only):
                theirs = {peer: median(peer, batch, figure) for peer in peers}
                theirs = {peer: value for peer, value in theirs.items() if value}
                mine = median(ours, batch, figure)
                target = targets[place] if wanted == "decode" else wanted
                sign = "≥" if best is max else "≤"
                listed = ", ".join(f"{peer} {value:,.{2 if value < 10 else 0}f}" for peer, value in theirs.items())
                ratio = mine / best(theirs.values())
                met = ratio >= target if best is max else ratio <= target
                print(f"| {name} | {batch} | {mine:,.{2 if mine < 10 else 0}f} | {listed} "
                      f"| {ratio:.2f} | {sign} {target} {'' if met else '(missed)'} |")

    def chart():
        """Ratios of decode to the best peer, as a bar each."""
        bars = [(f"{name} @{batch}", median(ours, batch, "decode")
                 / max(filter(None, (median(peer, batch, "decode") for peer in peers))))
                for name, (ours, peers, _) in PRECISIONS.items() for batch in batches]
        labels = ", ".join(f'"{label}"' for label, _ in bars)
        values = ", ".join(f"{value:.2f}" for _, value in bars)
        print("```mermaid\nxychart-beta\n    title \"Decode: ours to the best peer of the precision\"")
        print(f"    x-axis [{labels}]\n    y-axis \"times\" 0 --> {max(value for _, value in bars) + 0.5:.0f}")
        print(f"    bar [{values}]\n```")

    chart()
    table("Decode, tokens a second", "decode", "decode")
    table("Prefill of 512 tokens, tokens a second", "prefill512", 1.0, only=[1])
    table("Prefill of 64 tokens a row, tokens a second", "prefill", 1.0)
    table("End to end, new tokens a second", "e2e", 1.0)
    table("Peak resident memory, MiB", "rss_mib", 1.2, best=min)
    table("Load, seconds", "load_s", 1.2, best=min, only=[1])
    print("\nThe machine, before each round and at the end:")
    for limit in data["limits"]:
        print(f"- reads {limit['read_gb_s']:.1f} GB/s, multiplies {limit['sgemm_gflop_s']:.0f} GFLOP/s")
    worst = max((row["others"]["max"] for row in data["results"]), default=0)
    print(f"- at most {worst:.2f} cores were busy with something else during a measurement")


if __name__ == "__main__":
    main()
