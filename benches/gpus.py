#!/usr/bin/env python3
"""What GPUs of 80 GB would hold of Wan's networks, by `longreel plan`, as a Markdown table. Arithmetic: nothing is run.

    benches/gpus.py                        all rows (minutes)
    benches/gpus.py --docs                 and into docs/memory.md

Clips are latents at 720p (704p of the 5B), 3,600 tokens a latent frame (880), in bf16; the stash is on disk and
rounded, weights are sharded (ZeRO 3), there is no average. For each network, what is trained
and the number of GPUs: the longest clip whose step fits, with the settings that the planner's search finds, what a GPU
and its host hold then, and how long the step takes at an assumed rate.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import compare

GIB = 1 << 30
MEMORY = "79GiB"  # what is free of a GPU of 80 GB
RATES = ["--tflops", "400", "--bandwidth", "100"]

# heads, ffn_dim, layers and channels as in config.json; height and width of a latent; the ring for each number of GPUs,
# so that heads divide over the others
NETWORKS = [
    ("Wan 2.1 1.3B", 12, 8960, 30, 16, (90, 160), {1: 1, 8: 2, 32: 8}),
    ("Wan 2.2 5B", 24, 14336, 30, 48, (44, 80), {1: 1, 8: 1, 32: 4}),
    ("Wan 2.1 14B", 40, 13824, 40, 16, (90, 160), {1: 1, 8: 1, 32: 4}),
]
TRAINED = [("all weights", []), ("LoRA, rank 32", ["lora.rank=32"])]

CONFIG = """
[run]
out = "{folder}/run"
[data]
path = "{folder}/clips"
frames = {frames}
height = {height}
width = {width}
prefetch = 1
[model]
from = "{folder}/network"
[train]
device = "cuda"
ema = 0.0
[stash]
where = "disk"
dtype = "bf16"
[parallel]
ranks = {ranks}
ring = {ring}
zero = {zero}
"""


def network(folder, heads, ffn, layers, channels):
    path = pathlib.Path(folder) / "network"
    path.mkdir()
    config = dict(
        _class_name="WanTransformer3DModel", attention_head_dim=128, cross_attn_norm=True, eps=1e-6, ffn_dim=ffn,
        freq_dim=256, in_channels=channels, num_attention_heads=heads, num_layers=layers, out_channels=channels,
        patch_size=[1, 2, 2], qk_norm="rms_norm_across_heads", rope_max_seq_len=1024, text_dim=4096,
    )
    (path / "config.json").write_text(json.dumps(config))


def plan(config, *words):
    run = subprocess.run([compare.OURS, "plan", config, "--json", *RATES, *words], capture_output=True, text=True)
    if run.returncode:
        return None
    return json.loads(run.stdout)


def sets(settings):
    return [word for setting in settings for word in ("--set", setting)]


def duration(seconds):
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def row(name, trained, more, heads, ffn, layers, channels, side, ring, ranks):
    """A row of the table, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        network(folder, heads, ffn, layers, channels)
        config = pathlib.Path(folder) / "c.toml"
        zero = 3 if ranks > 1 else 0
        text = CONFIG.format(folder=folder, frames=1, height=side[0], width=side[1], ranks=ranks, ring=ring, zero=zero)
        config.write_text(text)
        fit = plan(config, *sets(more), "--memory", MEMORY)
        change = fit and fit["longest_changed"]
        if not change:
            return f"| {name} | {trained} | {ranks} | none: the network's state alone is larger | | | | |"
        frames = change["tokens"] // (side[0] * side[1] // 4)
        found = plan(config, *sets([*more, *change["settings"], f"data.frames={frames}"]))
    host, disk = sum(found["host"].values()), max(found["disk"])
    needs = f"{found['per_rank'] / GIB:.0f} GiB, host {host / GIB:.0f}" + (f", disk {disk / GIB:.0f}" if disk else "")
    settings = " ".join(f"`{setting}`" for setting in change["settings"]) or "as it is"
    return (
        f"| {name} | {trained} | {ranks} | {fit['longest_tokens'] or 0:,} | **{change['tokens']:,}** | {settings} "
        f"| {needs} | {duration(found['seconds'])} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="rewrite the table of docs/memory.md")
    args = parser.parse_args()
    lines = [
        "| network | trained | GPUs | tokens, as it is | with other settings | which | a GPU, GiB | a step |",
        "|---|---|---:|---:|---:|---|---|---:|",
    ]
    for name, heads, ffn, layers, channels, side, rings in NETWORKS:
        for trained, more in TRAINED:
            for ranks, ring in rings.items():
                lines.append(row(name, trained, more, heads, ffn, layers, channels, side, ring, ranks))
                print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))
    if args.docs:
        compare.rewrite("gpus", "\n".join(lines), compare.ROOT / "docs/memory.md")


if __name__ == "__main__":
    main()
