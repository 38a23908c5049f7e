#!/usr/bin/env python3
"""Checks and times longreel's compiled CUDA kernels on a GPU, from Python alone: no longreel is needed.

    kernels.py --out FOLDER                       all checks, then times; lines are appended to FOLDER/kernels.jsonl
    compute-sanitizer python3 kernels.py --checks-only --small
    kernels.py --only adamw norm                  kernels whose names contain a word
    kernels.py --emulated                         without a GPU, by the emulator of kernels/host
    kernels.py --list                             each kernel with its arguments; needs nothing but Python

Every kernel of launch.h is compared with torch in f64, on uneven shapes, from poisoned outputs and fresh random
inputs; attention also for equal bits, and at 131,072 tokens. The exit code is 1 if anything was wrong, 2 if nothing
could be done.

Needs torch, numpy and CuPy, and the kernels' machine code (scripts/bundle/cubins.sh FOLDER). --emulated needs no CuPy.
"""

import argparse
import os
import pathlib
import random
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from checks import calls, declarations  # noqa: E402
from checks.declarations import Problem  # noqa: E402


def positive(text):
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("."),
        metavar="FOLDER",
        help="for kernels.jsonl (default: here)",
    )
    add("--budget", type=positive, metavar="SECONDS", help="nothing is begun that would not end by then")
    add(
        "--cubins",
        type=pathlib.Path,
        metavar="FOLDER",
        help="what cubins.sh has written (default: cubins, beside this script)",
    )
    add("--only", nargs="+", default=[], metavar="WORD", help="kernels whose names contain one of these")
    add("--checks-only", action="store_true", help="no times")
    add(
        "--small", action="store_true", help="small shapes, each tensor an allocation of its own: for compute-sanitizer"
    )
    add("--seed", type=int, help="of the inputs (default: another one each time)")
    add("--emulated", action="store_true", help="small shapes on the CPU; times mean nothing")
    add("--list", action="store_true", help="print the kernels and their arguments, and end")
    return parser.parse_args()


def chosen(kernels, words):
    found = {name for name in kernels if not words or any(word in name for word in words)}
    for word in words:
        if not any(word in name for name in kernels):
            raise Problem(f"--only {word}: no kernel has that in its name; --list prints them")
    return found


def folder_of(args):
    """Where the kernels are: for the emulator their sources, else what cubins.sh has written."""
    if args.cubins:
        return args.cubins.resolve()
    sources = HERE.parent.parent / "kernels"
    return sources if args.emulated or (args.list and not (HERE / "cubins").is_dir()) else HERE / "cubins"


def device_of(args, folder, kernels, structs, seed):
    missing = [kernel.file for kernel in kernels.values() if not (folder / f"{kernel.file}.cubin").is_file()]
    if missing and not args.emulated:
        raise Problem(f"{folder} lacks {missing[0]}.cubin: scripts/bundle/cubins.sh {folder} makes it")
    if args.small:
        os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # a memory checker is to see where each tensor ends
    try:
        import torch
        from checks import device
    except ImportError as error:
        raise Problem(f"the checks compute with torch and numpy: {error}") from error
    if args.emulated:
        from checks.emulated import emulator

        return emulator(folder, kernels, structs, seed), "emulator", {"torch": torch.__version__}
    found = device.gpu(folder, kernels, structs, seed, exact=args.small)
    import cupy

    about = {
        "torch": torch.__version__,
        "cupy": cupy.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn(torch),
    }
    return found, torch.cuda.get_device_name(), about


def cudnn(torch):
    """Its version, or why there is none: torch's own attention may still run without it."""
    try:
        return torch.backends.cudnn.version()
    except Exception as problem:
        return str(problem)


def run(args):
    folder = folder_of(args)
    kernels, structs = declarations.read(folder)
    wrong = calls.compare(kernels, structs)
    if args.list:
        for kernel in kernels.values():
            parameters = ", ".join(map(str, kernel.parameters))
            print(f"{kernel.name}({parameters})  {kernel.threads} threads, {kernel.shared} bytes")
        if wrong:
            raise Problem("; ".join(wrong.values()))
        return 0
    names = chosen(kernels, args.only)
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    device, what, about = device_of(args, folder, kernels, structs, seed)
    from checks import correct, speed
    from checks.report import Report

    args.out.mkdir(parents=True, exist_ok=True)
    report = Report(args.out / "kernels.jsonl", args.budget, what)
    small = args.small or args.emulated
    report.line("start", seed=seed, kernels=len(names), small=small, arguments=sys.argv[1:], **about)
    for name in sorted(names & set(wrong)):
        report.line("error", case=name, kernel=name, message=wrong[name])
    names -= set(wrong)
    try:
        correct.run(device, report, names, small)
        if not args.checks_only:
            speed.run(device, report, names, small, correct.guarded)
    except correct.Broken as lost:
        report.line("error", case="all the rest", message=f"the GPU does nothing any more: {lost}")
    unchecked = sorted(names - {line["kernel"] for line in report.of("check")})
    if unchecked and not report.of("skipped"):
        report.line("error", case="completeness", message=f"nothing was compared of {', '.join(unchecked)}")
    report.end(unchecked)
    return 1 if report.failed() else 0


def main():
    args = parse()
    try:
        sys.exit(run(args))
    except (Problem, OSError) as problem:
        print(f"kernels.py: {problem}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
