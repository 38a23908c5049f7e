"""Measures sampled images of classes: does a classifier read the class asked for, and are they as real ones are?

Needs scikit-learn. The judge of classes is a support vector machine, the features are those of a small network; both
are fitted to the training images with fixed seeds, so that figures of two days can be compared.
"""

import warnings

import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from . import measures


def rows(clips):
    """Grey pixels in 0..1, [n, frames * height * width]."""
    return (clips.mean(-1) / 255).reshape(len(clips), -1).astype(np.float32)


class Judge:
    """A classifier and a map to features, fitted to images of known classes."""

    def __init__(self, training, labels):
        self.classifier = SVC(C=5, gamma="scale").fit(training, labels)
        network = MLPClassifier((128, 64), alpha=1e-3, max_iter=25, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is to stop at 25 rounds
            self.network = network.fit(training, labels)

    def read(self, images):
        """The class that each image shows."""
        return self.classifier.predict(images)

    def features(self, images):
        """The network's last 64 hidden activations, after ReLU."""
        values = images
        for weights, bias in zip(self.network.coefs_[:-1], self.network.intercepts_[:-1]):
            values = np.maximum(values @ weights + bias, 0)
        return values.astype(np.float64)


def report(training, labels, heldout, heldout_labels, sampled):
    """Rows {name: {measure: value}} for held-out real images, each of the sets `sampled` {name: (clips, asked)}, and
    the floors. Distances are to the training images; they depend on how many images a set has."""
    training, heldout = rows(training), rows(heldout)
    judge = Judge(training, labels)
    real = judge.features(training)

    def measure(images, asked):
        features = judge.features(images)
        precision, recall = measures.precision_recall(real, features)
        return dict(
            accuracy=float((judge.read(images) == asked).mean()),
            frechet=measures.frechet(real, features),
            precision=precision,
            recall=recall,
            nearest=float(np.median(measures.nearest(images, training))),
        )

    table = {"held-out real": measure(heldout, heldout_labels)}
    table |= {name: measure(rows(clips), asked) for name, (clips, asked) in sampled.items()}
    made = measures.floors(training, labels, len(heldout), np.random.default_rng(0))
    return table | {f"floor: {name}": measure(images.clip(0, 1).astype(np.float32), asked)
                    for name, (images, asked) in made.items()}
