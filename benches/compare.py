#!/usr/bin/env python3
"""Longreel against PyTorch on this CPU: every claim about speed and memory, measured in turn.

    benches/compare.py                              all rows (hours); --list names them
    benches/compare.py --rows 'attention.*bf16'     some
    benches/compare.py --json results.json --docs   and into docs/performance.md
    benches/compare.py --rows '^(vae|text|lora)' --json results.json --docs finetuning    into another of its tables
    benches/compare.py --quick                      tiny shapes: does everything run? The figures mean nothing.

A round runs both sides once, so that a slow spell of the machine meets both; the first of a round alternates. A ratio
is theirs over ours, the median over rounds; a target is met if it is reached. PyTorch gets tcmalloc, as it advises, if
that is installed. Only the same work is compared: shapes, dtype, threads and ranks are read from what both sides print.

Work that is in the --json file already stays there unless it is measured again, so a table may be made in several
sittings.
"""
import argparse
import datetime
import glob
import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys

import floors

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS, DOCS = ROOT / "target/release/longreel", ROOT / "docs/performance.md"
SAME = ("tokens", "in", "out", "layers", "dim", "heads", "head_dim", "half", "kind", "frames", "height", "width",
        "prompts", "dtype", "threads", "ranks", "lora")
FORWARD, BOTH = ("fwd_s", "forward"), ("fwdbwd_s", "forward+backward")
STEP, MEMORY = ("step_s", "step"), ("peak_rss_gib", "memory")


def fail(message):
    sys.exit(f"compare.py: {message}")


def warn(message):
    print(f"WARNING: {message}", file=sys.stderr, flush=True)


def warn_if_busy():
    if os.getloadavg()[0] > 0.5:
        warn(f"the machine is not idle (load {os.getloadavg()[0]:.1f}): not even ratios can be trusted")


class Work:
    """One command a side; `rows` are what of their results is compared."""

    def __init__(self, kind, name, dtype, shape, rows, ranks=1):
        self.kind, self.name, self.dtype, self.shape, self.ranks = kind, name, dtype, shape, ranks
        self.make = []  # flags of benches/text_model.py
        self.threads = max(1, len(os.sched_getaffinity(0)) // ranks)
        self.rows = [dict(name=f"{name}-{label}", key=key, label=label, target=target) for (key, label), target in rows]

    def prepare(self, peers):
        """Makes the model that a text encoder's rows are measured on, if it is not there."""
        if self.kind != "text" or pathlib.Path(self.shape["model"]).exists():
            return
        make = [str(peers / "bin/python"), str(ROOT / "benches/text_model.py"), self.shape["model"]]
        if subprocess.run([*make, *self.make]).returncode:
            fail(f"{shlex.join(make)} failed")

    def flags(self):
        flags = self.shape | dict(dtype=self.dtype, threads=self.threads)
        return [text for k, v in flags.items() for text in ("--" + k.replace("_", "-"), str(v))]

    def ours(self):
        ranks = ["--ranks", str(self.ranks)] if self.kind == "step" else []
        kind = "step" if self.kind == "lora" else self.kind
        return [str(OURS), "bench", kind, "--json", *self.flags(), *ranks], dict(os.environ)

    def theirs(self, peers):
        name = dict(step="wan_step.py", lora="wan_lora_step.py").get(self.kind, f"{self.kind}.py")
        script = ROOT / "benches/peers" / name
        start = [str(peers / "bin/python")]
        if self.ranks > 1:  # --standalone: on a port that is free
            start = [str(peers / "bin/torchrun"), "--standalone", "--nproc_per_node", str(self.ranks)]
        # torchrun compiles DeepSpeed's shared-memory op with ninja, and sets OMP_NUM_THREADS to 1 unless it is set.
        env = os.environ | dict(PATH=f"{peers / 'bin'}:{os.environ['PATH']}", OMP_NUM_THREADS=str(self.threads))
        if tcmalloc():
            env["LD_PRELOAD"] = tcmalloc()
        return [*start, str(script), *self.flags()], env


def tcmalloc():
    return next(iter(sorted(glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4"))), None)


def works(quick):
    """All there is to compare."""
    for tokens, heads, dim, runs in ((8192, 6, 64, 5), (8192, 6, 128, 5), (32768, 2, 64, 2), (32768, 2, 128, 2)):
        shape = dict(tokens=tokens // 64 if quick else tokens, heads=heads, head_dim=dim, runs=1 if quick else runs)
        for dtype, forward, both in (("bf16", 2.0, 1.7), ("f32", 1.25, 1.25)):
            name = f"attention-{tokens}x{heads}x{dim}-{dtype}"
            yield Work("attention", name, dtype, shape, [(FORWARD, forward), (BOTH, both)])
    for inner, out in ((384, 1536), (1536, 384)):
        shape = {"tokens": 64 if quick else 8192, "in": inner, "out": out, "runs": 1 if quick else 20}
        yield Work("linear", f"linear-{inner}x{out}-bf16", "bf16", shape, [(FORWARD, 1.0), (BOTH, 1.0)])
    for half in ("encode", "decode"):
        for dtype, target in (("f32", 1.2), ("bf16", 3.0)):
            shape = dict(half=half, frames=5 if quick else 17, height=32 if quick else 256, width=32 if quick else 448)
            yield Work("vae", f"vae-{half}-{dtype}", dtype, shape, [(FORWARD, target), (MEMORY, 4.0)])
    # Wan 2.1's 1.3B at 81 frames of 416 x 480, but for its number of blocks: 8190 tokens.
    shape = dict(frames=21, height=60, width=26, heads=12, head_dim=128, ffn_dim=8960, text=64, text_dim=4096, layers=4,
                 lora=32, steps=1)
    shape |= dict(frames=2, height=4, width=4, heads=2, head_dim=16, ffn_dim=48, text_dim=24, lora=3) if quick else {}
    yield Work("lora", "lora-8190-bf16", "bf16", shape, [(STEP, 2.0), (MEMORY, 2.0)])
    for dtype, layers, memory in (("f32", 4, 6.0), ("bf16", 4, 4.0)):
        model = ROOT / "runs" / ("text-quick" if quick else f"text-umt5-{layers}")
        shape = dict(model=str(model), prompts=2 if quick else 20, tokens=60, runs=1 if quick else 2)
        work = Work("text", f"text-{dtype}", dtype, shape, [(FORWARD, 1.0), (MEMORY, memory)])
        work.make = ["--layers", str(layers), *(["--quick"] if quick else [])]
        yield work
    for ranks in (1, 2):
        for tokens, frames, layers, steps, target in ((8192, 8, 4, 2, 2.0), (32768, 32, 2, 1, 2.3)):
            shape = dict(frames=frames, height=64, width=64, layers=layers, heads=6, head_dim=64, steps=steps)
            shape |= dict(height=4, width=4, heads=2, head_dim=16, steps=1) if quick else {}
            rows = [(STEP, target)] + ([(MEMORY, 2.0)] if (ranks, tokens) == (1, 32768) else [])
            yield Work("step", f"step-{tokens}-{ranks}rank{'s' * (ranks > 1)}-bf16", "bf16", shape, rows, ranks)
            if (ranks, tokens) == (1, 8192):
                yield Work("step", f"step-{tokens}-1rank-f32", "f32", shape, [(STEP, 1.0)])


def run(command, env, strict=True):
    """The JSON line that a command prints. Unless `strict`, it stands though the command fails after it."""
    try:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    except OSError as e:
        fail(f"{shlex.join(command)}: {e}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode and len(lines) == 1 and not strict:
        warn(f"{shlex.join(command)}: exit code {done.returncode} after its result")
        return json.loads(lines[0]) | dict(exit=done.returncode)
    if done.returncode or len(lines) != 1:
        fail(f"{shlex.join(command)}: exit code {done.returncode}, {len(lines)} lines of JSON; one was wanted")
    return json.loads(lines[0])


def check_same(name, pair):
    """Refuses to compare different work."""
    for key in SAME:
        ours, theirs = pair["ours"].get(key), pair["theirs"].get(key)
        if ours != theirs:
            fail(f"{name}: not the same work: {key} is {ours} in ours and {theirs} in theirs")


def measure(work, pairs, peers):
    work.prepare(peers)
    commands = dict(ours=work.ours(), theirs=work.theirs(peers))
    rounds = []
    for i in range(pairs):
        pair = dict(load=os.getloadavg()[0])
        for side in ("ours", "theirs") if i % 2 == 0 else ("theirs", "ours"):
            # torchrun's processes abort now and then when they end, after all that was measured.
            pair[side] = run(*commands[side], strict=side == "ours" or work.ranks == 1)
        check_same(work.name, pair)
        rounds.append(pair)
        for row in work.rows:
            ours, theirs = pair["ours"][row["key"]], pair["theirs"][row["key"]]
            print(f"{row['name']}: round {i + 1}: ours {ours:.4g}, theirs {theirs:.4g}, ratio {theirs / ours:.2f}",
                  file=sys.stderr, flush=True)
    return rounds


def rows_of(work, rows, pairs):
    """The rows of a measured work with their medians and ratios."""
    for pair in pairs:
        check_same(work.name, pair)
    for row in rows:
        ours, theirs = ([pair[side][row["key"]] for pair in pairs] for side in ("ours", "theirs"))
        ratios = [b / a for a, b in zip(ours, theirs)]
        yield row | dict(ours=statistics.median(ours), theirs=statistics.median(theirs), ratios=ratios,
                         ratio=statistics.median(ratios), result=pairs[0]["ours"], kind=work.kind)


def title(row):
    result = row["result"]
    if row["kind"] == "attention":
        shape = f"attention, {result['tokens']} tokens, {result['heads']} heads of {result['head_dim']}"
    elif row["kind"] == "linear":
        shape = f"linear, {result['tokens']} x {result['in']} to {result['out']}"
    elif row["kind"] == "vae":
        size = f"{result['frames']} frames of {result['width']} x {result['height']}"
        shape = f"Wan {result['kind']} VAE, {result['half']} {size}"
    elif row["kind"] == "text":
        texts = f"{result['prompts']} prompts of {result['tokens']} tokens"
        shape = f"UMT5 of {result['dim']}, {result['layers']} layers, {texts}"
    else:
        shape = "LoRA " if row["kind"] == "lora" else ""
        shape += f"step, {result['tokens']} tokens, {result['layers']} blocks of {result['dim']}"
        shape += f", {result['ranks']} ranks" if result["ranks"] > 1 else ""
    plain = row["label"] == "step" or (row["kind"], row["label"]) in (("vae", "forward"), ("text", "forward"))
    return f"{shape}, {result['dtype']}" + ("" if plain else f", {row['label']}")


def table(rows):
    lines = ["| work | ours | theirs | theirs / ours (rounds) | target | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        unit = "GiB" if row["label"] == "memory" else "s"
        low, high = min(row["ratios"]), max(row["ratios"])
        met = "yes" if row["ratio"] >= row["target"] else "no"
        lines.append(f"| {title(row)} | {row['ours']:.4g} {unit} | {row['theirs']:.4g} {unit} | {row['ratio']:.2f} "
                     f"({low:.2f} to {high:.2f}) | {row['target']:g} | {met} |")
    return "\n".join(lines)


def where(results):
    """One sentence on how the records of a file came about."""
    records = results["works"].values()
    several = lambda key: ", ".join(sorted({str(r[key]) for r in records}))
    rounds = min(len(r["pairs"]) for r in records)
    busy = max(pair["load"] for r in records for pair in r["pairs"][:1])
    return (f"{several('cpu')}, {several('processors')} processors; {several('date')}; commit {several('commit')}; "
            f"PyTorch {several('torch')}; medians of at least {rounds} rounds; load of the machine before a work's "
            f"first round at most {busy:.1f}.")


def origin():
    """What a record says of itself."""
    git = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True)
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return dict(date=datetime.date.today().isoformat(), commit=git.stdout.strip(), cpu=cpu[1] if cpu else "?",
                processors=len(os.sched_getaffinity(0)))


def rewrite(name, text, docs=DOCS):
    """Puts `text` into the page's block of this name."""
    page = docs.read_text()
    start, end = f"<!-- table:{name} -->\n", "<!-- /table -->"
    if page.count(start) != 1 or end not in page.split(start)[1]:
        fail(f"{docs}: one block {start.strip()} ... {end} wanted")
    before, rest = page.split(start)
    docs.write_text(before + start + "\n" + text + "\n\n" + end + rest.split(end, 1)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="rounds (%(default)s)")
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name has a match")
    parser.add_argument("--list", action="store_true", help="print the rows' names and targets, and stop")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep all results here")
    parser.add_argument("--report", action="store_true", help="measure nothing: the table of what --json has")
    parser.add_argument("--docs", nargs="?", const="compare", metavar="TABLE",
                        help=f"rewrite this table of {DOCS.relative_to(ROOT)} (%(const)s, and that of the floors)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one round")
    parser.add_argument("--peers", type=pathlib.Path, default=pathlib.Path.home() / ".cache/longreel-peers",
                        help="the environment of peers/setup.sh (%(default)s)")
    a = parser.parse_args()
    if a.pairs < 1:
        fail("--pairs must be at least 1")
    if a.quick and a.docs:
        fail("--docs: what --quick measures does not go into the documentation")
    if a.report and not a.json:
        fail("--report: name the file of results with --json")
    try:
        chosen = [(work, [row for row in work.rows if re.search(a.rows, row["name"])]) for work in works(a.quick)]
    except re.error as e:
        fail(f"--rows {a.rows}: {e}")
    chosen = [(work, rows) for work, rows in chosen if rows]
    if not chosen:
        fail(f"--rows {a.rows}: no such row; --list has all")
    if a.list:
        for row in (row for _, rows in chosen for row in rows):
            print(f"{row['name']:46} {row['target']:g}")
        return

    results = dict(quick=a.quick, works={})
    if a.json and (a.json.exists() or a.report):
        try:
            results = json.loads(a.json.read_text())
        except (OSError, ValueError) as e:
            fail(f"{a.json}: {e}")
        if results["quick"] != a.quick:
            fail(f"{a.json}: holds results {'with' if results['quick'] else 'without'} --quick; name another file")
    if not a.report:
        if not OURS.exists():
            fail(f"no {OURS}: make build")
        if not (a.peers / "bin/python").exists():
            fail(f"no peers in {a.peers}: make bench-peers-setup, or name their folder with --peers")
        if not tcmalloc():
            warn("no tcmalloc here: PyTorch is not at its best (apt-get install libtcmalloc-minimal4)")
        warn_if_busy()
        results["peak"] = run([str(OURS), "bench", "peak", "--json"], None)
        for work, _ in chosen:
            pairs = measure(work, 1 if a.quick else a.pairs, a.peers)
            results["works"][work.name] = origin() | dict(torch=pairs[0]["theirs"]["torch"], pairs=pairs)
            if a.json:  # at once: the rest may take hours
                a.json.write_text(json.dumps(results, indent=1) + "\n")

    rows = [row for work, rows in chosen if work.name in results["works"]
            for row in rows_of(work, rows, results["works"][work.name]["pairs"])]
    if not rows:
        fail(f"{a.json}: has none of these rows")
    print(table(rows), where(results), sep="\n\n")
    if a.docs:
        rewrite(a.docs, table(rows) + "\n\n" + where(results))
        if a.docs == "compare":
            rewrite("floors", floors.table(rows, results["peak"], title))


if __name__ == "__main__":
    main()
