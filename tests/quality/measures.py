"""Checks benches/quality/measures.py and scenes.py against values known by hand. Needs numpy; run by
tests/quality.rs."""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benches"))
from quality import measures, scenes  # noqa: E402

rng = np.random.default_rng(0)


def near(value, wanted, within):
    assert abs(value - wanted) <= within, (value, wanted)


# Frechet: of Gaussians with axes of known deviations the distance is that of the means and of the deviations.
one = rng.standard_normal((200_000, 3))
near(measures.frechet(one, one), 0, 1e-9)
near(measures.frechet(one, one + [3, 0, 4]), 25, 1e-9)
near(measures.frechet(one, one * [1, 2, 3]), 0 + 1 + 4, 0.05)
# Covariances that do not commute: tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of [[2, 1], [1, 2]] and [[1, 0], [0, 4]].
a, b = np.array([[2, 1], [1, 2]]), np.diag([1, 4])
flat = rng.standard_normal((400_000, 2))
product = a @ b  # of a 2 x 2 product, the trace of the root is sqrt(trace + 2 sqrt(det))
wanted = np.trace(a) + np.trace(b) - 2 * np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
near(measures.frechet(flat @ np.linalg.cholesky(a).T, flat @ np.linalg.cholesky(b).T), wanted, 0.03)

# Precision and recall: samples at one of two real clusters are precise and miss half of what is real.
clusters = np.concatenate([rng.standard_normal((100, 2)), rng.standard_normal((100, 2)) + 100])
precision, recall = measures.precision_recall(clusters, rng.standard_normal((100, 2)))
assert precision > 0.9 and 0.4 < recall < 0.6, (precision, recall)
precision, recall = measures.precision_recall(clusters, rng.standard_normal((100, 2)) + 50)
assert (precision, recall) == (0, 0), (precision, recall)

# Nearest neighbours, and the floors.
assert np.allclose(measures.nearest(np.array([[0.0, 3.0]]), np.array([[9.0, 9.0], [4.0, 0.0]])), [5])
labels = np.arange(600) % 3
rows = rng.standard_normal((600, 4)) * [1, 2, 3, 4] + 10 * labels[:, None]
made = measures.floors(rows, labels, 3000, rng)
for name, (floor, asked) in made.items():
    assert list(asked[:4]) == [0, 1, 2, 0] and len(floor) == 3000, name
    near(np.abs(floor[asked == 2].mean(0) - rows[labels == 2].mean(0)).max(), 0, 1.2)
copies = made["copies of training data"][0]
assert measures.nearest(copies, rows).max() < 1e-4
gaussian, asked = made["Gaussian of the class"]
assert np.allclose(gaussian[asked == 1].std(0), rows[labels == 1].std(0), rtol=0.1)
assert measures.nearest(gaussian, rows).min() > 1e-3, "a drawn row is none of the training rows"
assert np.ptp(made["mean of the class"][0][asked == 0], 0).max() == 0
# Scenes: errors of 8 and 4 are 20 log10(255 / 8) and 6 dB more, and the nearest window counts.
clip = rng.integers(50, 200, (4, 16, 24, 3)).astype(np.uint8)
near(scenes.psnr(clip + 8, np.stack([clip, clip])), 30.07, 0.01)
near(scenes.psnr(clip + 8, np.stack([clip, clip + 12])), 36.09, 0.01)
# Steps of 10 at the borders of patches of 8 x 8, of 5 everywhere else.
steps = np.where(np.arange(1, 24) % 8 == 0, 10, 5)
ramp = np.concatenate([[0], np.cumsum(steps)])
square = np.broadcast_to((ramp[None, :16, None] + ramp[:24][None, None])[..., None], (4, 16, 24, 3)) // 2
near(scenes.seam(np.stack([square, square]), (8, 8)), 2, 0.1)
near(scenes.seam(rng.integers(0, 255, (9, 4, 64, 64, 3)), (8, 8)), 1, 0.03)
# Frames that change by 1 within a pair and by 3 between pairs; and equal ones.
level = np.array([0, 1, 4, 5]).reshape(1, 4, 1, 1, 1) * np.ones((1, 1, 8, 8, 3))
assert np.allclose(scenes.changes(level, 2), (1 / 3, 0)), scenes.changes(level, 2)
assert scenes.changes(np.zeros((1, 4, 8, 8, 3)), 1) == (1, 1)
rows = scenes.report(np.stack([clip, clip[::-1]]), np.arange(2), ["one", "two"],
                     {"samples": (np.stack([clip + 8, clip + 8]), np.arange(2))}, (2, 8, 8))
assert rows["samples"]["accuracy"] == 0.5 and rows["samples, one"]["accuracy"] == 1, rows
near(rows["samples, one"]["PSNR, least"], 30.07, 0.01)
assert rows["floor: the next scene"]["accuracy"] == 0, rows
# Pictures: eight scenes in two columns, each of four frames above four, at twice the size; and in motion.
eight = rng.integers(0, 255, (8, 8, 16, 24, 3)).astype(np.uint8)
drawn = scenes.picture(eight, eight[::-1])
assert drawn.shape == (4 * (2 * 32 + 4 + 16), 2 * (4 * 48 + 3 * 4) + 4 + 16, 3), drawn.shape
assert (drawn[8 : 8 + 32 : 2, 8 : 8 + 48 : 2] == eight[0, 0]).all()
assert (drawn[8 + 36 : 8 + 68 : 2, 8 : 8 + 48 : 2] == eight[7, 0]).all()
moving = scenes.animation(eight)
assert moving.shape == (8, 2 * 48 + 4, 4 * 72 + 3 * 4, 3) and (moving[3, :48:3, :72:3] == eight[0, 3]).all()
print("ok")
