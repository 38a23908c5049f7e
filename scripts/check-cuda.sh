#!/usr/bin/env bash
# Compiles every CUDA kernel for every architecture and looks at what came out, then checks the types of the Rust code that calls
# them; needs no GPU.
#
#   scripts/check-cuda.sh           prints a table of resources
#   scripts/check-cuda.sh --docs    also writes it into docs/gpu.md
#
# nvcc and its like come from PyPI, of fixed versions, into target/cuda (300 MB). A warning, a spilled register, more shared memory
# or threads than the GPU has, or a missing tensor-core, ldmatrix or cp.async instruction is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

docs=no
case "${1:-}" in
    "") ;;
    --docs) docs=yes ;;
    *) echo "check-cuda: unknown argument $1; there is only --docs" >&2; exit 2 ;;
esac

# ---- the compiler -------------------------------------------------------------------------------------------------

# cuobjdump and nvdisasm, which only read what nvcc wrote, are on PyPI from 13.2 on.
packages=(
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-cuobjdump==13.2.78 nvidia-cuda-nvdisasm==13.2.78
)
out=target/cuda
tools=$out/venv
if [ "$(cat "$out/packages" 2>/dev/null)" != "${packages[*]}" ]; then
    echo "check-cuda: fetching nvcc 13.0 into $tools" >&2
    rm -rf "$tools" && mkdir -p "$out"
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check --no-deps "${packages[@]}"
    echo "${packages[*]}" >"$out/packages"
fi
bin=$(echo "$PWD/$tools"/lib/python3*/site-packages/nvidia/cu13/bin)
[ -x "$bin/nvcc" ] || { echo "check-cuda: no nvcc under $tools; remove $out and try again" >&2; exit 1; }
command -v c++ >/dev/null || { echo "check-cuda: nvcc needs a C++ compiler as c++ (Debian: g++)" >&2; exit 1; }
export PATH=$bin:$PATH

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
export CUDA_HOME=${bin%/bin} CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000 NVCC=$PWD/scripts/nvcc-for-types.sh
RUSTFLAGS="${RUSTFLAGS:-} -D warnings" cargo check --quiet --locked --target-dir "$out/types" --features "$features"
echo "check-cuda: the crate with $features has the right types"
