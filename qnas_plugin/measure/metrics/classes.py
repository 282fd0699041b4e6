"""Metrics of predicted classes: accuracy, F1, mean intersection over union, perplexity."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import UsageError
from qnas_plugin.measure.metrics.metric import Floats, Outputs, Scores
from qnas_plugin.measure.metrics.predictions import are_probabilities, fitting, with_class_axis

IGNORED = 255
"""The label that maps of classes have, beside negative ones, where there is none to predict."""


def accuracy(outputs: Outputs, labels: npt.NDArray[Any]) -> Scores:
    """The share of each example's labels ``(b, ...)`` that are predicted: see `predictions.predictions`.

    Raises:
        UsageError: No output has a prediction for each label.
    """
    _, predicted = fitting(outputs, labels)
    return np.asarray((predicted == labels).reshape(len(labels), -1).mean(axis=1))


def class_counts(outputs: Outputs, labels: npt.NDArray[Any]) -> Floats:
    """For each class how often it is both label and prediction, then how often one of them alone: ``(b, 2 classes)``.

    Predictions are the argmax over the last axis, or without logits numbers that are 0 and 1. A negative label does
    not count.

    Raises:
        UsageError: No output has a prediction for each label.
    """
    name, predicted = fitting(outputs, labels)
    if outputs[name].dtype.kind == "f":
        return _counted(predicted, labels, outputs[name].shape[-1], labels >= 0)
    if not np.isin(predicted, (0, 1)).all() or labels.max(initial=0) > 1:
        raise UsageError(
            f"the output '{name}' has numbers of classes beyond 0 and 1; how many classes there are is only known of "
            "an output of floats, (examples, ..., classes)"
        )
    return _counted(predicted, labels, 2, labels >= 0)


def map_counts(outputs: Outputs, labels: npt.NDArray[Any]) -> Floats:
    """As `class_counts`, for maps ``(b, classes, h, w)`` or ``(b, h, w, classes)`` and labels ``(b, h, w)``.

    A label does not count that is negative, or 255 where that is no class.

    Raises:
        UsageError: No output has a number for each class and label, or a label is no class.
    """
    name, values = with_class_axis(outputs, labels.shape, first=True)
    classes = values.shape[-1]
    counts = (labels >= 0) & ((labels != IGNORED) | (classes > IGNORED))
    if (beyond := labels[counts & (labels >= classes)]).size:
        raise UsageError(
            f"the label {beyond[0]} is no class of the output '{name}', which has {classes}, counted from 0"
        )
    return _counted(values.argmax(axis=-1), labels, classes, counts)


def f1(sums: Floats) -> Floats:
    """The F1 of class 1 where there are two classes, else the mean over classes that occur; of sums ``(..., 2 c)``."""
    both, one = np.split(sums, 2, axis=-1)
    each = _shares(2 * both, 2 * both + one)
    return np.nan_to_num(each[..., 1]) if each.shape[-1] == 2 else np.asarray(_mean_of_known(each))


def mean_iou(sums: Floats) -> Floats:
    """The mean over classes that occur of intersection over union; of sums ``(..., 2 c)``."""
    both, one = np.split(sums, 2, axis=-1)
    return _mean_of_known(_shares(both, both + one))


def surprise(outputs: Outputs, labels: npt.NDArray[Any]) -> Floats:
    """The negative log-probability of each example's labels, its sum, and how many they are: ``(b, 2)``.

    The output has logits or probabilities of each class, ``(b, ..., classes)``, at the place of the label that they
    are of. A negative label does not count.

    Raises:
        UsageError: No output has a number for each class and label, or a label is no class.
    """
    name, values = with_class_axis(outputs, labels.shape, first=False)
    if labels.dtype.kind not in "iub" or labels.max(initial=0) >= values.shape[-1]:
        raise UsageError(f"the labels are no numbers of the {values.shape[-1]} classes of the output '{name}'")
    counts = labels >= 0
    with np.errstate(divide="ignore"):
        if are_probabilities(values):
            logs = np.log(values)
        else:
            values = values - values.max(axis=-1, keepdims=True)
            logs = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    own = np.take_along_axis(logs, np.where(counts, labels, 0).astype(np.int64)[..., None], axis=-1)[..., 0]
    summed = np.where(counts, -own, 0.0).reshape(len(labels), -1).sum(axis=1)
    return np.column_stack([summed, counts.reshape(len(labels), -1).sum(axis=1)]).astype(np.float64)


def perplexity(sums: Floats) -> Floats:
    """The exponential of the mean negative log-probability of a label."""
    with np.errstate(all="ignore"):
        return np.asarray(np.exp(sums[..., 0] / sums[..., 1]))


def _counted(
    predicted: npt.NDArray[Any], labels: npt.NDArray[Any], classes: int, counts: npt.NDArray[np.bool_]
) -> Floats:
    rows = np.broadcast_to(np.arange(len(labels)).reshape(-1, *[1] * (labels.ndim - 1)), labels.shape)

    def table(numbers: npt.NDArray[Any], where: npt.NDArray[np.bool_]) -> Floats:
        cells = rows[where] * classes + numbers[where].astype(np.int64)
        return np.bincount(cells, minlength=len(labels) * classes).reshape(-1, classes).astype(np.float64)

    both = table(labels, counts & (predicted == labels))
    return np.hstack([both, table(predicted, counts) + table(labels, counts) - 2 * both])


def _shares(part: Floats, whole: Floats) -> Floats:
    """Nan where there is no whole."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(whole > 0, part / whole, np.nan))


def _mean_of_known(shares: Floats) -> Floats:
    known = np.isfinite(shares)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(known, shares, 0.0).sum(axis=-1) / known.sum(axis=-1))
