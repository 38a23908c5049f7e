#!/usr/bin/env bash
# Compiles the CUDA kernels to machine code of sm_90a, for scripts/bundle/kernels.py to load: needs no GPU.
#
#   scripts/bundle/cubins.sh FOLDER   a .cubin for each .cu of kernels/, and the sources, which say how each is launched
#
# nvcc comes from PyPI, as for scripts/check-cuda.sh.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: scripts/bundle/cubins.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/cuda-tools.sh
. scripts/cuda-tools.sh

most=$((2 << 20)) # bytes that all of it may take
rm -f "$out"/*.cubin "$out"/*.cu "$out"/*.cuh "$out/launch.h"
cp kernels/*.cu kernels/*.cuh kernels/launch.h "$out/"
for kernel in kernels/*.cu; do
    nvcc -std=c++20 -O3 -cubin -gencode=arch=compute_90a,code=sm_90a -Werror all-warnings "$kernel" \
        -o "$out/$(basename "$kernel" .cu).cubin"
done
size=$(cat "$out"/* | wc -c)
[ "$size" -le $most ] || { echo "cubins: $size bytes in $out, more than $most" >&2; exit 1; }
echo "cubins: $out, $((size >> 10)) KiB"
