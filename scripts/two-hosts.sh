#!/usr/bin/env bash
# Trains on two "hosts" of this machine, network namespaces with a cable between them, then cuts the cable: ranks must
# give the losses that threads give, and then all end within a minute.
#
#   scripts/two-hosts.sh [LONGREEL]     as root; a longreel built with --features mpi; target/release/longreel
#                                     if not named
#
# Needs Open MPI and iproute2 (ip). Says "skipped" and ends well where namespaces cannot be made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
longreel=$(realpath "${1:-target/release/longreel}")

say() { printf 'two hosts: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

a=longreel-a-$$ b=longreel-b-$$ # namespaces, and names of hosts
work=$(mktemp -d)
clean() {
    ip netns pids "$a" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
    ip netns pids "$b" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
    ip netns del "$a" 2>/dev/null || true
    ip netns del "$b" 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 1' INT TERM HUP

if [ "$(id -u)" -ne 0 ] || ! command -v ip >/dev/null || ! ip netns add "$a" 2>"$work/why" || ! ip netns add "$b" 2>>"$work/why" ||
    ! ip -n "$a" link add cable type veth peer name cable netns "$b" 2>>"$work/why" || ! unshare --uts true 2>>"$work/why"; then
    say "skipped: network namespaces need root, ip and a kernel that allows them ($(head -n 1 "$work/why" 2>/dev/null))"
    exit 0
fi
ip -n "$a" address add 10.77.0.1/24 dev cable
ip -n "$b" address add 10.77.0.2/24 dev cable
for host in "$a" "$b"; do
    ip -n "$host" link set lo up
    ip -n "$host" link set cable up
done

# What ssh does between hosts: mpirun gives it the other host's address and a command.
cat >"$work/rsh" <<END
#!/bin/sh
shift
exec ip netns exec $b unshare --uts sh -c "hostname $b; \$*"
END
chmod +x "$work/rsh"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_plm_rsh_agent=$work/rsh OMPI_MCA_btl_tcp_if_include=10.77.0.0/24 OMPI_MCA_oob_tcp_if_include=10.77.0.0/24
# mpirun, too, is to notice that a host is gone: by itself it would wait for it for a quarter of an hour
# (docs/launching.md).
export OMPI_MCA_oob_tcp_keepalive_time=1 OMPI_MCA_oob_tcp_keepalive_intvl=10 OMPI_MCA_oob_tcp_keepalive_probes=3
on_both() {
    ip netns exec "$a" unshare --uts sh -c "hostname $a; exec \"\$@\"" sh \
        mpirun --host 10.77.0.1:2,10.77.0.2:2 --map-by node -n 4 "$longreel" "$@"
}

cat >"$work/config.toml" <<END
[run]
seed = 1
[data]
path = "datasets/bbb/train"
frames = 4
height = 32
width = 48
stride = 6
[model]
patch_size = [2, 8, 8]
num_attention_heads = 3
attention_head_dim = 16
num_layers = 2
ffn_dim = 96
[train]
steps = 3
batch = 2
checkpoint_every = 3
END
losses() { sed 's/.*"loss":\([^,}]*\).*/\1/' "$1/metrics.jsonl"; }

say "4 ranks on 2 hosts against 4 threads"
"$longreel" train "$work/config.toml" --set run.out="$work/threads" --ranks 4 2>"$work/log" || die "$(cat "$work/log")"
on_both train "$work/config.toml" --set run.out="$work/hosts" 2>"$work/log" || die "$(cat "$work/log")"
grep -q "ranks are processes: 4; hosts: 2;" "$work/log" || die "not on two hosts: $(cat "$work/log")"
if [ -z "$(losses "$work/hosts")" ] || [ "$(losses "$work/hosts")" != "$(losses "$work/threads")" ]; then
    die "other losses: $(losses "$work/hosts") instead of $(losses "$work/threads")"
fi

say "the cable is cut"
on_both train "$work/config.toml" --set run.out="$work/cut" --set train.steps=1000000 2>"$work/log" &
job=$!
for _ in $(seq 600); do
    [ -e "$work/cut/metrics.jsonl" ] && [ "$(wc -l <"$work/cut/metrics.jsonl")" -ge 8 ] && break
    kill -0 $job 2>/dev/null || die "it ended before: $(cat "$work/log")"
    sleep 0.1
done
ip -n "$a" link set cable down
cut=$SECONDS
running() { { ip netns pids "$a"; ip netns pids "$b"; } | xargs -r ps -o comm= -p | grep -c "^longreel" || true; }
while [ "$(running)" -gt 0 ]; do
    [ $((SECONDS - cut)) -le 60 ] || die "$(running) ranks are left after 60 s: $(cat "$work/log")"
    sleep 0.2
done
say "all ranks ended after $((SECONDS - cut)) s"
while kill -0 $job 2>/dev/null; do
    [ $((SECONDS - cut)) -le 60 ] || die "mpirun is left after 60 s: $(cat "$work/log")"
    sleep 0.2
done
if wait $job; then die "mpirun says that all is well"; fi
grep "^error: " "$work/log" || die "no error: $(cat "$work/log")"
grep -q "^error: rank [0-3] failed: nothing was heard from it for" "$work/log" || die "no rank is named: $(cat "$work/log")"

say "the run goes on from its last checkpoint"
last=$(find "$work/cut/checkpoints" -maxdepth 1 -name 'step-*' -printf '%f\n' | sort | tail -n 1)
steps=$((10#${last#step-} + 1))
"$longreel" train "$work/config.toml" --set run.out="$work/cut" --set train.steps="$steps" --ranks 4 --resume 2>"$work/log" ||
    die "$(cat "$work/log")"
say "all is well"
