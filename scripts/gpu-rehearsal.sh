#!/usr/bin/env bash
# Runs the bundle without a GPU, on a CUDA driver and an NCCL that work on the CPU (kernels/host/driver): its GPU tests,
# then its run.sh.
#
#   scripts/gpu-rehearsal.sh [--built] [TEST...]     tests whose names contain these words; by default all of
#                                                    tests/gpu.rs, and run.sh
#
# With --built the bundle is taken as it is; else it is built first, a quarter of an hour. It proves what is computed,
# copied, sent and reported, and that streams wait for each other; it shows nothing of speed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$PWD/target/gpu-bundle
bundle=$work/longreel-gpu driver=$work/driver programs=$work/programs
if [ "${1:-}" = --built ]; then shift; else scripts/gpu-bundle.sh; fi
rm -rf "$programs" && mkdir -p "$programs/bin" && ln -s "$bundle/lib" "$programs/lib" # the bundle is to stay as it is
for name in longreel gpu-tests; do
    gunzip -c "$bundle/bin/$name.gz" >"$programs/bin/$name"
    chmod +x "$programs/bin/$name"
done
kernels/host/driver/build.sh "$programs/bin/longreel" "$driver"
LD_LIBRARY_PATH=$driver LONGREEL=$programs/bin/longreel LONGREEL_ROOT=$PWD EMULATED_GPUS=2 "$programs/bin/gpu-tests" --test-threads 1 "$@"
[ $# -eq 0 ] || exit 0

# ---- run.sh, as on a machine that has nothing set, and CUDA in its Python's packages

work=$work/rehearsal
packages=$work/site-packages/nvidia/cu13/lib
rm -rf "$work" && mkdir -p "$packages" "$work/out"
cp -P "$driver"/lib* "$packages/"
python=$(python3 -c 'import sys; print(sys.executable)')
# Small sizes, as the driver is slow, and a PyTorch that computes nothing. It takes the place of the shell that calls
# it.
run_sh() {
    exec env -i OUT="$work/out" PYTHON="$python" PYTHONPATH="$work/site-packages:$PWD/tests/bundle/packages" STAND_IN="$work" BUDGET=3000 \
        ATTENTION_TOKENS="64 128" STEP_FRAMES="2 4" STEP_SIDE=8 STEP_LAYERS=2 DEMO_STEPS=20 \
        DEMO_ARGS="--set data.height=16 --set data.width=24 --set train.batch=2 --set model.num_layers=2 --set sample.steps=2" \
        TESTS='^(attention_has_the_same|steps_lead|peaks)' "$@"
}
complain() { echo "gpu-rehearsal: $*" >&2; exit 1; }
# What run.sh says must have these words.
says() {
    local words=$1 said
    shift
    said=$("$@" 2>&1) && complain "run.sh did not fail, but was to say: $words"
    grep -qF -- "$words" <<<"$said" || complain "run.sh was to say: $words; it said: $said"
}
(run_sh EMULATED_GPUS=1 "$bundle/run.sh" checks attention step)
cp "$work/out/report.md" "$work/report.md"

says "computes on no GPU" run_sh EMULATED_GPUS=0 "$bundle/run.sh" step
says "for CUDA 12.8, and longreel needs one for 13.0" run_sh EMULATED_DRIVER=12080 "$bundle/run.sh" step
says "cuBLAS here is of CUDA 12" run_sh EMULATED_CUBLAS=12 "$bundle/run.sh" step
rm "$packages/libcuda.so.1" # the library itself: the others are links to it
says "libcuda.so.1 is not found" run_sh "$bundle/run.sh" step
cp "$driver/libcuda.so.1" "$packages/"
rm "$packages/libcublas.so.13"
cp "$driver/libcuda.so.1" "$packages/libcublas.so.12"
says "libcublas.so.13 is not found, only another version: $packages/libcublas.so.12" run_sh "$bundle/run.sh" step
ln -sf libcuda.so.1 "$packages/libcublas.so.13"

# Killed in the middle of a long step, after a short one.
rm "$work"/out/*
run_sh STEP_FRAMES="2 16" "$bundle/run.sh" step &
for _ in $(seq 600); do
    ! grep -qs '"tokens":32,' "$work/out/results.jsonl" || break
    sleep 1
done
sleep 5
kill -TERM $!
status=0
wait $! || status=$?
[ $status -eq 143 ] || complain "run.sh ended with $status, not as one that was killed"
grep -q '"tokens": 32' "$work/out/report.json" || complain "what was measured before the kill is not in the report"
grep -q 'step: ended by SIGTERM, at a step of 256 tokens' "$work/out/report.md" || complain "the report does not tell of the kill"
echo "gpu-rehearsal: all is well; $work/report.md"
