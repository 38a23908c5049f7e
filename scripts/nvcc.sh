#!/usr/bin/env bash
# nvcc for builds with the feature cuda: compiles what is wanted and stands in for the rest, making files with nothing
# in them.
#
#   NVCC=scripts/nvcc.sh NVCC_COMPILES=needed     longreel's kernels and those of Candle's that it may launch
#                                                 (scripts/gpu-bundle.sh)
#   NVCC=scripts/nvcc.sh NVCC_COMPILES=nothing    none: no type depends on what they compile to (scripts/check-cuda.sh)
#
# Candle's others (quantised products, mixtures of experts) would take a quarter of an hour and 30 MB. CUDA_HOME names
# the real nvcc.
set -euo pipefail
real=$CUDA_HOME/bin/nvcc
candles=' affine.cu binary.cu cast.cu fill.cu indexing.cu reduce.cu ternary.cu unary.cu '

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
needed() { [[ $source != *candle-kernels* && $source == *kernels/*.cu || $candles == *" $(basename "$source") "* ]]; }
if [ $library = yes ]; then
    ar rcs "$out" "${inputs[@]}"
elif [ -z "$source" ] || { [ "$NVCC_COMPILES" = needed ] && needed; }; then
    exec "$real" "${arguments[@]}"
elif [ -n "$folder" ]; then
    : >"$folder/$(basename "$source" .cu).ptx"
else
    cc -c -x c /dev/null -o "$out"
fi
