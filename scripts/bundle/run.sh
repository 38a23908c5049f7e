#!/usr/bin/env bash
# Checks and measures longreel on this machine's GPU within a given time, and reports whatever there is by then.
#
#   ./run.sh [PART...]             parts, in the order given; by default kernels checks attention step
#   ./run.sh report [FOLDER...]    only the report, of the results in these folders; needs no GPU
#
# kernels      the CUDA kernels alone, from Python with CuPy and torch; longreel need not start
# checks       the GPU's results against the CPU's (bin/gpu-tests), and the demo's training
# attention    longreel's attention beside PyTorch's by FlashAttention and by cuDNN
# step         a step of DiT-S (12 blocks of width 384) at growing lengths, up to 1,048,576 tokens
#
# Results go to the folder $OUT, or to results/ beside this script: results.jsonl and kernels.jsonl grow line by line;
# report.md, report.json, tests.txt, log.txt, samples.png. A part needs a driver, CUDA 13's cuBLAS and cuRAND; python3
# makes the report.
#
# Variables: BUDGET=540, the seconds that the command may take: nothing begins that has no time left, and what overruns
# is ended. PYTHON, the python3 that has PyTorch and CuPy; it is looked for by default. Sizes, for a rehearsal:
# ATTENTION_TOKENS, STEP_FRAMES, STEP_SIDE, STEP_LAYERS, DEMO_STEPS, DEMO_ARGS (of `longreel train`), and TESTS, a
# regular expression.
set -uo pipefail
bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 1
results=${OUT:-$bundle/results}
BUDGET=${BUDGET:-540}
say() { printf 'run.sh: %s\n' "$*" | tee -a "$results/log.txt" >&2; }
die() { printf 'run.sh: %s\n' "$*" >&2; exit 2; }

case $BUDGET in '' | *[!0-9]*) die "BUDGET=$BUDGET: it must be a whole number of seconds" ;; esac
[ "$BUDGET" -ge 1 ] || die "BUDGET=$BUDGET: it must be at least 1 second"
parts=("$@") folders=()
[ $# -gt 0 ] || parts=(kernels checks attention step)
if [ "${1:-}" = report ]; then
    parts=() folders=("${@:2}")
    for folder in "${folders[@]}"; do [ -d "$folder" ] || die "report: there is no folder $folder"; done
fi
for part in "${parts[@]}"; do
    case $part in
    kernels | checks | attention | step) ;;
    *) die "there is no part $part: kernels, checks, attention, step or report" ;;
    esac
done
mkdir -p "$results" 2>/dev/null
[ -w "$results" ] || die "$results cannot be written: name another folder with OUT"
results=$(cd "$results" && pwd)

# ---- time -----------------------------------------------------------------------------------------------------------

deadline=$((SECONDS + BUDGET))
reserve=$((BUDGET > 60 ? 12 : BUDGET / 5)) # seconds for ending what runs and for the report
left() { echo $((deadline - reserve - SECONDS)); }
child='' watchdog='' scratch='' failed=0
exec 3>&1 4>&2

# Runs a command for so many seconds at most, and no longer than there is time. 124: it was ended, or never began.
bounded() {
    local seconds=$1 most status
    most=$(left)
    shift
    [ "$seconds" -le "$most" ] || seconds=$most
    [ "$seconds" -ge 1 ] || return 124
    timeout --kill-after=5 "$seconds" "$@" 3>&- 4>&- &
    child=$!
    wait "$child"
    status=$?
    child=
    [ $status -ne 137 ] || status=124
    return $status
}

# What a status of `bounded` says.
# shellcheck disable=SC2317 # parts.sh calls it
state() { case $1 in 0) echo passed ;; 124) echo "out of time" ;; *) echo FAILED ;; esac; }

# ---- results --------------------------------------------------------------------------------------------------------

# Appends a line of JSON, of key=value pairs; values that look like numbers are numbers.
record() {
    local pair value line=''
    for pair in "$@"; do
        value=${pair#*=}
        if ! [[ $value =~ ^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$ ]]; then
            value=$(printf '%s' "$value" | tr '\n\t' '  ' | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')
            value="\"$value\""
        fi
        line+="${line:+, }\"${pair%%=*}\": $value"
    done
    printf '{%s}\n' "$line" >>"$results/results.jsonl"
}

# Says what went wrong, and records it.
failure() {
    say "$1: $2"
    record what=failure "name=$1" "why=$2"
}

# Writes report.md and report.json from what there is. After each result, as the next may end everything.
report() {
    [ -n "${python:-}" ] || return 0
    timeout 60 "$python" "$bundle/report.py" --out "$results" "${folders[@]:-$results}" 2>>"$results/log.txt"
}

# The end, however it came: by itself, by a signal, by the watchdog.
# shellcheck disable=SC2317 # a trap calls it
finish() {
    local status=$?
    trap - EXIT
    trap '' TERM INT HUP
    [ -z "$watchdog" ] || kill "$watchdog" 2>/dev/null
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null # timeout hands it on to all that the command started
    if [ -z "${python:-}" ]; then
        say "no python3 here, so no report: results.jsonl has the results, and report.py makes the report of them elsewhere"
    elif report && [ -s "$results/report.md" ]; then
        cat "$results/report.md"
    else
        say "the report could not be made: $results/log.txt says why, results.jsonl has the results"
    fi
    [ -z "$child" ] || kill -KILL -- "-$child" 2>/dev/null
    [ -z "$scratch" ] || rm -rf "$scratch"
    exit "$status"
}
# shellcheck disable=SC2317 # a trap calls it
ended() {
    exec >&3 2>&4 # a trap's output goes where that of the interrupted command does
    failure "${part:-start}" "ended by $1${doing:+, at $doing}"
    exit "$2"
}

# shellcheck source=scripts/bundle/start.sh
. "$bundle/start.sh"
# shellcheck source=scripts/bundle/parts.sh
. "$bundle/parts.sh"
environment
find_python
scratch=$(mktemp -d) || die "no temporary folder can be made"
trap finish EXIT
trap 'ended SIGTERM 143' TERM
trap 'ended SIGINT 130' INT
trap 'ended SIGHUP 129' HUP
trap 'ended "its budget of $BUDGET s" 124' USR1
# A command that no signal ends must not keep the report from being made.
{
    while [ $SECONDS -lt $((deadline - reserve / 3)) ]; do
        sleep 1
        kill -0 $$ || exit
    done
    kill -USR1 $$
} >/dev/null 2>&1 3>&- 4>&- &
watchdog=$!
if [ ${#parts[@]} -eq 0 ]; then # finish makes the report
    [ -n "$python" ] && exit 0
    exit 1
fi

record what=run "parts=${parts[*]}" "date=$(date -u +%FT%TZ)" "bundle=$(cat "$bundle/VERSION")" "gpu=$(gpu)" "budget=$BUDGET"
ahead=${#parts[@]} # parts that are not done
for part in "${parts[@]}"; do
    say "$part, $(left) s left"
    began=$SECONDS
    if [ "$(left)" -lt 1 ]; then
        failure "$part" "no time was left"
        failed=1
    elif [ "$part" = kernels ] || start; then
        "part_$part" || failed=1
    else
        failed=1
    fi
    record what=part "name=$part" seconds=$((SECONDS - began))
    ahead=$((ahead - 1))
    report
done
exit $failed
