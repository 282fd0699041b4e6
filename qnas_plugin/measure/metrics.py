"""What stands as ``accuracy``: outputs of a model and what they should be, to a score in [0, 1] for each example.

    accuracy      the share of labels that the model predicts; the last axis of its output is that of the classes, or
                  its output has the predictions themselves, numbers or names
    agreement     the same with the predictions of the FP32 model in place of labels
    cosine        the cosine similarity with the outputs of the FP32 model, 0 where it is negative
    module:name   a function of yours: (outputs, labels) to scores ``(b,)`` of ``b`` examples

A function gets the outputs of a run by name and the labels of its examples. Scores are of single examples, so that two
models can be compared pair by pair; what is reported is their mean.

Beside its score, ``accuracy`` and ``agreement`` have a *soft score* of each example from the same outputs: the
probability of the right class. It tells candidates apart that right and wrong answers on a few hundred examples do not,
see ``qnas_plugin.measure.witness``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import UnknownNameError, UsageError
from qnas_plugin.user_function import call, load_function

Outputs = Mapping[str, npt.NDArray[Any]]
"""Outputs of one run by name."""

Scores = npt.NDArray[np.float64]
Metric = Callable[[Outputs, Any], Scores]

REFERENCE = ("agreement", "cosine")
"""The metrics that need no labels, but the outputs of the FP32 model."""


def accuracy(outputs: Outputs, labels: npt.NDArray[Any]) -> Scores:
    """The share of each example's labels ``(b, ...)`` that are predicted: see `_predictions`.

    Raises:
        UsageError: No output has a prediction for each label.
    """
    names = labels.dtype.kind not in "biuf"
    found = _predictions(outputs, names=names)
    for name, predicted in found.items():
        fitting = _as_shape(predicted, labels.shape)
        if fitting is not None:
            _check_labels(labels, outputs[name], name)
            return np.asarray((fitting == labels).reshape(len(labels), -1).mean(axis=1))
    if names:
        raise UsageError(
            f"the labels are names, like {str(labels.flat[0])!r}, and no output of the model is one for each; give the "
            "numbers of classes, or a metric of yours with --metric module:function"
        )
    name, predicted = next(iter(found.items()))
    raise UsageError(
        f"the output '{name}' has {predicted.shape} predictions and there are labels {labels.shape}; they must be "
        "as many: give a metric of yours with --metric module:function"
    )


def _check_labels(labels: npt.NDArray[Any], output: npt.NDArray[Any], name: str) -> None:
    """Checks that labels can be predicted; a negative one may stand for none.

    Raises:
        UsageError: One is no whole number, or beyond the last class.
    """
    if labels.dtype.kind == "f" and not (labels == np.round(labels)).all():
        odd = labels[labels != np.round(labels)][0]
        raise UsageError(
            f"the labels are no numbers of classes, like {odd}; give a metric of yours with --metric module:function"
        )
    if output.dtype.kind == "f" and labels.max(initial=0) >= output.shape[-1]:
        raise UsageError(
            f"the label {labels.max()} is no class of the output '{name}', which has {output.shape[-1]}, counted from 0"
        )


def agreement(outputs: Outputs, expected: Outputs) -> Scores:
    """The share of each example's predictions that are those of the FP32 model; 0 where they are not as many."""
    name, classes = next(iter(_predictions(outputs).items()))
    theirs = _predictions(expected)[name]
    if classes.shape != theirs.shape:
        return np.zeros(len(classes))
    same = (classes == theirs).reshape(len(classes), -1)
    return np.asarray(same.mean(axis=1) if same.shape[1] else np.ones(len(classes)))


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


def label_probability(outputs: Outputs, labels: npt.NDArray[Any]) -> Scores | None:
    """The probability of each example's labels ``(b, ...)``, their mean ``(b,)``; 0 for a label that is no class.

    The softmax over the last axis of the output, or its values where they are probabilities already. None where no
    output has a number for each class.
    """
    classes = {name: found for name, found in _predictions(outputs).items() if outputs[name].dtype.kind == "f"}
    fitting = [name for name, found in classes.items() if _as_shape(found, labels.shape) is not None]
    if not fitting:
        return None
    values = outputs[fitting[0]].astype(np.float64)
    if not ((values >= 0).all() and np.allclose(values.sum(axis=-1), 1.0, atol=1e-3)):
        values = np.exp(values - values.max(axis=-1, keepdims=True))
        values /= values.sum(axis=-1, keepdims=True)
    numbers = labels.reshape(values.shape[:-1])
    known = (numbers >= 0) & (numbers < values.shape[-1])
    chosen = np.take_along_axis(values, np.where(known, numbers, 0).astype(np.int64)[..., None], axis=-1)[..., 0]
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
            arrays = {name: values for name, values in outputs.items() if name in self._comparable}
            return metric(
                {name: values if count > 1 else values[None] for name, values in arrays.items()},
                {name: np.stack([target[name] for target in expected]) for name in arrays},
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
            mine = {name: outputs[name][None] if one else outputs[name] for name in self._comparable}
            theirs = {name: np.stack([self.targets[i][name] for i in positions]) for name in self._comparable}
            name, classes = next(iter(_predictions(theirs).items()))
            if mine[name].shape != theirs[name].shape:
                return np.zeros(len(positions))
            return label_probability({name: mine[name]}, classes)
        return None

    @cached_property
    def _comparable(self) -> frozenset[str]:
        """The outputs that say how alike two models are: arrays, for cosine similarity of floats and of more than one.

        Raises:
            UsageError: There is none.
        """
        arrays = {
            name: [target[name] for target in self.targets]
            for name, values in self.targets[0].items()
            if isinstance(values, np.ndarray)
        }
        if self.metric != "cosine":
            return frozenset(arrays)
        floats = {name: values for name, values in arrays.items() if values[0].dtype.kind == "f"}
        if not floats:
            raise UsageError(
                f"no output of the model is an array of floats, only {', '.join(self.targets[0])}; give labels, "
                "--metric agreement, or a metric of yours with --metric module:function"
            )
        more = [name for name, values in floats.items() if any(array.size != 1 for array in values)]
        if not more:
            raise UsageError(
                f"the output '{next(iter(floats))}' is one number, which has no direction; give labels, or a metric of "
                "yours with --metric module:function"
            )
        return frozenset(more)


def references(runs: Sequence[tuple[npt.NDArray[np.int64], Outputs]]) -> list[dict[str, npt.NDArray[Any]]]:
    """The targets of a `REFERENCE` metric: the outputs of the FP32 model by example.

    Args:
        runs: Positions and outputs of each run. Outputs of one example may lack a batch axis.
    """
    targets: dict[int, dict[str, npt.NDArray[Any]]] = {}
    for positions, outputs in runs:
        for i, position in enumerate(positions.tolist()):
            one = len(positions) == 1
            targets[position] = {
                name: np.array(values[i]) if isinstance(values, np.ndarray) and not one else values
                for name, values in outputs.items()
            }
    return [targets[i] for i in range(len(targets))]


def standard_error(scores: Scores) -> float:
    """Of the mean of ``(n,)`` scores."""
    return float(np.std(scores) / np.sqrt(len(scores)))


def _predictions(outputs: Outputs, *, names: bool = False) -> dict[str, npt.NDArray[Any]]:
    """What each output predicts: ``logits`` first, then the others in their order.

    That of floats ``(b, ..., classes)`` is the argmax over the last axis; integers and names are predictions as they
    are.

    Args:
        outputs: Of a run.
        names: Whether names are asked for, or numbers.

    Raises:
        UsageError: No output predicts anything of this kind.
    """
    ordered = sorted(outputs.items(), key=lambda item: item[0] != "logits")
    arrays = {name: values for name, values in ordered if isinstance(values, np.ndarray)}
    found = {}
    for name, values in arrays.items():
        if values.dtype.kind == "f" and values.ndim > 1 and values.shape[-1] > 1 and not names:
            found[name] = values.argmax(axis=-1)
        elif values.dtype.kind in ("OUS" if names else "iub"):
            found[name] = values
    if not found and not names:
        shown = ", ".join(f"the output '{name}' has shape {values.shape}" for name, values in arrays.items())
        raise UsageError(
            f"{shown or 'no output of the model is an array'}; classes need (examples, ..., classes) with two or more, "
            "give a metric of yours with --metric module:function"
        )
    return found


def _as_shape(predicted: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    """Predictions in the shape of the labels, where they differ by axes of 1 alone, the examples apart."""
    if predicted.shape == shape:
        return predicted
    apart = shape[0] == 1 or predicted.shape[:1] == shape[:1]
    alike = [size for size in predicted.shape if size != 1] == [size for size in shape if size != 1]
    return predicted.reshape(shape) if apart and alike else None
