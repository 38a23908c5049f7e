#!/usr/bin/env python3
"""What each device buys: the longest sequence that a training step fits into a fixed memory, as Markdown tables.

    benches/memory.py                      all rows (half an hour, most of it PyTorch's)
    benches/memory.py --rows ranks         some
    benches/memory.py --docs               all, and into docs/memory.md

Each row adds one device to the one above. The first three are PyTorch's (diffusers' Wan, benches/peers/wan_step.py), whose
resident memory is measured at growing lengths: materialised attention until the budget is exceeded, the others at two lengths,
between and beyond which memory is taken to grow by the token. The others are ours: `longreel plan` finds the longest clip, and
`longreel train --rehearse` measures a step of it. Rehearsals of more than --most TFLOP in linear layers are left out.

A last table asks the planner for networks of Wan 2.1's sizes on GPUs of 80 GiB; nothing of it is measured.
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

# blocks, heads, head_dim; and the two lengths, in frames of 64 tokens, at which PyTorch's memory is measured
NETWORKS = [(12, 6, 64, (32, 64)), (2, 2, 32, (64, 256))]
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
dtype = "bf16"
ema = 0.0
[stash]
folder = "{scratch}"
"""

# heads, head_dim, ffn_dim, layers as in Wan 2.1's config.json; a GPU's rates are assumed
WAN = [("Wan 2.1 1.3B", 12, 128, 8960, 30), ("Wan 2.1 14B", 40, 128, 13824, 40)]
RATES = ["--tflops", "400", "--bandwidth", "100"]


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


def peer_bytes(network, flags, frames, peers):
    """Resident bytes of PyTorch's step on `frames` of 64 tokens."""
    layers, heads, head_dim, _ = network
    shape = dict(frames=frames, height=16, width=16, layers=layers, heads=heads, head_dim=head_dim, steps=1)
    words = [word for key, value in shape.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    env = dict(os.environ)
    if compare.tcmalloc():
        env["LD_PRELOAD"] = compare.tcmalloc()
    command = [str(peers / "bin/python"), str(compare.ROOT / "benches/peers/wan_step.py"), *words, *flags]
    return compare.run(command, env)["peak_rss_gib"] * GIB


def peer_row(network, flags, budget, peers):
    """The longest sequence, bytes a token there, and how that is known."""
    if "--math" in flags:  # grows with the square: by bisection
        fits, beyond = 1, 2
        while peer_bytes(network, flags, beyond, peers) <= budget:
            fits, beyond = beyond, 2 * beyond
        while beyond - fits > max(1, fits // 16):
            middle = (fits + beyond) // 2
            if peer_bytes(network, flags, middle, peers) <= budget:
                fits = middle
            else:
                beyond = middle
        half = max(1, fits // 2)
        slope = (peer_bytes(network, flags, fits, peers) - peer_bytes(network, flags, half, peers)) / (64 * (fits - half))
        return 64 * fits, slope, "measured"
    short, long = network[3]
    at_short, at_long = (peer_bytes(network, flags, frames, peers) for frames in (short, long))
    slope = (at_long - at_short) / (64 * (long - short))
    return int(64 * short + (budget - at_short) / slope), slope, f"reckoned from {64 * short} and {64 * long} tokens"


def our_row(network, ranks, settings, budget, most, scratch):
    layers, heads, head_dim, _ = network
    shape = dict(height=128, width=128, patch=[1, 4, 4], layers=layers, heads=heads, head_dim=head_dim)
    sets = [word for setting in [f"parallel.ranks={ranks}", *settings] for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(folder, frames=1, ffn=4 * heads * head_dim, scratch=scratch, **shape)
        found, error = plan(config, "--memory", budget, *sets)
        if error:
            sys.exit(f"memory.py: {error}")
        tokens = found["longest_tokens"]
        at = lambda frames: plan(config, *sets, "--set", f"data.frames={frames}")[0]
        frames = tokens // 1024
        whole, half = at(frames), at(max(1, frames // 2))
        slope = (whole["per_rank"] - half["per_rank"]) * ranks / (whole["tokens"] - half["tokens"])
        if whole["flop"]["linear"] > most * 1e12:
            return tokens, slope, "planned"
        run = longreel("train", config, "--rehearse", *sets, "--set", f"data.frames={frames}")
    peak = re.search(r"peak predicted [\d.]+ MiB, measured ([\d.]+) MiB", run.stdout)
    if run.returncode or not peak:
        sys.exit(f"memory.py: {tokens} tokens, {settings}: {run.stderr}")
    return tokens, slope, f"rehearsed: {float(peak[1]) / 1024 / ranks:.2f} GiB a rank"


def ladders(args):
    for network in NETWORKS:
        layers, heads, head_dim, _ = network
        title = f"{layers} blocks x {heads * head_dim}"
        lines = [f"{title}, bf16, {args.budget / GIB:g} GiB a rank", ""]
        lines += ["| | tokens | times the row above | bytes a token | how known |", "|---|---:|---:|---:|---|"]
        before = None
        todo = [(name, lambda flags=flags: peer_row(network, flags, args.budget, args.peers)) for name, flags in PEERS]
        todo += [
            (name, lambda r=ranks, s=settings: our_row(network, r, s, args.budget, args.most, args.scratch))
            for name, ranks, settings in OURS
        ]
        for name, measure in todo:
            if not re.search(args.rows, f"{title} {name}"):
                continue
            tokens, slope, how = measure()
            times = f"{tokens / before:.1f}" if before else ""
            lines.append(f"| {name} | {tokens:,} | {times} | {slope:,.0f} | {how} |")
            print(lines[-1], file=sys.stderr, flush=True)
            before = tokens
        yield "\n".join(lines)


def wan(args):
    """The planner's answers for Wan's networks at 720p, stash outside of the GPU."""
    lines = ["| network | GPUs of 80 GiB | a clip of 81 frames (75,600 tokens) needs | longest sequence |", "|---|---:|---:|---:|"]
    for name, heads, head_dim, ffn, layers in WAN:
        for ranks in (1, 8, 32):
            sets = ["parallel.zero=3", "stash.where=disk", f"parallel.ranks={ranks}"]
            sets = [word for setting in sets for word in ("--set", setting)]
            with tempfile.TemporaryDirectory() as folder:
                shape = dict(frames=84, height=720, width=1280, patch=[4, 16, 16], layers=layers, heads=heads)
                config = write_config(folder, head_dim=head_dim, ffn=ffn, scratch=args.scratch, **shape)
                found, error = plan(config, *sets)
                if error:
                    sys.exit(f"memory.py: {error}")
                longest, _ = plan(config, *sets, "--memory", 80 * GIB)
            need = f"{found['per_rank'] / GIB:.1f} GiB a rank"
            fits = f"{longest['longest_tokens']:,}" if longest else "none: its state alone is larger"
            lines.append(f"| {name} | {ranks} | {need} | {fits} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose network and name have a match")
    parser.add_argument("--budget", type=float, default=2, metavar="GIB", help="memory of each rank (%(default)s)")
    parser.add_argument("--most", type=float, default=40, metavar="TFLOP", help="longer rehearsals are left out (%(default)s)")
    parser.add_argument("--scratch", type=pathlib.Path, default=compare.ROOT / "runs", help="folder for stashes (%(default)s)")
    parser.add_argument("--docs", action="store_true", help="rewrite the tables of docs/memory.md")
    parser.add_argument("--peers", type=pathlib.Path, default=pathlib.Path.home() / ".cache/longreel-peers",
                        help="the environment of peers/setup.sh (%(default)s)")
    args = parser.parse_args()
    if args.docs and args.rows:
        sys.exit("memory.py: --docs: all rows belong into the documentation")
    if not (FILM / "bbb.mp4").exists():
        sys.exit("memory.py: no datasets/film/bbb.mp4: datasets/make.py film")
    args.budget = int(args.budget * GIB)
    args.scratch.mkdir(exist_ok=True)
    text = "\n\n".join(ladders(args))
    print(text)
    if args.docs:
        page = compare.ROOT / "docs/memory.md"
        compare.rewrite("ladder", text, page)
        compare.rewrite("wan", wan(args), page)
    elif not args.rows:
        print(wan(args))


if __name__ == "__main__":
    main()
