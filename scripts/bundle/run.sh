#!/usr/bin/env bash
# Checks and measures longreel on this machine's GPU, and writes report.json and report.md beside itself.
#
#   ./run.sh            needs a driver and CUDA 13's libraries (libcublas, libcurand, libnvrtc), which LD_LIBRARY_PATH may name
#
# 1. every op against the CPU: attention, the network and its gradients, training, stashes, sampling (bin/gpu-tests)
# 2. the demo's training on the GPU
# 3. attention against PyTorch's, if python3 has a PyTorch that sees the GPU
# 4. a step of DiT-S (12 blocks of 384) at growing lengths, up to 1,048,576 tokens or what fits
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
export LONGREEL=$PWD/bin/longreel LONGREEL_ROOT=$PWD
out=$PWD/report
rm -rf "$out" && mkdir "$out"
say() { printf 'run.sh: %s\n' "$*" >&2; }

gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1)
gpu=${gpu:-unknown}
say "on $gpu"
if ! "$LONGREEL" --version >"$out/version" 2>"$out/start"; then
    cat "$out/start" >&2
    say "longreel does not start here: is there a driver, and are CUDA 13's libraries in LD_LIBRARY_PATH?"
    exit 1
fi
failed=0

say "1. the GPU's numbers against the CPU's"
gunzip -kf bin/gpu-tests.gz && chmod +x bin/gpu-tests
if bin/gpu-tests --test-threads 1 >"$out/tests.txt" 2>&1; then checks=passed; else checks=FAILED failed=1; fi
tail -n 4 "$out/tests.txt" >&2

say "2. the demo"
demo=(train configs/demo.toml --set train.device=cuda --set parallel.ranks=1 --set "run.out=$out/demo" --set train.steps=200)
start=$(date +%s)
if "$LONGREEL" "${demo[@]}" >"$out/demo.txt" 2>&1; then demo_state=trained; else demo_state=FAILED failed=1; fi
demo_seconds=$(($(date +%s) - start))
losses=$(sed -n 's/.*"loss":\([0-9.e+-]*\).*/\1/p' "$out/demo/metrics.jsonl" 2>/dev/null)
first=$(head -n 1 <<<"$losses") last=$(tail -n 1 <<<"$losses")

say "3. attention"
for tokens in 8192 32768 131072; do
    for dim in 64 128; do
        shape=(--tokens "$tokens" --heads 12 --head-dim "$dim" --dtype bf16)
        "$LONGREEL" bench attention --device cuda --json --runs 5 "${shape[@]}" >>"$out/attention.jsonl" 2>>"$out/errors.txt" || failed=1
        if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
            python3 peers/attention.py --device cuda "${shape[@]}" >>"$out/attention_torch.jsonl" 2>>"$out/errors.txt" || failed=1
        fi
    done
done

say "4. a step of DiT-S"
for frames in 8 32 128 256 512 1024; do # of 32 x 32 tokens each
    step=(--frames "$frames" --height 64 --width 64 --layers 12 --heads 6 --head-dim 64 --dtype bf16 --steps 2)
    if ! timeout 1800 "$LONGREEL" bench step --device cuda --json "${step[@]}" >>"$out/step.jsonl" 2>>"$out/errors.txt"; then
        say "no further than $((frames * 1024)) tokens: $(tail -n 1 "$out/errors.txt")"
        break
    fi
done

# ---- the report -----------------------------------------------------------------------------------------------------

lines() { if [ -s "$1" ]; then paste -sd, "$1"; fi; }
number() { sed -n "s/.*\"$2\":\([0-9.e+-]*\).*/\1/p" <<<"$1"; }
cat >report.json <<JSON
{"gpu": "$gpu", "date": "$(date -u +%F)", "version": "$(cat VERSION)", "checks": "$checks",
 "demo": {"state": "$demo_state", "seconds": $demo_seconds, "first_loss": ${first:-null}, "last_loss": ${last:-null}},
 "attention": [$(lines "$out/attention.jsonl")], "attention_torch": [$(lines "$out/attention_torch.jsonl")],
 "step": [$(lines "$out/step.jsonl")]}
JSON
{
    echo "# longreel on a GPU"
    echo
    echo "$gpu; $(date -u +%F); longreel $(cat VERSION); \`./run.sh\`."
    echo
    echo "- The GPU's numbers against the CPU's: $checks ($(grep -o '[0-9]* passed; [0-9]* failed' "$out/tests.txt" | tail -n 1))."
    echo "- The demo, 200 steps: $demo_state in $demo_seconds s, loss ${first:-none} to ${last:-none}."
    echo
    echo "| attention, bf16, 12 heads | forward, s | forward+backward, s | TFLOP/s | of cuBLAS's peak |"
    echo "|---|---|---|---|---|"
    while read -r line; do
        rate=$(awk "BEGIN {print $(number "$line" fwdbwd_gflops) / 1000}") share=$(number "$line" fwdbwd_share)
        echo "| longreel, $(number "$line" tokens) x $(number "$line" head_dim) | $(number "$line" fwd_s) | $(number "$line" fwdbwd_s) | $rate | $share |"
    done < <(cat "$out/attention.jsonl" 2>/dev/null)
    while read -r line; do
        line=${line//\": /\":}
        rate=$(awk "BEGIN {print $(number "$line" fwdbwd_gflops) / 1000}")
        echo "| PyTorch, $(number "$line" tokens) x $(number "$line" head_dim) | $(number "$line" fwd_s) | $(number "$line" fwdbwd_s) | $rate | |"
    done < <(cat "$out/attention_torch.jsonl" 2>/dev/null)
    echo
    echo "| DiT-S, bf16, one step | s | tokens/s | memory of the GPU, GiB |"
    echo "|---|---|---|---|"
    while read -r line; do
        echo "| $(number "$line" tokens) tokens | $(number "$line" step_s) | $(number "$line" tokens_per_s) | $(number "$line" gpu_gib) |"
    done < <(cat "$out/step.jsonl" 2>/dev/null)
} >report.md
say "report.md and report.json"
exit $failed
