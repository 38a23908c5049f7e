#!/usr/bin/env bash
# Formatting, clippy, the width of lines, and checks of the shell and Python scripts; warnings are errors.
#                                                                                                       (make lint)
# Arguments are cargo's, such as --features mpi.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo=${CARGO:-cargo}
ruff=ruff==0.17.6

"$cargo" fmt --check
"$cargo" clippy --release --locked --all-targets "$@" -- -D warnings

# rustfmt leaves comments alone.
git ls-files -z '*.rs' '*.cu' '*.cuh' '*.h' '*.cpp' '*.js' '*.sh' .ci/run | python3 -c '
import re, sys

wide = [
    f"{name}:{number}: a comment of {len(line)} columns, 120 at most"
    for name in sys.stdin.read().split("\0")[:-1]
    for number, line in enumerate(open(name, encoding="utf-8").read().splitlines(), 1)
    if len(line) > 120 and re.match(r"\s*(//|#)", line) and "#define" not in line and "://" not in line
]
sys.exit("\n".join(wide) or None)'

git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck -x -P SCRIPTDIR

# ruff.toml has the rules.
tools=$HOME/.cache/longreel-lint
if [ "$("$tools/bin/ruff" --version 2>/dev/null)" != "ruff ${ruff#*==}" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install -q "$ruff"
fi
"$tools/bin/ruff" check -q .
