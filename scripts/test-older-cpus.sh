#!/usr/bin/env bash
# Runs the tests that compute as an older CPU would: once for each set of features below the best of this one, which
# the variable LONGREEL_CPU masks (docs/numerics.md). What `make test` runs, in every other respect.
#
#   scripts/test-older-cpus.sh [further arguments of cargo test]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

has() { # whether the CPU has all of these features, as Linux names them
    local feature
    for feature in "$@"; do
        grep -qw "$feature" /proc/cpuinfo || return 1
    done
}

older=() # all that it can run but its best, which `make test` has run
has avx2 fma && older+=(portable)
has avx2 fma avx512f avx512dq && older+=(avx2)
# Intel's without AMX compute without bf16's instructions, unless told to (src/simd/mod.rs).
if has avx512f avx512dq avx512bw avx512_bf16; then
    if has amx_bf16; then
        older+=(avx512 avx512-bf16)
    elif grep -q GenuineIntel /proc/cpuinfo; then
        older+=(avx512-bf16)
    else
        older+=(avx512)
    fi
fi

for features in ${older[@]+"${older[@]}"}; do
    printf '\ntests with the features of %s\n' "$features"
    # These modules of the tests, whole: "engine::" alone would take stash::engine:: too.
    LONGREEL_CPU=$features "${CARGO:-cargo}" test --release --locked "$@" --test tests -- \
        attention:: bench:: cli:: engine:: ops::
done
