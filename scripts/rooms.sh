#!/usr/bin/env bash
# Lines of Rust in each room of src, and along the way of a clip from its file to a gradient.   (docs/design.md)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../src"
for room in */ *.rs; do
    printf '%-12s %6d\n' "${room%/}" "$(find "${room%/}" -name '*.rs' -exec cat {} + | wc -l)"
done
clip=(train/trainer.rs train/run.rs data/walk.rs data/dataset.rs data/probe.rs data/loader.rs data/region.rs
    data/decode.rs data/scale.rs data/frames.rs batch/noisy.rs diffusion/noise.rs engine/forward.rs model/embed.rs
    model/block.rs attention/sequence.rs attention/cpu/forward.rs model/head.rs diffusion/objective.rs
    engine/backward.rs attention/cpu/backward.rs ops/linear.rs)
printf '\na clip, %d files: %d lines\n' "${#clip[@]}" "$(cat "${clip[@]}" | wc -l)"
