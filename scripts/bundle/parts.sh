# The parts of run.sh. Each looks at the time before it begins something, and records results as they come.
# shellcheck shell=bash disable=SC2154 # variables of run.sh and start.sh

# Adds the end of a command's output to one of the logs.
keep() {
    {
        printf '== %s\n' "$2"
        tail -c 65536 "$1"
    } >>"$results/$3"
}

part_kernels() {
    local seconds status
    doing=kernels.py
    if [ ! -f "$bundle/kernels.py" ] || [ ! -d "$bundle/cubins" ]; then
        failure kernels "this bundle has no kernels.py with cubins/"
        return 1
    fi
    if [ "$has_torch" = 0 ]; then
        failure kernels "no python3 with torch: looked on the PATH, in the active environment and in /opt; PYTHON may name one"
        return 1
    fi
    seconds=$(($(left) / ahead)) # the parts after it are to have their share
    bounded "$seconds" "$python" "$bundle/kernels.py" --out "$results" --budget $((seconds > 10 ? seconds - 5 : seconds)) \
        >"$scratch/kernels" 2>&1
    status=$?
    keep "$scratch/kernels" kernels.py log.txt
    [ $status -eq 0 ] || failure kernels "$(state $status): $(last_line "$scratch/kernels")"
    return $status
}

# Sets LONGREEL_ROOT: where configs, clips and golden files lie, in the bundle or in the repository around it.
find_root() {
    local folder=$bundle
    while :; do
        if [ -e "$folder/configs/demo.toml" ] && [ -d "$folder/datasets/bbb" ] && [ -d "$folder/tests/golden" ]; then
            export LONGREEL_ROOT=$folder
            return
        fi
        [ "$folder" != / ] || return 1
        folder=$(dirname "$folder")
    done
}

part_checks() {
    local name ok=0 demo_time
    if ! find_root; then
        failure checks "neither the bundle nor a folder above it has configs/demo.toml, datasets/bbb and tests/golden: put it into longreel's \
repository, or pack it with --alone"
        return 1
    fi
    unpack gpu-tests || { failure checks "$why"; return 1; }
    demo_time=$(($(left) / 6))
    if ! timeout 60 "${with[@]}" "$scratch/bin/gpu-tests" --list --format terse >"$scratch/tests" 2>"$scratch/error"; then
        failure checks "bin/gpu-tests does not start: $(last_line "$scratch/error")"
        return 1
    fi
    while read -r name; do
        [[ $name =~ ${TESTS:-.} ]] || continue
        check "$name" $(($(left) - demo_time)) || ok=1
        report
    done < <(sed -n 's/: test$//p' "$scratch/tests")
    demo || ok=1
    return $ok
}

# One of the tests, within so many seconds.
check() {
    local began=$SECONDS status state reason why=''
    doing="test $1"
    if [ "$2" -lt 1 ]; then
        record what=check "name=$1" "state=no time" seconds=0
        return 1
    fi
    bounded "$2" "${with[@]}" "$scratch/bin/gpu-tests" --exact "$1" --test-threads 1 --show-output >"$scratch/test" 2>&1
    status=$?
    state=$(state $status)
    if [ $status -eq 0 ] && reason=$(grep -m 1 '^skipped: ' "$scratch/test"); then
        state=skipped why=${reason#skipped: }
    elif [ $status -ne 0 ]; then
        why=$(grep -A 1 -m 1 'panicked at' "$scratch/test" | tail -n 1 | cut -c -400)
        [ -n "$why" ] || why=$(last_line "$scratch/test")
    fi
    record what=check "name=$1" "state=$state" seconds=$((SECONDS - began)) "why=$why"
    keep "$scratch/test" "$1: $state" tests.txt
    say "$1: $state"
    return $status
}

# Trains the demo and draws samples of it.
demo() {
    local began=$SECONDS steps=${DEMO_STEPS:-200} status why='' losses
    local -a more
    read -ra more <<<"${DEMO_ARGS:-}"
    doing="the demo"
    # In f32, as its heads of 48 features are none of those that the kernels for bf16 have.
    bounded "$(left)" env -C "$LONGREEL_ROOT" "${with[@]}" "$LONGREEL" train configs/demo.toml --set train.device=cuda \
        --set train.dtype=f32 --set parallel.ranks=1 --set "run.out=$scratch/demo" --set "train.steps=$steps" "${more[@]}" \
        >"$scratch/training" 2>&1
    status=$?
    keep "$scratch/training" "the demo" log.txt
    [ $status -eq 0 ] || why=$(last_line "$scratch/training")
    # Means of the first and the last steps, as single ones differ by their clips.
    losses=$(sed -n 's/.*"loss": *\([0-9.e+-]*\).*/\1/p' "$scratch/demo/metrics.jsonl" 2>/dev/null)
    mean() { awk '{sum += $1} END {if (NR) printf "%.5g", sum / NR; else print "none"}'; }
    record what=demo "state=$(state $status)" seconds=$((SECONDS - began)) steps="$steps" "first_loss=$(head -n 10 <<<"$losses" | mean)" \
        "last_loss=$(tail -n 10 <<<"$losses" | mean)" "why=$why"
    [ $status -eq 0 ] || return $status
    doing="samples of the demo"
    bounded "$(left)" env -C "$LONGREEL_ROOT" "${with[@]}" "$LONGREEL" sample "$scratch/demo" --count 8 -o "$results/samples.png" \
        --device cuda >"$scratch/sampling" 2>&1
    status=$?
    if [ $status -ne 0 ]; then
        keep "$scratch/sampling" "$doing" log.txt
        failure "$doing" "$(state $status): $(last_line "$scratch/sampling")"
    fi
    return $status
}

# A bench of longreel, whose line of JSON is a result, within so many seconds. The first argument is what to call it.
bench() {
    local name=$1 seconds=$2 status
    shift 2
    doing=$name
    bounded "$seconds" "${with[@]}" "$LONGREEL" bench "$@" --device cuda --json >"$scratch/bench" 2>"$scratch/error"
    status=$?
    if [ $status -eq 0 ]; then
        cat "$scratch/bench" >>"$results/results.jsonl"
    else
        keep "$scratch/error" "$name" log.txt
        failure "$name" "$(state $status): $(last_line "$scratch/error")"
    fi
    report
    return $status
}

part_attention() {
    local tokens dim status ok=0 torch_time=0
    read -ra lengths <<<"${ATTENTION_TOKENS:-8192 32768 131072 262144}"
    [ "$has_torch" = 0 ] || torch_time=$(($(left) / 3))
    for tokens in "${lengths[@]}"; do
        for dim in 64 128; do
            bench "attention, $tokens x $dim" $(($(left) - torch_time)) attention --runs 5 --tokens "$tokens" --heads 12 --head-dim "$dim" \
                --dtype bf16 || ok=1
        done
    done
    if [ "$has_torch" = 0 ]; then
        failure "PyTorch's attention" "no python3 with torch: PYTHON may name one"
        return 1
    fi
    doing="PyTorch's attention"
    # One process for all: torch alone takes ten seconds to start.
    bounded "$(left)" "$python" "$bundle/attention.py" --device cuda --tokens "${lengths[@]}" --heads 12 --head-dim 64 128 --dtype bf16 \
        --backend flash cudnn --runs 5 >>"$results/results.jsonl" 2>"$scratch/error"
    status=$?
    keep "$scratch/error" "$doing" log.txt
    if [ $status -ne 0 ]; then
        failure "$doing" "$(state $status): $(last_line "$scratch/error")"
        ok=1
    fi
    return $ok
}

# Lengths up to 1,048,576 tokens. What the next one takes is known from the one before: attention grows with the square.
part_step() {
    local frames before=0 seconds=0 wanted name side=${STEP_SIDE:-64}
    local -a steps
    for frames in ${STEP_FRAMES:-8 32 128 256 512 1024}; do # of 32 x 32 tokens each, as a patch has 2 x 2 of 64 x 64
        name="a step of $((frames * (side / 2) * (side / 2))) tokens" wanted=1
        [ "$before" = 0 ] || wanted=$(awk "BEGIN {printf \"%d\", $seconds * ($frames / $before) ^ 2 + 1}")
        # A step of many seconds needs no warming up, and there is no time for several.
        steps=(--steps 2 --warmup 1)
        if [ "$wanted" -gt 15 ]; then steps=(--steps 1 --warmup 0); else wanted=$((3 * wanted)); fi
        if [ "$wanted" -gt "$(left)" ]; then
            failure "$name" "not begun: it would take about $wanted s, and $(left) s are left"
            return 1
        fi
        bench "$name" "$(left)" step --frames "$frames" --height "$side" --width "$side" --layers "${STEP_LAYERS:-12}" --heads 6 \
            --head-dim 64 --dtype bf16 "${steps[@]}" || return 1
        seconds=$(sed -n 's/.*"step_s": *\([0-9.e+-]*\).*/\1/p' "$scratch/bench") before=$frames
    done
}
