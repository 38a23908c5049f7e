#!/usr/bin/env python3
"""Rehearses steps of growing length and prints a Markdown table of predicted and measured memory.

    benches/plan.py [--longreel target/release/longreel] [--most TOKENS] [--docs] [--decoding]

With --docs the table takes the place of that in docs/memory.md. Every clip is one grey picture, made here, so height
and width make the tokens. Fails if a prediction is off by more than 5 % or 64 MiB, whichever is larger.

With --decoding, trains a network of next to nothing on large images and videos, made by the ffmpeg command line,
instead: what they take while they are decoded is nearly all. Fails if a prediction is off by more than 15 %.
"""

import argparse
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

import compare

# height, width, heads, head_dim, layers, settings; patches of 4 x 4 pixels
SHAPES = [
    (256, 256, 4, 64, 4, []),
    (512, 512, 4, 64, 4, []),
    (512, 512, 4, 64, 4, ["parallel.ranks=2"]),
    (512, 512, 4, 64, 3, ["train.dtype=bf16"]),
    (512, 512, 4, 64, 3, ["parallel.ranks=2", "parallel.zero=3"]),
    (1024, 1024, 2, 32, 3, []),
    (1024, 1024, 2, 32, 3, ["stash.where=disk"]),
    (1024, 1024, 4, 32, 2, ["parallel.head_groups=4", "stash.keep_attention=false"]),
    (1024, 1024, 4, 32, 2, ["parallel.ranks=4", "parallel.ring=2", "train.dtype=bf16"]),
    (1024, 2048, 2, 32, 2, ["stash.dtype=bf16"]),
    (2048, 2048, 2, 32, 2, ["train.dtype=bf16"]),
]

CONFIG = """
[run]
out = "{folder}/run"
[data]
path = "{folder}/clips"
frames = 1
height = {height}
width = {width}
prefetch = 1
[model]
patch_size = [1, 4, 4]
num_attention_heads = {heads}
attention_head_dim = {head_dim}
num_layers = {layers}
ffn_dim = {ffn}
[stash]
folder = "{folder}"
"""


# What is decoded: frames of a clip, prefetch, names of files, arguments of ffmpeg
NOISE = ["-vf", "noise=alls=20:allf=t"]
IMAGES = ["-f", "lavfi", "-i", "testsrc2=size=5640x3172:rate=1", *NOISE, "-frames:v", "4"]
FILM = ["-f", "lavfi", "-i", "testsrc2=size=1920x1080:rate=25:duration=4", *NOISE]
SOURCES = {
    "JPEG, 5640 x 3172, 4:4:4": (1, "%d.jpg", [*IMAGES, "-q:v", "4"]),
    "JPEG, 5640 x 3172, 4:2:0": (1, "%d.jpg", [*IMAGES, "-q:v", "4", "-pix_fmt", "yuvj420p"]),
    "PNG, 5640 x 3172": (1, "%d.png", IMAGES),
    "H.264, 1920 x 1080": (16, "a.mp4", [*FILM, "-c:v", "libx264", "-pix_fmt", "yuv420p"]),
}

DECODING = """
[run]
out = "{folder}/run"
[data]
path = "{folder}/clips"
frames = {frames}
height = {side}
width = {side}
crop = "random"
prefetch = {prefetch}
[model]
patch_size = [1, 32, 32]
num_attention_heads = 2
attention_head_dim = 16
num_layers = 2
ffn_dim = 64
[train]
steps = 6
checkpoint_every = 0
heldout_every = 0
"""


def decoding(args):
    """Trains on each kind of file; returns the table's lines, and whether all predictions are good."""
    table = [
        "| files | clip | threads that decode | predicted, GiB | measured | off |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(table), flush=True)
    good = True
    for name, (frames, file, command) in SOURCES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place)
            (folder / "clips").mkdir()
            subprocess.run(["ffmpeg", "-v", "error", *command, folder / "clips" / file], check=True)
            for side, prefetch in [(512, 2), (512, 1), (64, 2)]:
                config = DECODING.format(folder=folder, frames=frames, side=side, prefetch=prefetch)
                (folder / "c.toml").write_text(config)
                shutil.rmtree(folder / "run", ignore_errors=True)
                run = subprocess.run([args.longreel, "train", folder / "c.toml"], capture_output=True, text=True)
                found = re.search(r"memory: ([\d.]+) GiB at the peak, planned ([\d.]+) GiB", run.stderr)
                if run.returncode or not found:
                    sys.exit(f"{name}: {run.stderr}")
                measured, predicted = map(float, found.groups())
                off = predicted / measured - 1
                within = abs(off) <= 0.15
                good &= within
                mark = "" if within else " (!)"
                table.append(
                    f"| {name} | {frames} x {side} x {side} | {prefetch} | {predicted:.3f} | {measured:.3f} "
                    f"| {100 * off:+.1f} %{mark} |"
                )
                print(table[-1], flush=True)
    return table, good


def write_png(path, height, width):
    """A grey picture."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = (b"\0" + bytes([128]) * (3 * width)) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longreel", default="target/release/longreel")
    parser.add_argument("--most", type=int, default=1 << 18, help="leave out shapes of more tokens")
    parser.add_argument("--docs", action="store_true", help="rewrite the table of docs/memory.md")
    parser.add_argument("--decoding", action="store_true", help="large images and videos instead")
    args = parser.parse_args()
    if args.decoding:
        table, good = decoding(args)
        if args.docs:
            compare.rewrite("decoding", "\n".join(table), compare.ROOT / "docs/memory.md")
        sys.exit(0 if good else 1)
    table = [
        "| tokens | width | blocks | settings | in use, GiB: predicted | measured | off "
        "| process, GiB: predicted | measured | off |",
        "|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(table), flush=True)
    good = True
    for height, width, heads, head_dim, layers, settings in SHAPES:
        tokens = height * width // 16
        if tokens > args.most:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "clips").mkdir()
            write_png(folder / "clips" / "grey.png", height, width)
            sizes = dict(height=height, width=width, heads=heads, head_dim=head_dim, layers=layers)
            (folder / "c.toml").write_text(CONFIG.format(folder=folder, ffn=4 * heads * head_dim, **sizes))
            sets = [word for setting in settings for word in ("--set", setting)]
            command = [args.longreel, "train", folder / "c.toml", "--rehearse", *sets]
            run = subprocess.run(command, capture_output=True, text=True)
        found = re.findall(r"(?:at most:|peak) predicted ([\d.]+) GiB, measured ([\d.]+) GiB", run.stdout)
        if run.returncode or len(found) != 2:
            sys.exit(f"{tokens} tokens, {settings}: {run.stderr}")
        columns = []
        for predicted, measured in ((float(predicted), float(measured)) for predicted, measured in found):
            within = abs(predicted - measured) <= max(0.05 * measured, 64 / 1024)
            good &= within
            off = f"{100 * (predicted / measured - 1):+.1f} %" + ("" if within else " (!)")
            columns.append(f"{predicted:.3f} | {measured:.3f} | {off}")
        what = ", ".join(settings) or "f32, one rank"
        table.append(f"| {tokens} | {heads * head_dim} | {layers} | {what} | {' | '.join(columns)} |")
        print(table[-1], flush=True)
    if args.docs:
        compare.rewrite("plan", "\n".join(table), compare.ROOT / "docs/memory.md")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
