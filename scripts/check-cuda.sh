#!/usr/bin/env bash
# Compiles every CUDA kernel for every architecture and looks at what came out, then checks the types of the Rust code
# that calls them; needs no GPU.
#
#   scripts/check-cuda.sh           prints a table of resources
#   scripts/check-cuda.sh --docs    also writes it into docs/gpu.md
#
# nvcc and its like come from PyPI, of fixed versions, into target/cuda (300 MB). A warning, a spilled register, more
# shared memory or threads than the GPU has, a missing mma.sync (sm_90a: wgmma), ldmatrix or cp.async instruction, or a
# register of wgmma that is touched too early (scripts/wgmma_hazards.py) is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

docs=no
case "${1:-}" in
    "") ;;
    --docs) docs=yes ;;
    *) echo "check-cuda: unknown argument $1; there is only --docs" >&2; exit 2 ;;
esac

out=target/cuda
# shellcheck source=scripts/cuda-tools.sh
. scripts/cuda-tools.sh

# ---- compile ------------------------------------------------------------------------------------------------------

# The arithmetic of a kernel is that of its source: no --use_fast_math.
architectures=(sm_80 sm_90 sm_90a)
for arch in "${architectures[@]}"; do
    mkdir -p "$out/$arch"
    for kernel in kernels/*.cu; do
        object=$out/$arch/$(basename "$kernel" .cu)
        if ! nvcc -std=c++20 -O3 -cubin -arch="$arch" -Werror all-warnings -Xptxas -v,-warn-spills \
            "$kernel" -o "$object.cubin" >"$object.log" 2>&1; then
            cat "$object.log" >&2
            echo "check-cuda: $kernel does not compile for $arch" >&2
            exit 1
        fi
        cuobjdump --dump-sass "$object.cubin" >"$object.sass"
    done
done

# ---- judge --------------------------------------------------------------------------------------------------------

python3 scripts/check_cuda.py "$out" "$docs" "${architectures[@]}"

# ---- the Rust code that calls them ----------------------------------------------------------------------------------

features=nccl # and with it cuda
command -v mpicc >/dev/null && features=$features,mpi
export CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000 NVCC=$PWD/scripts/nvcc.sh NVCC_COMPILES=nothing
RUSTFLAGS="${RUSTFLAGS:-} -D warnings" cargo check --quiet --locked --target-dir "$out/types" --features "$features"
echo "check-cuda: the crate with $features has the right types"
