"""Measures sampled videos of classes: the shape asked for, its path, seams between patches, and how much frames differ.

Needs numpy alone. What is measured of a moving shape is in motion.py; distances between sets are taken on principal
components of the training clips' grey pixels.
"""

import numpy as np

from . import measures, motion

COMPONENTS = 32  # principal components on which distances are taken


class Features:
    """The first principal components of the training clips, in units of their deviations over all components' mean."""

    def __init__(self, training):
        rows = grey(training)
        self.mean = rows.mean(0)
        # Of fewer clips than pixels, by the clips' products.
        products = (rows - self.mean) @ (rows - self.mean).T
        values, vectors = np.linalg.eigh(products)
        keep = slice(-min(COMPONENTS, len(rows) - 1), None)
        axes = (rows - self.mean).T @ vectors[:, keep]
        self.axes = axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-9)
        self.scale = np.sqrt(np.mean(np.maximum(values[keep], 0)) / len(rows))

    def __call__(self, clips):
        return (grey(clips) - self.mean) @ self.axes / max(self.scale, 1e-9)


def grey(clips):
    return clips.mean(-1).reshape(len(clips), -1).astype(np.float32)


def report(training, labels, heldout, heldout_labels, sampled, patch):
    """Rows {name: {measure: value}} for held-out real clips, each of the sets `sampled` {name: (clips, asked)}, and the
    floors. Clips are bytes [n, t, h, w, 3]; `patch` is the network's (frames, height, width)."""
    training, heldout = training.astype(np.float32) / 255, heldout.astype(np.float32) / 255
    classifier, features = motion.Classifier(training, labels), Features(training)
    real = features(training)

    def measure(clips, asked):
        rows = features(clips)
        precision, recall = measures.precision_recall(real, rows)
        pairs, equal = motion.pairs(clips, patch[0])
        nearest = np.median(measures.nearest(grey(clips), grey(training))) / np.sqrt(grey(clips).shape[1])
        return {
            "accuracy": float((classifier.read(clips) == asked).mean()),
            "straightness": float(motion.straightness(motion.centroids(clips))),
            "seam": float(motion.seam(clips, patch[1:])),
            "change within patches": float(pairs),
            "equal frames": float(equal),
            "frechet": measures.frechet(real, rows),
            "precision": precision,
            "recall": recall,
            "nearest": float(nearest),
        }

    table = {"held-out real": measure(heldout, heldout_labels)}
    table |= {name: measure(clips.astype(np.float32) / 255, asked) for name, (clips, asked) in sampled.items()}
    rows = training.reshape(len(training), -1)
    made = measures.floors(rows, labels, len(heldout), np.random.default_rng(0))
    shape = (-1, *training.shape[1:])
    return table | {f"floor: {name}": measure(clips.clip(0, 1).astype(np.float32).reshape(shape), asked)
                    for name, (clips, asked) in made.items()}
