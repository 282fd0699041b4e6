"""Metrics that need no labels: how alike outputs are to those of the FP32 model."""

from __future__ import annotations

import numpy as np

from qnas_plugin.measure.metrics.metric import Outputs, Scores
from qnas_plugin.measure.metrics.predictions import label_probability, predictions


def agreement(outputs: Outputs, expected: Outputs) -> Scores:
    """The share of each example's predictions that are those of the FP32 model; 0 where they are not as many."""
    name, classes = next(iter(predictions(outputs).items()))
    theirs = predictions(expected)[name]
    if classes.shape != theirs.shape:
        return np.zeros(len(classes))
    same = (classes == theirs).reshape(len(classes), -1)
    return np.asarray(same.mean(axis=1) if same.shape[1] else np.ones(len(classes)))


def soft_agreement(outputs: Outputs, expected: Outputs) -> Scores | None:
    """The probability of what the FP32 model predicts."""
    name, classes = next(iter(predictions(expected).items()))
    if outputs[name].shape != expected[name].shape:
        return np.zeros(len(classes))
    return label_probability({name: outputs[name]}, classes)


def cosine(outputs: Outputs, expected: Outputs) -> Scores:
    """The cosine similarity of each example's outputs with those of the FP32 model: the mean over all float outputs.

    Where both have the same infinite number it does not count; 0 where shapes differ.
    """
    similar = []
    for name, values in outputs.items():
        if values.dtype.kind != "f":
            continue
        if values.shape != expected[name].shape:
            similar.append(np.zeros(len(values)))
            continue
        a = values.reshape(len(values), -1).astype(np.float64)
        b = expected[name].reshape(len(values), -1).astype(np.float64)
        equal = (a == b).all(axis=1)
        usual = np.isfinite(a) & np.isfinite(b)
        other = (~usual & (a != b)).any(axis=1)  # infinite in one of them alone
        a, b = np.where(usual, a, 0), np.where(usual, b, 0)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = (a * b).sum(axis=1) / np.maximum(lengths, 1e-30)
        similar.append(np.where(equal, 1.0, np.where(other, 0.0, cosines)))
    return np.asarray(np.clip(np.mean(similar, axis=0), 0.0, 1.0))
