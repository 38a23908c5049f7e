#!/usr/bin/env bash
# Lines of Rust in each room of src, and along the way of a clip from its file to a gradient, which docs/design.md
# lists.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../src"
for room in */ *.rs; do
    printf '%-12s %6d\n' "${room%/}" "$(find "${room%/}" -name '*.rs' -exec cat {} + | wc -l)"
done
mapfile -t clip < <(sed -nE 's/^[0-9]+\. .([a-z_/]+\.rs).: .*/\1/p' ../docs/design.md)
printf '\na clip, %d files: %d lines\n' "${#clip[@]}" "$(cat "${clip[@]}" | wc -l)"
