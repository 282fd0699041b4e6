"""How two models are compared on the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm

from qnas_plugin.measure.metrics import METRICS
from qnas_plugin.measure.metrics.metric import Metric
from qnas_plugin.objectives import Direction, sign

Floats = npt.NDArray[np.float64]
Clusters = npt.NDArray[np.int64]

ACCURACY = METRICS["accuracy"]
PERMUTATIONS = 5000
ALL_PERMUTATIONS = 12
"""Up to so many clusters all permutations are tried."""


@dataclass(frozen=True)
class Paired:
    """How much better a model is than another on each example.

    Args:
        differences: ``(n,)`` in [-1, 1], in units of the scale; above 0 the model is better.
        scale: What 1 stands for, in units of the metric.
    """

    differences: Floats
    scale: float = 1.0

    @classmethod
    def of(cls, scores: Floats, others: Floats, metric: Metric = ACCURACY) -> Paired:
        """Of the scores ``(n,)`` of two models. For a mean the scale is 1, else the range of all scores seen."""
        if metric.mean:
            return cls(scores - others)
        spread = float(max(scores.max(), others.max()) - min(scores.min(), others.min())) if len(scores) else 0.0
        scale = spread or 1.0
        return cls(-sign(metric.direction) * (scores - others) / scale, scale)


def gain(value: float, other: float, direction: Direction) -> float:
    """By how much a value of the metric is better than another one."""
    return value - other if direction == "maximize" else other - value


def compare(
    metrics: Mapping[str, float],
    reference: Mapping[str, float],
    scores: Floats,
    reference_scores: Floats,
    metric: Metric = ACCURACY,
    clusters: Clusters | None = None,
) -> dict[str, float]:
    """How a model stands against another: speed-up, shrink factor, accuracy difference and its paired test.

    Where scores are those of examples themselves it also has on how many the model does better and worse.

    ``p_value`` is two-sided: the chance of so unequal a pair if both were equally good. For a mean of independent
    examples it is that of the exact sign test: so unequal a split of the examples that one of the two does better on.
    For right and wrong answers it is McNemar's exact test. Otherwise it is that of `permutation_p_value`.

    Args:
        metrics: Of the model, by name.
        reference: Of the other one.
        scores: Of the model, ``(n,)``.
        reference_scores: Of the other one.
        metric: That they are of.
        clusters: For each example the number ``(n,)`` of its group, where examples of a group depend on each other.
    """
    pair = Paired.of(scores, reference_scores, metric)
    gained, lost = int((pair.differences > 0).sum()), int((pair.differences < 0).sum())
    if exact_test(metric, clusters):
        p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    else:
        p_value = permutation_p_value(pair.differences, clusters)
    counts = {"gained": gained, "lost": lost} if metric.mean else {}
    return {
        "latency_ratio": reference["latency_ms"] / metrics["latency_ms"],
        "size_ratio": reference["size_mb"] / metrics["size_mb"],
        "accuracy_difference": metrics["accuracy"] - reference["accuracy"],
        **counts,
        "p_value": p_value,
    }


def exact_test(metric: Metric, clusters: Clusters | None) -> bool:
    """Whether two models are compared by the exact sign test, not by permutations."""
    return metric.mean and clusters is None


def permutation_p_value(differences: Floats, clusters: Clusters | None = None) -> float:
    """How often the mean difference is as large or larger when the two models are exchanged at random, two-sided.

    They are exchanged on single examples, or on whole clusters. Exact for a mean; for other metrics, whose scores are
    those of examples to first order, for many examples.

    Args:
        differences: ``(n,)``.
        clusters: For each example the number ``(n,)`` of its group.
    """
    sums = differences if clusters is None else np.bincount(np.unique(clusters, return_inverse=True)[1], differences)
    sums = sums[sums != 0]
    found = abs(float(sums.sum()))
    if len(sums) <= ALL_PERMUTATIONS:
        bits = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float((np.abs((2 * bits - 1) @ sums) >= found * (1 - 1e-9)).mean())
    rng = np.random.default_rng(0)
    beyond = 0
    for _ in range(PERMUTATIONS // 100):  # few at a time: there may be many examples
        flips = rng.integers(0, 2, (100, len(sums)), dtype=np.int8)
        beyond += int((np.abs((2.0 * flips - 1) @ sums) >= found * (1 - 1e-9)).sum())
    return (1 + beyond) / (1 + PERMUTATIONS)


def interval(pair: Paired, confidence: float, clusters: Clusters | None = None) -> tuple[float, float] | None:
    """A two-sided interval of the mean gain, by the normal approximation; None for fewer than two examples.

    Args:
        pair: Of ``n`` examples.
        confidence: In (0, 1).
        clusters: For each example the number ``(n,)`` of its group, where examples of a group depend on each other.
    """
    differences = pair.differences
    count = len(differences)
    if count < 2:
        return None
    mean = float(differences.mean())
    off: Floats = differences - mean
    if clusters is not None:
        off = np.bincount(clusters, weights=off).astype(np.float64)
    # One example more that differs: where none does, that says little about the next ones.
    error = float(np.sqrt((off**2).sum() + 1.0) / count)
    width = float(norm.ppf(0.5 + confidence / 2)) * error
    return pair.scale * max(-1.0, mean - width), pair.scale * min(1.0, mean + width)
