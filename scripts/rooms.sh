#!/usr/bin/env bash
# Lines of Rust in each room of src, along the way of a clip from its file to a gradient, which docs/design.md lists,
# and of the periphery: what is beside the subject and should stay small.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../src"
for room in */ *.rs; do
    printf '%-12s %6d\n' "${room%/}" "$(find "${room%/}" -name '*.rs' -exec cat {} + | wc -l)"
done
mapfile -t clip < <(sed -nE 's/^[0-9]+\. .([a-z_/]+\.rs).: .*/\1/p' ../docs/design.md)
printf '\na clip, %d files: %d lines\n' "${#clip[@]}" "$(cat "${clip[@]}" | wc -l)"

# What does the work of commit 261751c's files: those of NCCL's order, the handshake, the VAE's, the text encoder's and
# GPUs' benches had no counterpart.
detectors=(parallel/{control,links,peers,rendezvous,wire}.rs)
collectives=(parallel/{collectives,threads,transport}.rs parallel/{mpi,nccl}/transport.rs)
progress=(observe/{meter,process,section,stderr}.rs train/{monitor,progress}.rs parallel/metered.rs engine/flops.rs)
bench=(cli/bench/{attention,block,latent,linear,mod,peak,report,step}.rs cli/machine.rs simd/peak.rs)
printf '\nthe periphery, %d lines:\n' "$(cat "${detectors[@]}" "${collectives[@]}" "${progress[@]}" "${bench[@]}" | wc -l)"
printf '%-12s %6d\n' detectors "$(cat "${detectors[@]}" | wc -l)" collectives "$(cat "${collectives[@]}" | wc -l)" \
    progress "$(cat "${progress[@]}" | wc -l)" bench "$(cat "${bench[@]}" | wc -l)"
