#!/usr/bin/env python3
"""Makes report.md and report.json of the results that run.sh has left in some folders, however far it came.

    report.py --out FOLDER RESULTS...

RESULTS are folders with results.jsonl or kernels.jsonl, lines of JSON each. Of what was measured twice the last counts.
A line that was cut off is left out, and counted.
"""

import argparse
import json
import os
import pathlib

LONG = 200  # characters of a reason in report.md; report.json has all


def lines_of(folders, name):
    """The lines of these files, and how many could not be read."""
    lines, cut = [], 0
    for path in (folder / name for folder in folders):
        if path.is_file():
            for text in path.read_text(errors="replace").splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    line = None
                if isinstance(line, dict):
                    lines.append(line)
                else:
                    cut += bool(text.strip())
    return lines, cut


def last(lines, *keys):
    """The last of the lines that agree in these keys, in the order of the first."""
    found = {}
    for line in lines:
        found[tuple(line.get(key) for key in keys)] = line
    return list(found.values())


def number(value, scale=1.0):
    return f"{value * scale:.4g}" if isinstance(value, (int, float)) else "-"


def seconds(value):
    return f"{number(value)} s"


def reason(line):
    text = str(line.get("why") or "").replace("|", "/")
    return text if len(text) <= LONG else text[: LONG - 3] + "..."


def collect(folders):
    lines, cut = lines_of(folders, "results.jsonl")
    kernels, more = lines_of(folders, "kernels.jsonl")
    by = {}
    for line in lines:
        by.setdefault(line.get("what", "torch" if "peer" in line else None), []).append(line)
    shape = ("tokens", "heads", "head_dim", "dtype", "backend")
    return {
        "runs": by.get("run", []),
        "parts": by.get("part", []),
        "failures": last(by.get("failure", []), "name", "why"),
        "peak": (by.get("peak") or [None])[-1],
        "checks": last(by.get("check", []), "name"),
        "demo": (by.get("demo") or [None])[-1],
        "attention": last(by.get("attention", []), *shape),
        "attention_torch": last(by.get("torch", []), *shape),
        "step": last(by.get("step", []), "tokens"),
        "kernels": kernels,
        "lines_cut_off": cut + more,
    }


def constants(found):
    """What a planner wants to know of the GPU: names, values and units."""
    rows, peak = [], found["peak"] or {}
    longest = max(found["attention"], key=lambda line: (line["tokens"], line["head_dim"]), default=None)
    if longest:
        where = f"{longest['tokens']} tokens, {longest['heads']} heads of {longest['head_dim']}"
        for name, key in [("forward", "fwd"), ("forward and backward", "fwdbwd")]:
            rows.append((f"attention, {name}, {where}", number(longest.get(f"{key}_gflops"), 1e-3), "TFLOP/s"))
            rows.append((f"attention, {name}, of the products' rate", number(longest.get(f"{key}_share"), 100), "%"))
    for name, key, scale, unit in [
        ("products in bf16", "bf16_gflops", 1e-3, "TFLOP/s"),
        ("products in f32", "f32_gflops", 1e-3, "TFLOP/s"),
        ("the GPU's memory, read and written", "copy_gb_s", 1, "GB/s"),
        ("pinned memory to the GPU", "from_host_gb_s", 1, "GB/s"),
        ("the GPU to pinned memory", "to_host_gb_s", 1, "GB/s"),
    ]:
        if key in peak:
            rows.append((name, number(peak[key], scale), unit))
    if found["step"]:
        step = max(found["step"], key=lambda line: line["tokens"])
        rows.append((f"a step of {step['tokens']} tokens", number(step.get("step_gflops"), 1e-3), "TFLOP/s"))
    return rows


def kernels_section(lines):
    """The Python checks of the kernels alone."""
    checked = [line for line in lines if line.get("kind") in ("check", "bits")]
    wrong = [line for line in checked if not line.get("passed")] + [
        line for line in lines if line.get("kind") == "error"
    ]
    names = {line["kernel"] for line in checked if "kernel" in line}
    ended = any(line.get("kind") == "end" for line in lines)
    out = [
        f"{len(checked)} results of {len(names)} kernels, {len(wrong)} wrong"
        f"{'' if ended else '; it did not come to its end'}.",
        "",
    ]
    for line in wrong[:10]:
        what = " ".join(str(line[key]) for key in ("case", "kernel", "what") if line.get(key))
        said = line.get("message") or f"{number(line.get('error'))} over {number(line.get('bound'))}"
        out.append(f"- WRONG: {what}: {str(said).strip().splitlines()[-1][:LONG]}")
    out += [f"- {line['what']}: {number(line['rate'])} {line['unit']}" for line in lines if line.get("kind") == "peak"]
    times = [line for line in lines if line.get("kind") == "time"]
    if times:
        out += ["", "| kernels | by | ms | rate | share |", "|---|---|---|---|---|"]
        out += [
            f"| {line.get('what')} | {line.get('who')} | {number(line.get('seconds'), 1e3)} | "
            f"{number(line.get('rate'))} {line.get('unit', '')} | {number(line.get('share'), 100)} % |"
            for line in times[:40]
        ]
    return out


def attention_section(found):
    out = [
        "| attention | by | forward | forward and backward | TFLOP/s | of the products' rate |",
        "|---|---|---|---|---|---|",
    ]
    lines = [("longreel", line) for line in found["attention"]]
    lines += [(f"PyTorch, {line.get('backend', 'default')}", line) for line in found["attention_torch"]]
    for who, line in sorted(lines, key=lambda pair: (pair[1].get("tokens", 0), pair[1].get("head_dim", 0))):
        what = f"| {line.get('tokens')} tokens, {line.get('heads')} x {line.get('head_dim')} | {who} |"
        if "error" in line:
            out.append(f"{what} {str(line['error'])[:LONG]} | | | |")
            continue
        share = f"{number(line['fwdbwd_share'], 100)} %" if "fwdbwd_share" in line else ""
        out.append(f"{what} {seconds(line.get('fwd_s'))} | {seconds(line.get('fwdbwd_s'))} | "
                   f"{number(line.get('fwdbwd_gflops'), 1e-3)} | {share} |")
    return out


def markdown(found):
    out = ["# longreel on a GPU", ""]
    for line in found["runs"]:
        out.append(f"- {line.get('gpu')}; {line.get('date')}; longreel {line.get('bundle')}; "
                   f"`./run.sh {line.get('parts')}` within {line.get('budget')} s")
    if not found["runs"]:
        out.append("- of no known run: results.jsonl has no line that says so")
    out += [f"- {line.get('name')} took {line.get('seconds')} s" for line in found["parts"]]
    if found["lines_cut_off"]:
        out.append(f"- lines of results that were cut off and are left out: {found['lines_cut_off']}")
    if found["failures"]:
        out += ["", "## What failed, or was not done", ""]
        out += [f"- {line.get('name')}: {reason(line)}" for line in found["failures"][:20]]
        if len(found["failures"]) > 20:
            out.append(f"- and {len(found['failures']) - 20} more: report.json")
    if found["kernels"]:
        out += ["", "## The kernels alone", ""] + kernels_section(found["kernels"])
    if found["checks"]:
        passed = sum(line.get("state") == "passed" for line in found["checks"])
        out += ["", f"## The GPU's results against the CPU's: {passed} of {len(found['checks'])} passed", ""]
        out += ["| test | | s | |", "|---|---|---|---|"]
        out += [
            f"| {line.get('name')} | {line.get('state')} | {line.get('seconds')} | {reason(line)} |"
            for line in found["checks"]
        ]
    if found["demo"]:
        demo = found["demo"]
        out += [
            "",
            "## The demo",
            "",
            f"{demo.get('steps')} steps in {demo.get('seconds')} s: {demo.get('state')}; loss "
            f"{number(demo.get('first_loss'))} to {number(demo.get('last_loss'))}, means of ten steps. "
            f"{reason(demo)}".rstrip(),
        ]
    if found["attention"] or found["attention_torch"]:
        out += ["", "## Attention", ""] + attention_section(found)
    if found["step"]:
        out += [
            "",
            "## A step of DiT-S in bf16",
            "",
            "| tokens | s | in attention, s | tokens/s | TFLOP/s | memory of the GPU, GiB |",
            "|---|---|---|---|---|---|",
        ]
        out += [
            f"| {line.get('tokens')} | {number(line.get('step_s'))} | {number(line.get('attention_s'))} | "
            f"{number(line.get('tokens_per_s'))} | {number(line.get('step_gflops'), 1e-3)} | "
            f"{number(line.get('gpu_gib'))} |"
            for line in sorted(found["step"], key=lambda line: line.get("tokens", 0))
        ]
    rows = constants(found)
    if rows:
        out += ["", "## Constants of this GPU", "", "| | | |", "|---|---|---|"]
        out += [f"| {name} | {value} | {unit} |" for name, value, unit in rows]
        if found["step"]:
            out += ["", f"So `longreel plan CONFIG.toml --tflops {rows[-1][1]}` tells a long step's time on it."]
    return "\n".join(out) + "\n"


def write(path, text):
    """Writes a file in one go: a reader, or a kill, finds the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, metavar="FOLDER", help="where report.md and report.json go"
    )
    parser.add_argument("folders", type=pathlib.Path, nargs="+", metavar="RESULTS")
    args = parser.parse_args()
    found = collect(args.folders)
    whole = {**found, "constants": [dict(zip(("name", "value", "unit"), row)) for row in constants(found)]}
    write(args.out / "report.json", json.dumps(whole, indent=1) + "\n")
    write(args.out / "report.md", markdown(found))


if __name__ == "__main__":
    main()
