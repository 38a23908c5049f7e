"""Reads images and videos through ffmpeg into arrays [clips, frames, height, width, channels] of bytes.

Only numpy is needed. A folder of class folders is what longreel trains on and what samples are written to.
"""

import pathlib
import subprocess

import numpy as np

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif")


class Problem(Exception):
    """Something the user can act on; the message says what."""


def ffmpeg(arguments, what, given=b""):
    """Runs ffmpeg on the input `given` and returns its output; a failure becomes a Problem that quotes its last
    line."""
    try:
        done = subprocess.run(["ffmpeg", "-v", "error", *arguments], input=given, capture_output=True, check=False)
    except FileNotFoundError:
        raise Problem("ffmpeg is not installed; on Debian: sudo apt-get install ffmpeg") from None
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise Problem(f"{what}: ffmpeg says: {words[-1]}")
    return done.stdout


def read(path, height, width, frames=None, stride=1):
    """One image or video, scaled and cropped to `height` x `width` as longreel does: [frames, height, width, 3]; at
    most `frames` of it, one in `stride`."""
    limit = [] if frames is None else ["-frames:v", str(frames)]
    every = f"select=not(mod(n\\,{stride}))," if stride > 1 else ""
    # In RGB, as a crop of YUV is moved to an even pixel.
    cover = f"scale={width}:{height}:force_original_aspect_ratio=increase:flags=area,format=rgb24"
    cover += f",crop={width}:{height}:floor((iw-ow)/2+0.5):floor((ih-oh)/2+0.5)"
    scale = ["-vf", every + cover, "-fps_mode", "passthrough"]
    raw = ffmpeg(["-i", f"file:{path}", *scale, *limit, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], path)
    pixels = np.frombuffer(raw, np.uint8)
    if not len(pixels):
        raise Problem(f"{path}: no frames")
    return pixels.reshape(-1, height, width, 3)


def read_images(files, height, width):
    """Many images in one call of ffmpeg: [images, 1, height, width, 3]."""
    if not files:
        return np.zeros((0, 1, height, width, 3), np.uint8)
    # Images are concatenated to one stream, so that one process decodes them all.
    kinds = {path.suffix.lower() for path in files}
    if kinds == {".png"}:
        stream = b"".join(path.read_bytes() for path in files)
        arguments = ["-f", "image2pipe", "-c:v", "png", "-i", "-", "-vf", f"scale={width}:{height}"]
        try:
            raw = ffmpeg([*arguments, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], files[0].parent, stream)
        except Problem:
            raw = b""  # read one by one, whichever is at fault is named
        if len(raw) == len(files) * height * width * 3:
            return np.frombuffer(raw, np.uint8).reshape(len(files), 1, height, width, 3)
    return np.stack([read(path, height, width, 1) for path in files])


def read_clips(files, frames, height, width, stride=1):
    """Videos or images of one size: [clips, frames, height, width, 3], one frame in `stride`; too few is an error."""
    files = [pathlib.Path(path) for path in files]
    if frames == 1 and all(path.suffix.lower() in IMAGES for path in files):
        return read_images(files, height, width)
    clips = [read(path, height, width, frames, stride) for path in files]
    for path, clip in zip(files, clips):
        if len(clip) < frames:
            raise Problem(f"{path}: {len(clip)} frames where {frames} are wanted")
    return np.stack(clips)


def files_of(folder):
    """The images and videos directly in `folder`, in the order of their names."""
    return sorted(path for path in pathlib.Path(folder).iterdir() if path.suffix.lower() in IMAGES + VIDEOS)


def read_classes(folder, frames, height, width, most=None, stride=1):
    """Clips of a folder of class folders, with their classes' numbers and the names; `most` of each class."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise Problem(f"{folder}: no such folder")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise Problem(f"{folder}: no class folders")
    parts = [read_clips(files_of(folder / name)[:most], frames, height, width, stride) for name in names]
    for name, part in zip(names, parts):
        if not len(part):
            raise Problem(f"{folder / name}: no images or videos")
    labels = np.concatenate([np.full(len(part), number) for number, part in enumerate(parts)])
    return np.concatenate(parts), labels, names


# Where `longreel sample --real-size` puts frames on a contact sheet, in pixels: src/data/contact_sheet.rs.
MARGIN, CAPTION, FRAME_GAP, STRIP_GAP, NARROWEST = 16, 19, 2, 18, 110


def read_sheet(path, clips, frames, height, width):
    """The clips on a contact sheet of frames in their real size, without loss: [clips, frames, height, width, 3]."""
    sheet = ffmpeg(["-i", f"file:{path}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], path)
    wide = int.from_bytes(pathlib.Path(path).read_bytes()[16:20], "big")  # PNG's header
    sheet = np.frombuffer(sheet, np.uint8).reshape(-1, wide, 3)
    column = max(frames * (width + FRAME_GAP) - FRAME_GAP, NARROWEST) + STRIP_GAP
    row = CAPTION + height + STRIP_GAP
    rows, columns = ((side - 2 * MARGIN + STRIP_GAP) // each for side, each in zip(sheet.shape, (row, column)))
    if rows * columns < clips:
        raise Problem(f"{path}: a sheet of {rows} x {columns} clips where {clips} are wanted")
    top = [MARGIN + CAPTION + i % rows * row for i in range(clips)]
    left = [[MARGIN + i // rows * column + t * (width + FRAME_GAP) for t in range(frames)] for i in range(clips)]
    return np.stack([[sheet[y : y + height, x : x + width] for x in xs] for y, xs in zip(top, left)])


def write(path, frames, rate=4):
    """Writes frames [t, h, w, 3] of bytes as an image or an animation, by the kind that the name says."""
    palette = ["-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse"] if str(path).endswith(".gif") else []
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    raw = ["-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(rate), "-i", "-"]
    ffmpeg([*raw, *palette, f"file:{path}"], path, frames.tobytes())
