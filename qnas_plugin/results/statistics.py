"""How two models are compared on the same examples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm

Floats = npt.NDArray[np.float64]


def compare(
    metrics: Mapping[str, float],
    reference: Mapping[str, float],
    scores: Floats,
    reference_scores: Floats,
) -> dict[str, float]:
    """How a model stands against another: speed-up, shrink factor, accuracy difference and its paired test.

    ``p_value`` is that of the exact sign test, two-sided: the chance of so unequal a split of the examples that one of
    the two does better on, if both were equally good. For right and wrong answers it is McNemar's exact test.
    """
    gained, lost = int((scores > reference_scores).sum()), int((scores < reference_scores).sum())
    return {
        "latency_ratio": reference["latency_ms"] / metrics["latency_ms"],
        "size_ratio": reference["size_mb"] / metrics["size_mb"],
        "accuracy_difference": metrics["accuracy"] - reference["accuracy"],
        "gained": gained,
        "lost": lost,
        "p_value": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    }


def interval(
    differences: Floats, confidence: float, clusters: npt.NDArray[np.int64] | None = None
) -> tuple[float, float] | None:
    """A two-sided interval of the mean of paired differences, by the normal approximation; None for fewer than two.

    Args:
        differences: ``(n,)`` in [-1, 1].
        confidence: In (0, 1).
        clusters: For each example the number ``(n,)`` of its group, where examples of a group depend on each other.
    """
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
    return max(-1.0, mean - width), min(1.0, mean + width)
