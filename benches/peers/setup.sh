#!/usr/bin/env bash
# A virtual environment with the peers that longreel is measured against.   (about 5 GB, a few minutes)
#
#   benches/peers/setup.sh [DIR]      default: ~/.cache/longreel-peers
#
# tests/golden/make.py and benches/scaling.py run in it too. Does nothing if DIR already has these versions.
set -euo pipefail
dir=${1:-$HOME/.cache/longreel-peers}
peers=(torch==2.11.0 numpy diffusers==0.42.1 transformers accelerate==1.15.0 safetensors==0.8.0 einops psutil matplotlib
       peft==0.21.2)
deepspeed=deepspeed==0.19.8

python3 -m venv "$dir" || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
"$dir/bin/pip" install -q "${peers[@]}"
DS_BUILD_OPS=0 "$dir/bin/pip" install -q "$deepspeed" # no compiled ops: only its Ulysses is used, which is Python
"$dir/bin/python" -c 'import torch, diffusers, deepspeed' >/dev/null
echo "the peers are in $dir; how to run them: benches/peers/README.md"
if ! ls /usr/lib/*/libtcmalloc_minimal.so.4 >/dev/null 2>&1; then
    echo "for PyTorch at its best on a CPU, also: apt-get install libtcmalloc-minimal4"
fi
