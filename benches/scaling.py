#!/usr/bin/env python3
"""How time and memory of a training step grow with tokens, threads and ranks.

    benches/scaling.py --json scaling.json --plot scaling.png --docs      hours: the longest has 131072 tokens
    benches/scaling.py --tokens 2048 8192 --json scaling.json             some of it; what the file has already stays
    benches/scaling.py --tokens 2048 --rounds 9 --json scaling.json       the quickest of nine turns of each setting
    benches/scaling.py --report --json scaling.json --docs                no measurement: the table of what the file has
    benches/scaling.py --quick                                            tiny shapes: does it run?

Two blocks of 384 in bf16, each length on one rank with one thread, one rank with two threads and two ranks of one
thread. With --rounds the settings take turns, and the quickest run of each is kept: other guests of a host, which a
virtual machine cannot see, only add time.
The plot needs matplotlib, which the Python of peers/setup.sh has.
"""
import argparse
import itertools
import json
import math
import pathlib

import compare

LAYERS, HEADS, HEAD_DIM = 2, 6, 64
SETTINGS = {"1 rank, 1 thread": (1, 1), "1 rank, 2 threads": (1, 2), "2 ranks, 1 thread each": (2, 1)}
LONG = 100_000  # tokens from which the first step is not warmed up: it would take as long again and change nothing


def measure(tokens, ranks, threads, quick):
    side = 16 if quick else 64
    per_frame = (side // 2) ** 2
    shape = dict(frames=tokens // per_frame, height=side, width=side, layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM)
    shape |= dict(dtype="bf16", ranks=ranks, threads=threads, steps=3 if tokens <= 8192 else 1)
    shape |= dict(warmup=1 if tokens < LONG else 0)
    flags = [text for k, v in shape.items() for text in ("--" + k.replace("_", "-"), str(v))]
    result = compare.run([str(compare.OURS), "bench", "step", "--json", *flags], None)
    if result["tokens"] != tokens:
        compare.fail(f"--tokens {tokens}: not a multiple of the {per_frame} of a frame")
    return result


def table(points):
    lines = ["| tokens | on | rounds | a step | tokens/s | in attention | sums and AdamW | all else | memory |"]
    lines.append("|" + "---|" * 9)
    for p in points:
        whole, rest = p["step_s"], p["step_s"] - p["attention_s"] - p["update_s"]
        share = lambda seconds: f"{seconds:.3g} s ({100 * seconds / whole:.0f}%)"
        lines.append(f"| {p['tokens']} | {p['on']} | {p.get('rounds', 1)} | {whole:.3g} s | {p['tokens_per_s']:.0f} "
                     f"| {share(p['attention_s'])} | {share(p['update_s'])} | {share(rest)} "
                     f"| {p['peak_rss_gib']:.2f} GiB |")
    return "\n".join(lines)


def plot(points, path):
    try:
        import matplotlib
    except ImportError:
        compare.fail("--plot: this Python has no matplotlib; use the one of peers/setup.sh (make bench-peers-setup)")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (time, memory) = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    for on, marker in zip(SETTINGS, "os^"):
        mine = [p for p in points if p["on"] == on]
        tokens = [p["tokens"] for p in mine]
        (line,) = time.loglog(tokens, [p["step_s"] for p in mine], marker=marker, label=on)
        time.loglog(tokens, [p["attention_s"] for p in mine], ":", color=line.get_color())
        memory.loglog(tokens, [p["peak_rss_gib"] for p in mine], marker=marker, label=on)
    time.loglog([], [], ":", color="gray", label="attention alone")
    for axes, name in ((time, "seconds a step"), (memory, "GiB at most")):
        ticks = sorted({p["tokens"] for p in points})
        axes.set(xlabel="tokens", ylabel=name)
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    held = [math.log2(p["peak_rss_gib"]) for p in points]
    ticks = [2.0**k for k in range(math.floor(min(held)), math.ceil(max(held)) + 1)]
    memory.set_yticks(ticks, [f"{t:g}" for t in ticks])
    figure.suptitle(f"A training step: {LAYERS} blocks of {HEADS * HEAD_DIM}, bf16")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 32768, 131072], metavar="N",
                        help="lengths of the sequence (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="turns of each setting (%(default)s)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep the results here")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE.png", help="draw them")
    parser.add_argument("--report", action="store_true", help="measure nothing: the table of what --json has")
    parser.add_argument("--docs", action="store_true", help="rewrite the table of docs/performance.md")
    parser.add_argument("--quick", action="store_true", help="128 and 256 tokens")
    a = parser.parse_args()
    if a.quick and a.docs:
        compare.fail("--docs: what --quick measures does not go into the documentation")
    if a.rounds < 1:
        compare.fail("--rounds must be at least 1")
    if a.report and not (a.json and a.json.exists()):
        compare.fail("--report: name the file of results with --json")
    if not compare.OURS.exists():
        compare.fail(f"no {compare.OURS}: make build")
    points = {}
    if a.json and a.json.exists():
        points = {(p["tokens"], p["on"]): p for p in json.loads(a.json.read_text())}
    if not a.report:
        compare.warn_if_busy()
    for tokens in [] if a.report else [128, 256] if a.quick else a.tokens:
        for turn, on in itertools.product(range(a.rounds), SETTINGS):
            result = measure(tokens, *SETTINGS[on], a.quick) | dict(on=on) | compare.origin()
            print(f"{tokens} tokens, {on}: {result['step_s']:.4g} s", file=compare.sys.stderr, flush=True)
            if turn > 0:
                result = min(points[tokens, on], result, key=lambda p: p["step_s"])
            points[tokens, on] = result | dict(rounds=turn + 1)
            if a.json:
                a.json.write_text(json.dumps(list(points.values()), indent=1) + "\n")
    ordered = sorted(points.values(), key=lambda p: (p["tokens"], list(SETTINGS).index(p["on"])))
    several = lambda key: ", ".join(sorted({str(p[key]) for p in ordered}))
    text = table(ordered) + f"\n\n{several('cpu')}; {several('date')}; commit {several('commit')}."
    print(text)
    if a.plot:
        plot(ordered, a.plot)
    if a.docs:
        compare.rewrite("scaling", text)


if __name__ == "__main__":
    main()
