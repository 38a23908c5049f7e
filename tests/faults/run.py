#!/usr/bin/env python3
"""Disturbs longreel in every way that users' machines do, and counts what holds: `make faults`.

    tests/faults/run.py [--minutes 10] [--seed 1] [--longreel target/release/longreel]
    tests/faults/run.py --only kills.at_random --seed 1 --trial 17     one trial again, its folder kept

Campaigns take turns until the time is over. Every trial is drawn from (seed, campaign, number), so that a fault can be
had again, as far as its instant in a process lets it. The exit code is 1 if there was any fault. docs/reliability.md
says what each promises.
"""

import argparse
import pathlib
import shutil
import sys
import tempfile
import time

import disks
import hubs
import inputs
import kills
import ranks
from campaign import ROOT, Fault, Lab, NotHere, generator

CAMPAIGNS = [
    kills.at_random, kills.at_system_calls, kills.failing_calls, kills.two_at_once, kills.readers,
    inputs.checkpoints, inputs.configs, inputs.media, inputs.models, inputs.parsers,
    hubs.answers, disks.on_tmpfs, disks.on_ext4, ranks.dead,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longreel", type=pathlib.Path, default=ROOT / "target/release/longreel")
    parser.add_argument("--only", help="campaigns whose names contain this")
    parser.add_argument("--trial", type=int, help="only this trial of each; its folder is kept")
    args = parser.parse_args()
    names = {campaign: f"{campaign.__module__}.{campaign.__name__}" for campaign in CAMPAIGNS}
    chosen = [campaign for campaign in CAMPAIGNS if not args.only or args.only in names[campaign]]
    if not chosen:
        sys.exit(f"--only {args.only}: no such campaign; there are {', '.join(names.values())}")
    if not args.longreel.is_file():
        sys.exit(f"{args.longreel}: no such program; build it first, with --features mpi for the campaign of ranks")
    work = pathlib.Path(tempfile.mkdtemp(prefix="longreel-faults-"))
    try:
        faults = rounds(Lab(args.longreel.resolve(), work), chosen, names, args)
    finally:
        if args.trial is None:
            shutil.rmtree(work, ignore_errors=True)
        else:
            print(f"kept: {work}")
    sys.exit(bool(faults))


def rounds(lab, chosen, names, args):
    done, faults, absent = dict.fromkeys(chosen, 0), [], {}
    spent = dict.fromkeys(chosen, 0.0)
    end = time.monotonic() + 60 * args.minutes
    while left := [campaign for campaign in chosen if campaign not in absent]:
        campaign = min(left, key=spent.get)  # the same time for each
        if time.monotonic() > end or (args.trial is not None and spent[campaign]):
            break
        trial = args.trial if args.trial is not None else done[campaign]
        folder = lab.folder / f"{names[campaign]}-{trial}"
        folder.mkdir()
        began = time.monotonic()
        try:
            campaign(lab, generator(args.seed, names[campaign], trial), folder)
        except Fault as fault:
            faults.append(f"{names[campaign]}, seed {args.seed}, trial {trial}: {fault}")
            print(f"FAULT {faults[-1]}\n", flush=True)
        except NotHere as e:
            absent[campaign] = str(e)
        spent[campaign] += time.monotonic() - began
        done[campaign] += campaign not in absent
        if args.trial is None:
            shutil.rmtree(folder, ignore_errors=True)
    for campaign in chosen:
        found = sum(fault.startswith(f"{names[campaign]},") for fault in faults)
        what = (
            f"not run: this machine lacks {absent[campaign]}"
            if campaign in absent
            else f"{done[campaign]} trials, {found} faults"
        )
        print(f"{names[campaign]:24} {what}")
    print(f"{sum(done.values()) - len(faults)} passed, {len(faults)} failed")
    return faults


if __name__ == "__main__":
    main()
