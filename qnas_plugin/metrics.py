"""What stands as ``accuracy``: outputs of a model and what they should be, to a score in [0, 1] for each example.

    accuracy      the share of labels that the model predicts; the last axis of its output is that of the classes
    agreement     the same with the predictions of the FP32 model in place of labels
    cosine        the cosine similarity with the outputs of the FP32 model, 0 where it is negative
    module:name   a function of yours: (outputs, labels) to scores ``(b,)`` of ``b`` examples

A function gets the outputs of a run by name and the labels of its examples. Scores are of single examples, so that two
models can be compared pair by pair; what is reported is their mean.

Beside its score, ``accuracy`` and ``agreement`` have a *soft score* of each example from the same outputs: the
probability of the right class. It tells candidates apart that right and wrong answers on a few hundred examples do not,
see ``qnas_plugin.witness``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import UnknownNameError, UsageError
from qnas_plugin.functions import call, load_function

Outputs = Mapping[str, npt.NDArray[Any]]
"""Outputs of one run by name."""

Scores = npt.NDArray[np.float64]
Metric = Callable[[Outputs, Any], Scores]

REFERENCE = ("agreement", "cosine")
"""The metrics that need no labels, but the outputs of the FP32 model."""


def accuracy(outputs: Outputs, labels: npt.NDArray[Any]) -> Scores:
    """The share of each example's labels ``(b, ...)`` that are the argmax of the output ``(b, ..., classes)``."""
    name, classes = _classes(outputs)
    if classes.shape != labels.shape:
        raise UsageError(
            f"the output '{name}' has {classes.shape} predictions and there are labels {labels.shape}; they must be "
            "as many: give a metric of yours with --metric module:function"
        )
    return np.asarray((classes == labels).reshape(len(labels), -1).mean(axis=1))


def agreement(outputs: Outputs, expected: Outputs) -> Scores:
    """The share of each example's predictions that are those of the FP32 model."""
    classes, theirs = _classes(outputs)[1], _classes(expected)[1]
    return np.asarray((classes == theirs).reshape(len(classes), -1).mean(axis=1))


def cosine(outputs: Outputs, expected: Outputs) -> Scores:
    """The cosine similarity of each example's outputs with those of the FP32 model: the mean over all float outputs."""
    similar = []
    for name, values in outputs.items():
        if values.dtype.kind != "f":
            continue
        a = values.reshape(len(values), -1).astype(np.float64)
        b = expected[name].reshape(len(values), -1).astype(np.float64)
        if a.shape[1] < 2:
            raise UsageError(
                f"the output '{name}' is one number, which has no direction; give labels, or a metric of yours with "
                "--metric module:function"
            )
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        equal = (a == b).all(axis=1)
        similar.append(np.where(equal, 1.0, (a * b).sum(axis=1) / np.maximum(lengths, 1e-30)))
    return np.asarray(np.clip(np.mean(similar, axis=0), 0.0, 1.0))


def label_probability(outputs: Outputs, labels: npt.NDArray[Any]) -> Scores:
    """The probability of each example's labels ``(b, ...)``, their mean ``(b,)``; 0 for a label that is no class.

    The softmax over the last axis of the output, or its values where they are probabilities already.
    """
    name, _ = _classes(outputs)
    values = outputs[name].astype(np.float64)
    if not ((values >= 0).all() and np.allclose(values.sum(axis=-1), 1.0, atol=1e-3)):
        values = np.exp(values - values.max(axis=-1, keepdims=True))
        values /= values.sum(axis=-1, keepdims=True)
    known = (labels >= 0) & (labels < values.shape[-1])
    chosen = np.take_along_axis(values, np.where(known, labels, 0).astype(np.int64)[..., None], axis=-1)[..., 0]
    return np.asarray(np.where(known, chosen, 0.0).reshape(len(labels), -1).mean(axis=1))


METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "agreement": agreement, "cosine": cosine}


def load(name: str) -> Metric:
    """The metric of that name, or the function ``module:name``.

    Raises:
        UnknownNameError: There is no such metric.
        UsageError: The function cannot be imported.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        raise UnknownNameError("metric", name, METRICS)
    function: Metric = load_function(name)
    return function


@dataclass(frozen=True, eq=False)
class Scored:
    """What a model gets for each example.

    Args:
        scores: In [0, 1], ``(n,)``.
        soft: The soft score of the same outputs, ``(n,)`` in [0, 1]; None where the metric has none.
    """

    scores: Scores
    soft: Scores | None = None


@dataclass(frozen=True)
class Scorer:
    """A metric with what the outputs of each example should be.

    Args:
        metric: Its name.
        targets: By position: labels ``(n, ...)``, or the FP32 model's outputs.
    """

    metric: str
    targets: Sequence[Any] | npt.NDArray[Any]

    def __call__(self, outputs: Outputs, positions: npt.NDArray[np.int64]) -> Scores:
        """The scores ``(b,)`` of the examples at these positions.

        Raises:
            UsageError: The outputs have other shapes than the metric needs, or a user's function fails or gives
                something else than scores in [0, 1].
        """
        metric, count = load(self.metric), len(positions)
        if self.metric == "accuracy":
            return metric(outputs, np.asarray(self.targets)[positions])
        if self.metric in METRICS:
            expected = [self.targets[i] for i in positions]
            return metric(
                {name: values if count > 1 else values[None] for name, values in outputs.items()},
                {name: np.stack([target[name] for target in expected]) for name in outputs},
            )
        labels = np.asarray(self.targets)[positions]
        scores = call(
            lambda: np.atleast_1d(np.asarray(metric(outputs, labels), dtype=np.float64)),
            UsageError,
            f"the metric '{self.metric}' failed",
        )
        if scores.shape != (count,) or not ((scores >= 0) & (scores <= 1)).all():
            raise UsageError(
                f"the metric '{self.metric}' must give {count} scores in [0, 1], one for each example; got "
                f"{np.array2string(scores, threshold=4)} of shape {scores.shape}"
            )
        return scores

    def soft(self, outputs: Outputs, positions: npt.NDArray[np.int64]) -> Scores | None:
        """The soft scores ``(b,)`` of the examples at these positions; None where the metric has none."""
        if self.metric == "accuracy":
            labels = np.asarray(self.targets)[positions]
            return label_probability(outputs, labels) if labels.dtype.kind in "iub" else None
        if self.metric == "agreement":
            one = len(positions) == 1
            mine = {name: values[None] for name, values in outputs.items()} if one else outputs
            theirs = {name: np.stack([self.targets[i][name] for i in positions]) for name in outputs}
            return label_probability(mine, _classes(theirs)[1])
        return None


def references(runs: Sequence[tuple[npt.NDArray[np.int64], Outputs]]) -> list[dict[str, npt.NDArray[Any]]]:
    """The targets of a `REFERENCE` metric: the outputs of the FP32 model by example.

    Args:
        runs: Positions and outputs of each run. Outputs of one example may lack a batch axis.
    """
    targets: dict[int, dict[str, npt.NDArray[Any]]] = {}
    for positions, outputs in runs:
        for i, position in enumerate(positions.tolist()):
            one = len(positions) == 1
            targets[position] = {name: values if one else values[i].copy() for name, values in outputs.items()}
    return [targets[i] for i in range(len(targets))]


def standard_error(scores: Scores) -> float:
    """Of the mean of ``(n,)`` scores."""
    return float(np.std(scores) / np.sqrt(len(scores)))


def _classes(outputs: Outputs) -> tuple[str, npt.NDArray[np.int64]]:
    """The output that has a row of scores for each prediction, and their argmax: ``logits``, or the first."""
    name = "logits" if "logits" in outputs else next(iter(outputs))
    values = outputs[name]
    if values.ndim < 2 or values.shape[-1] < 2:
        raise UsageError(
            f"the output '{name}' has shape {values.shape}; classes need (examples, ..., classes) with two or more, "
            "give a metric of yours with --metric module:function"
        )
    return name, values.argmax(axis=-1)
