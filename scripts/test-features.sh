#!/usr/bin/env bash
# Checks that longreel builds with fewer features, and that with none of them it asks for no library of the system.
#                                                                                                       (make test)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
check() {
    "${CARGO:-cargo}" check --quiet --release --locked --lib --no-default-features "$@"
}

# Neither FFmpeg nor libclang can be found so.
PKG_CONFIG=/bin/false FFMPEG_DIR=/nonexistent LIBCLANG_PATH=/nonexistent check
check --features media
check --features hub
check --features cli # without bench
if command -v mpicc >/dev/null; then check --features mpi; fi
