#!/usr/bin/env bash
# Fuzzes the parsers of outside bytes, one target after another, with the corpora of tests/fuzz/corpus as seeds.
#
#   scripts/fuzz.sh [SECONDS] [TARGET ...]     a minute each and all of them, if not said
#
# Needs cargo-fuzz (cargo install cargo-fuzz). What a target finds lies in tests/fuzz/artifacts, and the exit code is
# not 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'fuzz: %s\n' "$*" >&2; exit 1; }
seconds=${1:-60}
[[ $seconds =~ ^[0-9]+$ ]] || die "$seconds is no number of seconds"
shift $(($# > 0))
command -v cargo-fuzz >/dev/null || die "no cargo-fuzz: cargo install cargo-fuzz --locked"

# Coverage needs no nightly compiler, and safe Rust no address sanitizer: panics, hangs and memory are what is looked
# for.
fuzz() { RUSTC_BOOTSTRAP=1 cargo fuzz "$@"; }
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(fuzz list --fuzz-dir tests/fuzz)
fuzz build --fuzz-dir tests/fuzz -s none
for target in "${targets[@]}"; do
    printf '\nfuzzing %s for %s s\n' "$target" "$seconds"
    new=$(mktemp -d) # what is found on the way is no part of the repository
    fuzz run --fuzz-dir tests/fuzz -s none "$target" "$new" "tests/fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -verbosity=0 -print_final_stats=1
    rm -rf "$new"
done
