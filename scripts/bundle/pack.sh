#!/usr/bin/env bash
# Puts the bundle for a machine with a GPU together from what was built, and sees that it is small enough to travel.
#
#   scripts/bundle/pack.sh [--alone] LONGREEL TESTS LIBRARIES CUBINS BUNDLE
#
# LONGREEL and TESTS are programs, LIBRARIES and CUBINS folders: FFmpeg's libraries, and what scripts/bundle/cubins.sh
# wrote. The bundle is to lie in the repository, or a copy of its tracked files, which has the configs, clips and golden
# files that run.sh needs; both together take 60 MiB at most. With --alone it has its own copies of those, and may be
# taken anywhere.
set -euo pipefail
alone=
if [ "${1:-}" = --alone ]; then alone=1 && shift; fi
[ $# -eq 5 ] || { echo "usage: scripts/bundle/pack.sh [--alone] LONGREEL TESTS LIBRARIES CUBINS BUNDLE" >&2; exit 2; }
mkdir -p "$(dirname "$5")"
longreel=$(realpath "$1") tests=$(realpath "$2") libraries=$(realpath "$3") cubins=$(realpath "$4") bundle=$(realpath -m "$5")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

rm -rf "$bundle" && mkdir -p "$bundle"/{bin,lib}
gzip -9n <"$longreel" >"$bundle/bin/longreel.gz"
gzip -9n <"$tests" >"$bundle/bin/gpu-tests.gz"
for library in "$libraries"/*.so.*; do # libavcodec.so.59, not libavcodec.so.59.37.100
    case ${library##*.so.} in *.*) ;; *) cp -L "$library" "$bundle/lib/" ;; esac
done
cp scripts/bundle/{run.sh,start.sh,parts.sh,report.py} benches/peers/attention.py "$bundle/"
if [ -e scripts/bundle/kernels.py ]; then
    cp scripts/bundle/kernels.py "$bundle/"
    mkdir "$bundle/checks" && cp scripts/bundle/checks/*.py "$bundle/checks/"
    cp -r "$cubins" "$bundle/cubins"
fi
if [ -n "$alone" ]; then
    mkdir "$bundle"/{configs,tests,datasets}
    cp configs/demo.toml configs/film.toml "$bundle/configs/"
    cp -r tests/golden "$bundle/tests/golden"
    cp -r datasets/bbb datasets/README.md "$bundle/datasets/" # with the clips' attribution
fi
git log -1 --format='%H %cd' --date=short >"$bundle/VERSION"

tracked=0
[ -n "$alone" ] || tracked=$(git ls-files -z | xargs -0 stat -c %s -- 2>/dev/null | awk '{sum += $1} END {print sum}')
most=$(((60 << 20) - tracked))
[ $most -le $((53 << 20)) ] || most=$((53 << 20))
size=$(find "$bundle" -type f -printf '%s\n' | awk '{sum += $1} END {print sum}')
mib() { awk "BEGIN {printf \"%.1f MiB\", $1 / 1048576}"; }
echo "gpu-bundle: $bundle: $(mib "$size"), and $(mib "$tracked") of tracked files: $(mib $((size + tracked)))"
[ "$size" -le $most ] || { echo "gpu-bundle: the bundle may take $(mib $most) beside them, so it does not travel" >&2; exit 1; }
