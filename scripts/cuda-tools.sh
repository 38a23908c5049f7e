# To be sourced by scripts that compile CUDA, from the repository's root: fetches nvcc 13.0 from PyPI into
# target/cuda/venv (300 MB), once, puts it into PATH and its folder into CUDA_HOME. No GPU and no driver are needed.
# shellcheck shell=bash

# cuobjdump and nvdisasm, which only read what nvcc wrote, are on PyPI from 13.2 on.
cuda_packages=(
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-cuobjdump==13.2.78 nvidia-cuda-nvdisasm==13.2.78
)
cuda_out=target/cuda
if [ "$(cat "$cuda_out/packages" 2>/dev/null)" != "${cuda_packages[*]}" ]; then
    echo "fetching nvcc 13.0 into $cuda_out/venv" >&2
    rm -rf "$cuda_out/venv" && mkdir -p "$cuda_out"
    python3 -m venv "$cuda_out/venv"
    "$cuda_out/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "${cuda_packages[@]}"
    echo "${cuda_packages[*]}" >"$cuda_out/packages"
fi
CUDA_HOME=$(echo "$PWD/$cuda_out"/venv/lib/python3*/site-packages/nvidia/cu13)
[ -x "$CUDA_HOME/bin/nvcc" ] || { echo "no nvcc under $cuda_out/venv; remove $cuda_out and try again" >&2; exit 1; }
command -v c++ >/dev/null || { echo "nvcc needs a C++ compiler as c++ (Debian: g++)" >&2; exit 1; }
export CUDA_HOME PATH=$CUDA_HOME/bin:$PATH
