"""What the trials of a study say together: accuracies freed of the luck of examples, latencies freed of drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qnas_plugin.measure.metrics import Scored
from qnas_plugin.measure.metrics.metric import Scores
from qnas_plugin.measure.witness import Corrected, corrected, halvings

SOFT = "accuracy_soft"
"""The name of the mean soft score among the metrics of a trial."""
RATIO = "latency_ratio"
"""The name of the reference's latency over that of the trial, both timed in turns."""


@dataclass(frozen=True)
class Halves:
    """Mean scores of a trial on halves of its examples: what the soft score has to prove itself with.

    Args:
        examples: How many there are.
        accuracy: Mean scores on the first half of each of the `halvings`.
        soft: Mean soft scores on them; None where the metric has none.
    """

    examples: int
    accuracy: tuple[float, ...]
    soft: tuple[float, ...] | None = None

    @classmethod
    def of(cls, scored: Scored) -> Halves:
        """Of the scores of one trial."""
        first = halvings(len(scored.scores))

        def means(values: Scores) -> tuple[float, ...]:
            return tuple(round(float(values[half].mean()), 6) for half in first)

        return cls(len(scored.scores), means(scored.scores), None if scored.soft is None else means(scored.soft))


class Witness(Protocol):
    """A trial, or what an algorithm is told of one."""

    @property
    def metrics(self) -> Mapping[str, float] | None:
        """Values by name; None when it failed."""
        ...

    @property
    def halves(self) -> Halves | None:
        """Where its accuracy was measured example by example."""
        ...


@dataclass(frozen=True)
class Beliefs:
    """What is believed of some trials.

    Args:
        metrics: Of each, with corrected accuracy and comparable latency.
        accuracy: How accuracies were corrected; None where trials do not say enough.
        reference_ms: The latency of the reference that the others were timed in turns with; None without one.
    """

    metrics: tuple[Mapping[str, float], ...]
    accuracy: Corrected | None
    reference_ms: float | None


def believed(trials: Sequence[Witness]) -> Beliefs:
    """What is believed of complete trials, by all of them together.

    Accuracy is corrected by the soft score where that has proved itself (`measure.witness`). A latency is the
    median of all measurements of the reference, over the trial's own ratio to it: what slowed the machine during one
    trial slowed the reference beside it as well.
    """
    rows = [dict(trial.metrics or {}) for trial in trials]
    accuracy = _accuracy(trials)
    if accuracy is not None and accuracy.witness == "soft":
        for row, value in zip(rows, accuracy.accuracy.tolist(), strict=True):
            row["accuracy"] = value
    measured = [row["latency_ms"] * row[RATIO] for row in rows if RATIO in row and "latency_ms" in row]
    reference_ms = float(np.median(measured)) if measured else None
    for row in rows:
        if reference_ms is not None and RATIO in row:
            row["latency_ms"] = reference_ms / row[RATIO]
    return Beliefs(tuple(rows), accuracy, reference_ms)


def _accuracy(trials: Sequence[Witness]) -> Corrected | None:
    halves = [trial.halves for trial in trials]
    known = [half for half in halves if half is not None]
    if not known or len(known) < len(halves) or len({half.examples for half in known}) > 1:
        return None
    metrics = [trial.metrics or {} for trial in trials]
    soft = all(half.soft is not None for half in known) and all(SOFT in row for row in metrics)
    return corrected(
        np.array([row["accuracy"] for row in metrics]),
        np.array([row[SOFT] for row in metrics]) if soft else None,
        np.array([half.accuracy for half in known]),
        np.array([half.soft for half in known]) if soft else None,
        known[0].examples,
    )
