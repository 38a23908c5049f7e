#!/usr/bin/env python3
"""Says how good a trained model's samples are, in numbers with floors beside them.

    quality.py RUN [--count 500] [--guidance 1 1.5]     samples from a run, and measures
    quality.py RUN --samples FOLDER                     measures what is in FOLDER/CLASS already, by any program

For runs of images (data.frames = 1) with classes: how many of the samples a classifier reads as the class that was
asked for, the Frechet distance, precision and recall on features of a small network, the distance to the nearest
training image. For runs of videos that learn a scene of each class by heart: how near a sample is to its scene, and
whether patches show. Beside the samples: held-out real data, which are the ceiling, and floors that need no network.
docs/quality.md explains each figure.

Needs Python 3.9, the ffmpeg program, numpy, and for images scikit-learn. What is not installed goes to a virtual
environment, ~/.cache/longreel-quality.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from quality import environment  # noqa: E402

if sys.version_info < (3, 11):
    environment.need("tomli")
    import tomli as tomllib
else:
    import tomllib


def sample(longreel, run, names, per_class, guidance, steps, folder, sheets=False):
    """Samples `per_class` clips of each class into folder/CLASS, or as a sheet folder/CLASS.png of frames without loss;
    each class starts from noise of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, name in enumerate(names):
        command = [longreel, "sample", str(run), "--label", name, "--count", str(per_class)]
        command += ["--seed", str(1000 + number)]
        command += ["--guidance", f"{guidance:g}"] if guidance is not None else []
        command += ["--steps", str(steps)] if steps else []
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        print(f"sampling {per_class} of class {name}", file=sys.stderr)
        target = ["--real-size", "-o", str(folder / f"{name}.png")] if sheets else ["-o", str(folder / name)]
        done = subprocess.run([*command, *target], stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"error: {' '.join(command)}: {done.stderr.strip()[-500:]}")


def table(rows):
    """A Markdown table of rows {name: {measure: value}}."""
    measures = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(measures)} |", f"|---|{'---:|' * len(measures)}"]
    for name, values in rows.items():
        cells = [f"{values[m]:.1%}" if m in PERCENT else f"{values[m]:.3g}" for m in measures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


# What `make demo` is to reach, on every scene: see docs/quality.md.
BARS = {"accuracy": (1.0, "at least"), "PSNR, least": (26.0, "at least"), "seam": (1.15, "at most")}

PERCENT = ("accuracy", "precision", "recall", "equal frames")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=pathlib.Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--samples", type=pathlib.Path, nargs="+", default=[], metavar="FOLDER",
                        help="measure these folders of class folders instead of sampling")
    parser.add_argument("--count", type=int, default=500, help="samples, over all classes (default 500)")
    parser.add_argument("--guidance", type=float, nargs="*", metavar="W", help="default: the run's own")
    parser.add_argument("--steps", type=int, help="the sampler's steps; default: the run's own")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--picture", type=pathlib.Path, metavar="FILE",
                        help="of scenes: draw real frames above sampled ones (.png), or the samples in motion (.gif)")
    parser.add_argument("--longreel", default=str(HERE.parent / "target/release/longreel"), help="the program")
    args = parser.parse_args()
    try:
        config = tomllib.loads((args.run / "config.toml").read_text())
    except OSError as e:
        sys.exit(f"error: {args.run} is not a run's folder: {e}")
    except tomllib.TOMLDecodeError as e:
        sys.exit(f"error: {args.run / 'config.toml'}: {e}")
    data = config["data"]
    if data.get("label") != "folder":
        sys.exit(f"error: {args.run}: its clips have no classes (data.label); there is nothing to ask for")
    video = data["frames"] > 1
    if not video and not data.get("heldout"):
        sys.exit(f"error: {args.run}: it has no held-out clips (data.heldout) to compare with")
    environment.need("numpy", *([] if video else ["sklearn"]))
    from quality import frames

    try:
        rows, sets = measure(args, config, data, video)
    except frames.Problem as problem:
        sys.exit(f"error: {problem}")
    print(table(rows))
    for name in sets if video else []:
        for what, (bar, side) in BARS.items():
            value = rows[name][what]
            reached = value >= bar if side == "at least" else value <= bar
            print(f"{name}: {what} {value:.4g}, wanted {side} {bar:g}: {'reached' if reached else 'NOT reached'}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(args, config, data, video):
    """The table's rows, and the names of those that are whole sets of samples."""
    import numpy as np
    from quality import frames

    size = data["frames"], data["height"], data["width"]
    training, labels, names = frames.read_classes(data["path"], *size, stride=data.get("stride", 1))
    sampled = {}
    for folder in args.samples:
        clips, asked, given = frames.read_classes(folder, *size)
        if given != names:
            raise frames.Problem(f"{folder}: its class folders are {given}, those of the data {names}")
        sampled[str(folder)] = clips, asked
    for guidance in [] if sampled else args.guidance or [None]:
        default = config.get("sample", {}).get("guidance", 1.0)
        name = f"guidance {default if guidance is None else guidance:g}"
        folder = args.run / "quality" / name.replace(" ", "-")
        per_class = max(1, args.count // len(names))
        sample(args.longreel, os.path.relpath(args.run), names, per_class, guidance, args.steps, folder, video)
        if video:
            sheets = [frames.read_sheet(folder / f"{each}.png", per_class, *size) for each in names]
            sampled[f"samples, {name}"] = np.concatenate(sheets), np.repeat(np.arange(len(names)), per_class)
        else:
            sampled[f"samples, {name}"] = frames.read_classes(folder, *size)[:2]
    if video:
        from quality import scenes

        if args.picture:
            clips, asked = next(iter(sampled.values()))
            each = [clips[asked == k][0] for k in range(len(names))]
            moving = args.picture.suffix == ".gif"
            real = [training[labels == k][0] for k in range(len(names))]
            drawn = scenes.animation(np.stack(each)) if moving else scenes.picture(np.stack(real), np.stack(each))[None]
            frames.write(args.picture, drawn)
        return scenes.report(training, labels, names, sampled, patch_of(args.run, config)), list(sampled)
    from quality import images

    heldout, heldout_labels, _ = frames.read_classes(data["heldout"], *size)
    return images.report(training, labels, heldout, heldout_labels, sampled), list(sampled)


def patch_of(run, config):
    """The network's patch size, of a run that may have taken its network from elsewhere (model.from)."""
    if size := config["model"].get("patch_size"):
        return size
    last = sorted((run / "checkpoints").glob("step-*/transformer/config.json"))
    return json.loads(last[-1].read_text())["patch_size"]


if __name__ == "__main__":
    main()
