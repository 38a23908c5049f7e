"""Measures videos of scenes that a network has learnt by heart: how near each sample is to its scene, and whether
patches show.

Clips are bytes [n, t, h, w, 3]. Needs numpy alone.
"""

import numpy as np


def psnr(clip, windows):
    """The peak signal-to-noise ratio, in dB, of a clip [t, h, w, 3] to the nearest of windows [m, t, h, w, 3]."""
    errors = ((windows.astype(np.float32) - clip.astype(np.float32)) ** 2).mean(axis=(1, 2, 3, 4))
    return 10 * np.log10(255**2 / max(errors.min(), 1e-12))


def seam(clips, patch):
    """The mean jump between neighbouring pixels across patch borders over that inside patches; patch is (height,
    width)."""
    across, inside = [], []
    for axis, size in ((2, patch[0]), (3, patch[1])):
        jumps = np.abs(np.diff(clips.astype(np.float32), axis=axis)).mean(axis=(0, 1, 5 - axis, 4))
        border = np.arange(1, len(jumps) + 1) % size == 0
        across.append(jumps[border].mean())
        inside.append(jumps[~border].mean())
    return float(sum(across) / sum(inside))


def changes(clips, frames):
    """How much neighbouring frames of one patch differ over how much those of two patches do, and the share of
    neighbouring frames that are equal to within half a step of a byte; `frames` are a patch's."""
    change = np.abs(np.diff(clips.astype(np.float32), axis=1)).mean(axis=(2, 3, 4))  # [n, t - 1]
    border = np.arange(1, change.shape[1] + 1) % frames == 0
    within = 1.0 if frames == 1 else float(change[:, ~border].mean() / change[:, border].mean())
    return within, float((change < 0.5).mean())


def report(training, labels, names, sampled, patch):
    """Rows {name: {measure: value}}: the scenes themselves, each of the sets `sampled` {name: (clips, asked)} as a
    whole and scene by scene, and copies of the wrong scene as a floor. `patch` is the network's (frames, height,
    width)."""

    def measure(clips, asked):
        distances = np.array([[psnr(clip, training[labels == k]) for k in range(len(names))] for clip in clips])
        own = distances[np.arange(len(clips)), asked]
        within, equal = changes(clips, patch[0])
        return {
            "accuracy": float((distances.argmax(axis=1) == asked).mean()),
            "PSNR, mean": float(own.mean()),
            "PSNR, least": float(own.min()),
            "seam": seam(clips, patch[1:]),
            "change within patches": within,
            "equal frames": equal,
        }

    real = measure(training, labels)
    real["PSNR, mean"] = real["PSNR, least"] = float("inf")
    rows = {"the scenes themselves": real}
    for name, (clips, asked) in sampled.items():
        rows[name] = measure(clips, asked)
        if len(names) > 1:
            rows |= {f"{name}, {names[k]}": measure(clips[asked == k], asked[asked == k]) for k in range(len(names))}
    return rows | {"floor: the next scene": measure(training, (labels + 1) % len(names))}


GAP, PAPER = 4, 250  # of a picture, in pixels and grey


def _beside(parts, axis):
    """Arrays side by side along `axis`, with a gap of paper between them."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, PAPER, np.uint8)
    return np.concatenate([part for each in parts for part in (gap, each)][1:], axis=axis)


def picture(real, sampled, columns=2, shown=4, scale=2):
    """One image [h, w, 3]: of each scene `shown` real frames and below them those of a sample; clips are [n, t, h, w,
    3]."""
    chosen = np.linspace(0, real.shape[1] - 1, shown).round().astype(int)
    strip = lambda clip: _beside([clip[t].repeat(scale, 0).repeat(scale, 1) for t in chosen], 1)
    pairs = [_beside([strip(one), strip(other)], 0) for one, other in zip(real, sampled)]
    rows = [pairs[i : i + columns] for i in range(0, len(pairs) - len(pairs) % columns, columns)]
    wide = [np.pad(_beside(row, 1), ((8, 8), (8, 8), (0, 0)), constant_values=PAPER) for row in rows]
    return np.concatenate(wide, axis=0)


def animation(clips, columns=4, scale=3):
    """All clips beside each other in motion: [t, h, w, 3]."""
    large = clips.repeat(scale, 2).repeat(scale, 3)
    rows = [_beside(list(large[i : i + columns]), 2) for i in range(0, len(large) - len(large) % columns, columns)]
    return _beside(rows, 1)
