#!/usr/bin/env bash
# Builds a folder to take to a machine with a GPU: longreel with CUDA and NCCL, its GPU tests, what they read, and run.sh, which checks
# and measures all of it there and writes a report. Needs no GPU here; there, a driver and CUDA 13's libraries.
#
#   scripts/gpu-bundle.sh           target/gpu-bundle/longreel-gpu, under 64 MiB
#
# nvcc comes from PyPI, FFmpeg as a small build of Debian's source; CUDA's libraries are linked by name only (scripts/bundle/stubs.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/cuda-tools.sh
. scripts/cuda-tools.sh

work=target/gpu-bundle
bundle=$work/longreel-gpu
most=$((64 << 20))
mkdir -p $work
scripts/bundle/ffmpeg.sh $work
python3 scripts/bundle/stubs.py $work/stubs

# ---- build --------------------------------------------------------------------------------------------------------

export CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000 NVCC=$PWD/scripts/nvcc.sh NVCC_COMPILES=needed FFMPEG_DIR=$PWD/$work/ffmpeg
export RUSTFLAGS="-L native=$PWD/$work/stubs -C link-arg=-Wl,-rpath,\$ORIGIN/../lib -C strip=symbols"
cargo build --release --locked --features nccl --target-dir $work/build --bin longreel
tests=$(cargo test --release --locked --features nccl --target-dir $work/build --test gpu --no-run --message-format=json |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "gpu": print(message["executable"])')

# ---- put together ---------------------------------------------------------------------------------------------------

rm -rf $bundle && mkdir -p $bundle/{bin,lib,configs,tests,peers}
cp $work/build/release/longreel $bundle/bin/
gzip -9 <"$tests" >$bundle/bin/gpu-tests.gz
for library in "$work"/ffmpeg/lib/*.so.*; do # libavcodec.so.59, not libavcodec.so.59.37.100
    case ${library##*.so.} in *.*) ;; *) cp -L "$library" $bundle/lib/ ;; esac
done
cp configs/demo.toml $bundle/configs/
cp -r tests/golden $bundle/tests/golden
mkdir $bundle/datasets && cp -r datasets/bbb datasets/README.md $bundle/datasets/ # with the clips' attribution
cp benches/peers/attention.py $bundle/peers/
cp scripts/bundle/run.sh $bundle/run.sh
git log -1 --format='%H %cd' --date=short >$bundle/VERSION

size=$(du -sb $bundle | cut -f1)
echo "gpu-bundle: $bundle, $((size >> 20)) MiB"
[ "$size" -lt $most ] || { echo "gpu-bundle: that is more than $((most >> 20)) MiB" >&2; exit 1; }
# All but CUDA's are here or in any Linux with glibc.
missing=$(ldd $bundle/bin/longreel | grep 'not found' | grep -vE 'lib(cuda|cublas|cublasLt|curand|nvrtc|cudart)\.so' || true)
[ -z "$missing" ] || { echo "gpu-bundle: bin/longreel needs$missing" >&2; exit 1; }
