#!/usr/bin/env bash
# Stands in for nvcc while Rust's types are checked (scripts/check-cuda.sh): it makes the files that build scripts ask for, with nothing
# in them. Candle's own kernels take nvcc a quarter of an hour, and no type depends on what they compile to.
set -euo pipefail
case " $* " in *" --version "*) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit ;; esac
out='' folder='' source=''
while [ $# -gt 0 ]; do
    case $1 in
        -o) out=$2; shift ;;
        --output-directory) folder=$2; shift ;;
        *.cu) source=$1 ;;
    esac
    shift
done
: >"${out:-$folder/$(basename "$source" .cu).ptx}"
