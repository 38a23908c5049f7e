#!/usr/bin/env bash
# Checks that longreel builds with fewer features, and that with none of them it asks for no library of the system.
#                                                                                                       (make test)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
check() {
    "${CARGO:-cargo}" check --quiet --release --locked --target-dir target/features --no-default-features "$@"
}

export RUSTFLAGS="${RUSTFLAGS:-} -D warnings"
# Neither FFmpeg nor libclang can be found so.
PKG_CONFIG=/bin/false FFMPEG_DIR=/nonexistent LIBCLANG_PATH=/nonexistent check --lib --example ulysses
check --features media --example train
check --features hub
