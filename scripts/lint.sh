#!/usr/bin/env bash
# Formatting, clippy, the width of lines, and checks of the shell and Python scripts; warnings are errors.   (make lint)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo=${CARGO:-cargo}
ruff=ruff==0.17.6

"$cargo" fmt --check
"$cargo" clippy --release --locked --all-targets -- -D warnings
if [ "$#" -gt 0 ]; then "$cargo" clippy --release --locked --all-targets "$@" -- -D warnings; fi

# rustfmt leaves comments and strings alone.
wide=$(git ls-files -z '*.rs' '*.cu' '*.cuh' '*.h' '*.cpp' '*.js' '*.css' '*.sh' .ci/run |
    xargs -0 awk 'length($0) > 120 { print FILENAME ":" FNR ": " length($0) " characters, 120 at most" }')
if [ -n "$wide" ]; then
    printf '%s\n' "$wide" >&2
    exit 1
fi

git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck -x -P SCRIPTDIR

# ruff.toml has the rules.
tools=$HOME/.cache/longreel-lint
if [ "$("$tools/bin/ruff" --version 2>/dev/null)" != "ruff ${ruff#*==}" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install -q "$ruff"
fi
"$tools/bin/ruff" check -q .
