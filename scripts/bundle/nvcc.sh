#!/usr/bin/env bash
# nvcc for the GPU bundle: compiles longreel's kernels and those of Candle's that longreel may launch, and stands in for the compilation of
# all others (quantised products and mixtures of experts, which would take a quarter of an hour and 30 MB).
set -euo pipefail
real=$CUDA_HOME/bin/nvcc
wanted=' affine.cu binary.cu cast.cu fill.cu indexing.cu reduce.cu ternary.cu unary.cu '

out='' folder='' source='' library=no inputs=()
arguments=("$@")
while [ $# -gt 0 ]; do
    case $1 in
        -o) out=$2; shift ;;
        --output-directory) folder=$2; shift ;;
        --lib) library=yes ;;
        *.cu) source=$1 ;;
        *.o) inputs+=("$1") ;;
    esac
    shift
done
if [ $library = yes ]; then
    ar rcs "$out" "${inputs[@]}"
elif [ -z "$source" ] || [[ $source == *kernels/*.cu && $source != *candle-kernels* ]] ||
    [[ $wanted == *" $(basename "$source") "* ]]; then
    exec "$real" "${arguments[@]}"
elif [ -n "$folder" ]; then
    : >"$folder/$(basename "$source" .cu).ptx"
else
    cc -c -x c /dev/null -o "$out"
fi
