#!/usr/bin/env python3
"""What each device buys: the longest sequence that a training step fits into a fixed memory, as Markdown tables.

    benches/memory.py                      all rows (half an hour, most of it PyTorch's)
    benches/memory.py --tables 64 --docs   one table, and into docs/memory.md

Each row adds one device to the one above. The first three are PyTorch's (diffusers' Wan, benches/peers/wan_step.py),
whose resident memory is measured at three lengths: the longest sequence is where the parabola through them meets the
budget. The others are ours: `longreel plan` finds the longest clip, and `longreel train --rehearse` measures a step of
it. Rehearsals of more than --most TFLOP in linear layers are left out.

What GPUs would hold of Wan's networks, benches/gpus.py says.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import compare

GIB = 1 << 30
FILM = compare.ROOT / "datasets/film"

# blocks, heads, head_dim; the lengths, in frames of 64 tokens, at which PyTorch's memory is measured; the side of our
# frames
NETWORKS = [(12, 6, 64, (8, 16, 24), 128), (2, 2, 32, (16, 48, 80), 256)]
PEERS = [
    ("materialised attention, activations kept", ["--math", "--no-checkpointing"]),
    ("+ flash attention", ["--no-checkpointing"]),
    ("+ blocks checkpointed", []),
]
OURS = [
    ("+ tiles (longreel from here on)", 1, []),
    ("+ stash on disk", 1, ["stash.where=disk"]),
    *((f"+ {ranks} ranks", ranks, ["stash.where=disk", "parallel.zero=3"]) for ranks in (2, 4, 8)),
]

CONFIG = """
[run]
out = "{folder}/run"
[data]
path = "{film}"
frames = {frames}
height = {height}
width = {width}
prefetch = 1
[model]
patch_size = {patch}
num_attention_heads = {heads}
attention_head_dim = {head_dim}
num_layers = {layers}
ffn_dim = {ffn}
[train]
steps = 1
dtype = "{dtype}"
ema = 0.0
[stash]
folder = "{scratch}"
"""

RATES = ["--tflops", "1", "--bandwidth", "10"]  # no time is asked for


def longreel(*words):
    return subprocess.run([compare.OURS, *map(str, words)], capture_output=True, text=True)


def write_config(folder, **values):
    path = pathlib.Path(folder) / "c.toml"
    path.write_text(CONFIG.format(folder=folder, film=FILM, **values))
    return path


def plan(config, *words):
    run = longreel("plan", config, "--json", *RATES, *words)
    if run.returncode:
        return None, run.stderr.strip()
    return json.loads(run.stdout), None


def peer_bytes(network, flags, frames, args):
    """Resident bytes of PyTorch's step on `frames` of 64 tokens."""
    layers, heads, head_dim, *_ = network
    shape = dict(
        frames=frames, height=16, width=16, layers=layers, heads=heads, head_dim=head_dim, steps=1, dtype=args.dtype
    )
    words = [word for key, value in shape.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    env = dict(os.environ)
    if compare.tcmalloc():
        env["LD_PRELOAD"] = compare.tcmalloc()
    command = [str(args.peers / "bin/python"), str(compare.ROOT / "benches/peers/wan_step.py"), *words, *flags]
    return compare.run(command, env)["peak_rss_gib"] * GIB


def peer_row(network, flags, args):
    """The longest sequence, bytes a token there, and how that is known."""
    lengths = [64 * frames for frames in network[3]]
    bytes_at = [peer_bytes(network, flags, frames, args) for frames in network[3]]
    # Newton's form of the parabola: b0 + s1 (n - n0) + s2 (n - n0) (n - n1)
    (n0, n1, n2), (b0, b1, b2) = lengths, bytes_at
    s1 = (b1 - b0) / (n1 - n0)
    s2 = max(0.0, ((b2 - b1) / (n2 - n1) - s1) / (n2 - n0))
    at = lambda n: b0 + s1 * (n - n0) + s2 * (n - n0) * (n - n1)
    fits, beyond = 0, 1 << 30
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if at(middle) <= args.budget else (fits, middle)
    slope = s1 + s2 * (2 * fits - n0 - n1)
    return fits, slope, "reckoned from " + ", ".join(f"{n}: {b / GIB:.2f} GiB" for n, b in zip(lengths, bytes_at))


def our_row(network, ranks, settings, args):
    layers, heads, head_dim, _, side = network
    shape = dict(
        height=side, width=side, patch=[1, 4, 4], layers=layers, heads=heads, head_dim=head_dim, dtype=args.dtype
    )
    sets = [word for setting in [f"parallel.ranks={ranks}", *settings] for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(folder, frames=1, ffn=4 * heads * head_dim, scratch=args.scratch, **shape)
        found, error = plan(config, "--memory", str(args.budget), *sets)
        if error:
            sys.exit(f"memory.py: {error}")
        tokens = found["longest_tokens"]
        at = lambda frames: plan(config, *sets, "--set", f"data.frames={frames}")[0]
        frames = tokens // (side // 4) ** 2
        whole, half = at(frames), at(max(1, frames // 2))
        slope = (whole["per_rank"] - half["per_rank"]) * ranks / (whole["tokens"] - half["tokens"])
        if whole["flop"]["linear"] > args.most * 1e12:
            return tokens, slope, "planned"
        run = longreel("train", config, "--rehearse", *sets, "--set", f"data.frames={frames}")
    peak = re.search(r"peak predicted [\d.]+ GiB, measured ([\d.]+) GiB", run.stdout)
    if run.returncode or not peak:
        sys.exit(f"memory.py: {tokens} tokens, {settings}: {run.stderr}")
    return tokens, slope, f"rehearsed: {float(peak[1]) / ranks:.2f} GiB a rank"


def ladder(network, args):
    layers, heads, head_dim, *_ = network
    lines = [f"{layers} blocks x {heads * head_dim}, {args.dtype}, {args.budget / GIB:g} GiB a rank", ""]
    lines += ["| | tokens | times the row above | bytes a token | how known |", "|---|---:|---:|---:|---|"]
    before = None
    todo = [(name, lambda flags=flags: peer_row(network, flags, args)) for name, flags in PEERS]
    todo += [(name, lambda r=ranks, s=settings: our_row(network, r, s, args)) for name, ranks, settings in OURS]
    for name, measure in todo:
        tokens, slope, how = measure()
        times = f"{tokens / before:.1f}" if before else ""
        lines.append(f"| {name} | {tokens:,} | {times} | {slope:,.0f} | {how} |")
        print(lines[-1], file=sys.stderr, flush=True)
        before = tokens
    return "\n".join(lines)


def main():
    tables = {f"ladder-{n[1] * n[2]}": lambda args, n=n: ladder(n, args) for n in NETWORKS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="", metavar="REGEX", help=f"only some of {', '.join(tables)}")
    parser.add_argument("--budget", type=float, default=2, metavar="GIB", help="memory of each rank (%(default)s)")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16", help="of the first tables (%(default)s)")
    parser.add_argument(
        "--most", type=float, default=40, metavar="TFLOP", help="longer rehearsals are left out (%(default)s)"
    )
    parser.add_argument(
        "--scratch", type=pathlib.Path, default=compare.ROOT / "runs", help="folder for stashes (%(default)s)"
    )
    parser.add_argument("--docs", action="store_true", help="rewrite the tables of docs/memory.md")
    parser.add_argument("--peers", type=pathlib.Path, default=pathlib.Path.home() / ".cache/longreel-peers",
                        help="the environment of peers/setup.sh (%(default)s)")
    args = parser.parse_args()
    if not (FILM / "bbb.mp4").exists():
        sys.exit("memory.py: no datasets/film/bbb.mp4: datasets/make.py film")
    args.budget = int(args.budget * GIB)
    args.scratch.mkdir(exist_ok=True)
    for name, make in tables.items():
        if re.search(args.tables, name):
            text = make(args)
            print(text)
            if args.docs:
                compare.rewrite(name, text, compare.ROOT / "docs/memory.md")


if __name__ == "__main__":
    main()
