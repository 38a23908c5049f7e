"""Distances between sets of samples, as feature rows [n, features]: Frechet, precision and recall, nearest neighbours.

Only numpy is needed. `floors` makes sets that any trained model should beat or explain.
"""

import numpy as np


def frechet(one, other):
    """Squared Frechet distance of the Gaussians fitted to both sets (Heusel et al. 2017)."""
    (mean_1, root), (mean_2, cov_2) = (one.mean(0), _root(np.cov(one.T))), (other.mean(0), np.cov(other.T))
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_2 @ root), 0)).sum()
    return float(((mean_1 - mean_2) ** 2).sum() + np.trace(root @ root) + np.trace(cov_2) - 2 * cross)


def _root(matrix):
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(np.atleast_2d(matrix))
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def distances(one, other):
    """Euclidean distances [n, m] of the rows of both sets."""
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
    return np.sqrt(np.maximum(squares, 0))


def precision_recall(real, samples, k=3):
    """The share of samples within reach of a real one, and of real ones within reach of a sample (Kynkaanniemi et al.
    2019); a point reaches as far as its k-th nearest neighbour in its own set."""
    between = distances(real, samples)
    reach_real, reach_samples = (np.partition(distances(rows, rows), k, 1)[:, k] for rows in (real, samples))
    precision = (between <= reach_real[:, None]).any(0).mean()
    recall = (between <= reach_samples[None]).any(1).mean()
    return float(precision), float(recall)


def nearest(samples, training):
    """The distance of each sample to the nearest training row: near 0, the model has learnt by heart."""
    return distances(samples, training).min(1)


def floors(rows, labels, count, rng):
    """Sets which need no network, {name: (rows, labels)} of `count` rows with classes in turn: a Gaussian fitted to the
    pixels of a class; the mean of the class; copies of training rows."""
    classes = labels.max() + 1
    asked = np.arange(count) % classes
    by_class = [rows[labels == number] for number in range(classes)]
    made = {"Gaussian of the class": [], "mean of the class": [], "copies of training data": []}
    for number in asked:
        part = by_class[number]
        noise = rng.standard_normal(len(part)) / np.sqrt(len(part) - 1)
        made["Gaussian of the class"].append(part.mean(0) + noise @ (part - part.mean(0)))
        made["mean of the class"].append(part.mean(0))
        made["copies of training data"].append(part[rng.integers(len(part))])
    return {name: (np.stack(parts), asked) for name, parts in made.items()}
