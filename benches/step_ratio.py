#!/usr/bin/env python3
"""A training step of longreel against one of diffusers, at one shape, measured in turn on this machine.

    benches/step_ratio.py [OPTIONS] -- COMMAND...

What follows `--` is any command whose last line of JSON on stdout has `step_s`, the seconds of a step; where it has
`tokens`, `layers`, `dim`, `heads` or `dtype` too, they must be the peer's. The peer is peers/wan_step.py, with tcmalloc
preloaded if it is installed (apt-get install libtcmalloc-minimal4), or, by --peer, any other such command.

Both run in each round, so that a slow spell of the machine meets both; the first in a round alternates. Printed are the
rounds, the medians and the ratio of the medians (below 1: longreel is faster), and how far the rounds' ratios spread.
"""
import argparse
import glob
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys

SAME = ("tokens", "layers", "dim", "heads", "dtype")


def step(command, env):
    """Runs a command; the last JSON object among its lines, which must have step_s."""
    try:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    except OSError as e:
        sys.exit(f"{shlex.join(command)}: {e}")
    if done.returncode:
        sys.exit(f"{shlex.join(command)}: exit code {done.returncode}")
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            result = json.loads(line)
            if "step_s" in result:
                return result
    sys.exit(f"{shlex.join(command)}: no JSON line with step_s on stdout")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(frames=8, height=64, width=64, layers=4, heads=6, head_dim=64, steps=3).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help="of the peer (%(default)s)")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the peer (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=pathlib.Path, default=pathlib.Path.home() / ".cache/longreel-peers",
                        help="the environment of peers/setup.sh (%(default)s)")
    parser.add_argument("--peer", type=shlex.split, help="a command to run in place of peers/wan_step.py")
    parser.add_argument("ours", nargs="+", metavar="COMMAND", help="after --: the command that times our step")
    a = parser.parse_args()

    env = dict(os.environ)
    tcmalloc = sorted(glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4"))
    peer, peer_env = a.peer, env
    if peer is None:
        if not (a.peers / "bin/python").exists():
            sys.exit(f"no peers in {a.peers}: make bench-peers-setup, or name their folder with --peers")
        peer = [str(a.peers / "bin/python"), str(pathlib.Path(__file__).parent / "peers/wan_step.py"),
                "--dtype", a.dtype, "--threads", str(a.threads)]
        for name in ("frames", "height", "width", "layers", "heads", "head_dim", "steps"):
            peer += [f"--{name.replace('_', '-')}", str(getattr(a, name))]
        if tcmalloc:
            peer_env = env | {"LD_PRELOAD": tcmalloc[0]}
        else:
            print("note: no tcmalloc here, so the peer is not at its best (apt-get install libtcmalloc-minimal4)")
    if os.getloadavg()[0] > 0.5:
        print(f"note: the machine is not idle (load {os.getloadavg()[0]:.1f}): not even the ratio can be trusted")

    ours, theirs = [], []
    for i in range(a.rounds):
        turns = [(ours, a.ours, env), (theirs, peer, peer_env)]
        for results, command, environment in turns if i % 2 == 0 else reversed(turns):
            results.append(step(command, environment))
        for key in SAME:
            if key in ours[-1] and key in theirs[-1] and ours[-1][key] != theirs[-1][key]:
                sys.exit(f"not the same work: {key} is {ours[-1][key]} here and {theirs[-1][key]} there")
        s, t = ours[-1]["step_s"], theirs[-1]["step_s"]
        print(f"round {i + 1}: longreel {s:.3f} s, peer {t:.3f} s, ratio {s / t:.3f}", flush=True)

    s, t = (statistics.median(r["step_s"] for r in results) for results in (ours, theirs))
    ratios = [x["step_s"] / y["step_s"] for x, y in zip(ours, theirs)]
    shape = ", ".join(f"{k} {theirs[-1][k]}" for k in SAME if k in theirs[-1])
    print(f"{shape}\nmedians of {a.rounds}: longreel {s:.3f} s, {theirs[-1].get('peer', 'peer')} {t:.3f} s: "
          f"ratio {s / t:.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})")
    print(json.dumps(dict(ours=ours, theirs=theirs, ratio=round(s / t, 4))))


if __name__ == "__main__":
    main()
