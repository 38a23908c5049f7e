#!/usr/bin/env bash
# Builds a folder to take to a machine with a GPU: longreel with CUDA and NCCL, its GPU tests, what they read, and
# run.sh, which checks and measures all of it there and writes a report. Needs no GPU here; there, a driver and CUDA
# 13's libraries.
#
#   scripts/gpu-bundle.sh [--alone]     target/gpu-bundle/longreel-gpu: with the repository's tracked files, or alone,
#                                       60 MiB at most
#
# nvcc comes from PyPI, FFmpeg as a small build of Debian's source; CUDA's libraries are linked by name only
# (scripts/bundle/stubs.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/cuda-tools.sh
. scripts/cuda-tools.sh

work=target/gpu-bundle
mkdir -p $work
scripts/bundle/ffmpeg.sh $work
python3 scripts/bundle/stubs.py $work/stubs
scripts/bundle/cubins.sh $work/cubins

# ---- build --------------------------------------------------------------------------------------------------------

export CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000 NVCC=$PWD/scripts/nvcc.sh NVCC_COMPILES=needed FFMPEG_DIR=$PWD/$work/ffmpeg
export RUSTFLAGS="-L native=$PWD/$work/stubs -C link-arg=-Wl,-rpath,\$ORIGIN/../lib -C strip=symbols"
cargo build --release --locked --features nccl --target-dir $work/build --bin longreel
tests=$(cargo test --release --locked --features nccl --target-dir $work/build --test gpu --no-run --message-format=json |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "gpu": print(message["executable"])')

# All but CUDA's are here or in any Linux with glibc.
missing=$(ldd $work/build/release/longreel | grep 'not found' | grep -vE 'lib(cuda|cublas|cublasLt|curand|nvrtc|cudart|av[a-z]*|sw[a-z]*)\.so' || true)
[ -z "$missing" ] || { echo "gpu-bundle: bin/longreel needs$missing" >&2; exit 1; }
scripts/bundle/pack.sh "$@" $work/build/release/longreel "$tests" $work/ffmpeg/lib $work/cubins $work/longreel-gpu
