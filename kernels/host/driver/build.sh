#!/usr/bin/env bash
# Builds the emulated driver for a program: libcuda.so.1 and what else CUDA has, one library under all their names, and
# libnccl.so.2.
#
#   kernels/host/driver/build.sh PROGRAM FOLDER
#
# Then LD_LIBRARY_PATH=FOLDER PROGRAM runs without a GPU; EMULATED_GPUS says how many it shall see, one by default.
# Functions that the program names and that are not there say so when they are called.
set -euo pipefail
program=$(realpath "$1") here=$(dirname "$(realpath "$0")")
mkdir -p "$2" && cd "$2"
rm -f -- *.o # of sources that are there no more
for source in "$here"/*.cpp; do
    c++ -std=c++20 -O2 -fPIC -Wall -Wextra -Wno-unknown-pragmas -c "$source" -o "$(basename "$source" .cpp).o"
done
nm --defined-only -- *.o | awk '$2 == "T" {print $3}' | sort >there
nm -D --undefined-only "$program" | awk '{print $2}' | grep -E '^(cu|curand|cublas|cublasLt|nvrtc)[A-Z]' | sort >wanted
comm -13 there wanted | awk '
    BEGIN {print "int emulated_driver_lacks(const char *);"}
    {print "int " $1 "(void) { return emulated_driver_lacks(\"" $1 "\"); }"}' >rest.c
cc -fPIC -c rest.c -o rest.obj
cc -shared -fPIC -O2 -Wall -Wextra -o libnccl.so.2 "$here/nccl.c"
c++ -shared -o libcuda.so.1 ./*.o rest.obj
for name in libcublas.so.13 libcublasLt.so.13 libcurand.so.10 libnvrtc.so.13 libcudart.so.13; do
    ln -sf libcuda.so.1 "$name"
done
