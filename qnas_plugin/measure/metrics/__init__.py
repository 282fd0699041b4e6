"""What stands as ``accuracy``: outputs of a model and what they should be, to a value.

    accuracy      the share of labels that the model predicts; the last axis of its output is that of the classes, or
                  its output has the predictions themselves, numbers or names
    agreement     the same with the predictions of the FP32 model in place of labels
    cosine        the cosine similarity with the outputs of the FP32 model, 0 where it is negative
    f1            of class 1 where there are two classes, else the mean over classes
    miou          mean intersection over union of maps of classes
    spearman      the rank correlation of one number with the label
    perplexity    the exponential of the mean negative log-probability of labels; less is better
    module:name   a function of yours: (outputs, labels) to scores in [0, 1] ``(b,)`` of ``b`` examples; or an object
                  with ``statistics(outputs, labels)``, ``(b, s)``, and ``value(sums)``

A metric gets the outputs of a run by name and the labels of its examples, and gives numbers of single examples, so that
two models can be compared pair by pair (`metric.Metric`).

Beside its score, ``accuracy``, ``agreement`` and ``f1`` have a *soft score* of each example from the same outputs: the
probability of the right class. It tells candidates apart that right and wrong answers on a few hundred examples do not,
see ``qnas_plugin.measure.witness``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import UnknownNameError, UsageError
from qnas_plugin.measure.metrics import classes, likeness
from qnas_plugin.measure.metrics.metric import Floats, Mean, Metric, OfSums, Outputs, Scores
from qnas_plugin.measure.metrics.predictions import label_probability
from qnas_plugin.measure.metrics.ranks import Spearman
from qnas_plugin.measure.metrics.references import Arrays, References
from qnas_plugin.measure.metrics.users import user_metric

METRICS: Mapping[str, Metric] = {
    "accuracy": Mean(classes.accuracy, label_probability),
    "agreement": Mean(likeness.agreement, likeness.soft_agreement, of_reference=True),
    "cosine": Mean(likeness.cosine, of_reference=True),
    "f1": OfSums(classes.class_counts, classes.f1, label_probability),
    "miou": OfSums(classes.map_counts, classes.mean_iou),
    "spearman": Spearman(),
    "perplexity": OfSums(classes.surprise, classes.perplexity, direction="minimize", points=False),
}


def load(name: str) -> Metric:
    """The metric of that name, or of the function or object ``module:name``.

    Raises:
        UnknownNameError: There is no such metric.
        UsageError: It cannot be imported, or is no metric.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        raise UnknownNameError("metric", name, METRICS)
    return user_metric(name)


def shown(name: str) -> str:
    """What people read in place of ``accuracy``: the name of the metric, of one of the user's without its module."""
    return name.rpartition(":")[2]


@dataclass(frozen=True, eq=False)
class Scored:
    """What a model gets for each example.

    Args:
        scores: Their mean is the value of the metric, ``(n,)``.
        soft: The soft score of the same outputs, ``(n,)`` in [0, 1]; None where the metric has none.
    """

    scores: Scores
    soft: Scores | None = None


@dataclass(frozen=True)
class Scorer:
    """A metric with what the outputs of each example should be.

    Args:
        metric: Its name.
        targets: Labels ``(n, ...)`` by position, or the FP32 model's outputs.
    """

    metric: str
    targets: npt.NDArray[Any] | References

    def statistics(self, outputs: Outputs, positions: npt.NDArray[np.int64]) -> Floats:
        """What the metric must know of the examples at these positions, ``(b, s)``.

        Raises:
            UsageError: The outputs have other shapes than the metric needs, or a user's function fails or gives
                something else than it should.
        """
        return load(self.metric).statistics(*self._pair(outputs, positions))

    def scores(self, statistics: Floats) -> Scores:
        """The scores ``(n,)`` of all examples, by their statistics ``(n, s)``.

        Raises:
            UsageError: A user's function fails.
        """
        return load(self.metric).scores(statistics)

    def soft(self, outputs: Outputs, positions: npt.NDArray[np.int64]) -> Scores | None:
        """The soft scores ``(b,)`` of the examples at these positions; None where the metric has none."""
        return load(self.metric).soft(*self._pair(outputs, positions))

    def _pair(self, outputs: Outputs, positions: npt.NDArray[np.int64]) -> tuple[Outputs, npt.NDArray[Any] | Arrays]:
        """Outputs and what they should be, both with a batch axis."""
        if not isinstance(self.targets, References):
            return outputs, np.asarray(self.targets)[positions]
        expected = self.targets.of(positions)
        names = [name for name in outputs if name in self._comparable]
        one = len(positions) == 1
        return {name: outputs[name][None] if one else outputs[name] for name in names}, {
            name: expected[name] for name in names
        }

    @cached_property
    def _comparable(self) -> frozenset[str]:
        """The outputs that say how alike two models are: arrays, for cosine similarity of floats and of more than one.

        Raises:
            UsageError: There is none.
        """
        assert isinstance(self.targets, References)
        kinds = self.targets.kinds
        if self.metric != "cosine":
            return frozenset(kinds)
        floats = {name: several for name, (kind, several) in kinds.items() if kind == "f"}
        if not floats:
            raise UsageError(
                f"no output of the model is an array of floats, only {', '.join(self.targets.names)}; give labels, "
                "--metric agreement, or a metric of yours with --metric module:function"
            )
        more = [name for name, several in floats.items() if several]
        if not more:
            raise UsageError(
                f"the output '{next(iter(floats))}' is one number, which has no direction; give labels, or a metric of "
                "yours with --metric module:function"
            )
        return frozenset(more)


def standard_error(scores: Scores) -> float:
    """Of the mean of ``(n,)`` scores."""
    return float(np.std(scores) / np.sqrt(len(scores)))
