#!/usr/bin/env bash
# Runs the GPU tests without a GPU: the bundle's program, on a CUDA driver and an NCCL that work on the CPU (kernels/host/driver).
#
#   scripts/gpu-rehearsal.sh [TEST...]      tests whose names contain these words; by default all of tests/gpu.rs
#
# It proves what is computed, copied and sent, and shows nothing of speed or of what streams may do to each other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bundle=target/gpu-bundle/longreel-gpu driver=target/gpu-bundle/driver
scripts/gpu-bundle.sh
gunzip -kf $bundle/bin/gpu-tests.gz
chmod +x $bundle/bin/gpu-tests
kernels/host/driver/build.sh $bundle/bin/longreel $driver
export LD_LIBRARY_PATH=$PWD/$driver LONGREEL=$PWD/$bundle/bin/longreel LONGREEL_ROOT=$PWD/$bundle EMULATED_GPUS=2
$bundle/bin/gpu-tests --test-threads 1 "$@"
