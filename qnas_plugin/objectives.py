"""Objectives, limits, and the geometry of Pareto fronts. The only module that knows about signs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import UnknownNameError, UsageError

Losses = npt.NDArray[np.float64]
"""Objective values turned so that less is better, shape ``(m, k)`` for ``m`` candidates and ``k`` objectives."""

Direction = Literal["maximize", "minimize"]

Objectives = Sequence[str] | Mapping[str, Direction]
"""Names of metrics, in their order; with their directions where these are not the usual ones."""

METRICS: dict[str, Direction] = {
    "accuracy": "maximize",
    "latency_ms": "minimize",
    "size_mb": "minimize",
    "gmacs": "minimize",
    "gbitops": "minimize",
}
"""The metrics that can be objectives or limited, with the usual direction in which each gets better.

What stands as accuracy may get better the other way: see `directed`.
"""

COMPUTED = ("size_mb", "gmacs", "gbitops")
"""Those that follow from the candidate alone; see ``qnas_plugin.measure.costs``."""


@dataclass(frozen=True)
class Limit:
    """A bound that a candidate must keep: ``metric <= value`` or ``metric >= value``."""

    metric: str
    comparison: Literal["<=", ">="]
    value: float

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{repr(self.value).removesuffix('.0')}"

    def violation(self, metrics: Mapping[str, float]) -> float:
        """How far a candidate is beyond the bound, relative to it; 0 when it keeps it.

        Raises:
            KeyError: The metric was not measured.
        """
        return float(self.excess(np.array(metrics[self.metric])))

    def excess(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """How far values of the metric are beyond the bound, relative to it; 0 where they keep it."""
        beyond = values - self.value if self.comparison == "<=" else self.value - values
        return np.maximum(0.0, beyond) / max(abs(self.value), 1e-12)


def parse_limit(text: str) -> Limit:
    """Reads ``latency_ms<=5``.

    Raises:
        UsageError: The text has another form, or the number is not finite.
        UnknownNameError: There is no such metric.
    """
    match = re.fullmatch(r"\s*([a-z_0-9]+)\s*(<=|>=)\s*(\S+)\s*", text)
    if match is None:
        raise UsageError(f"cannot read the limit '{text}'; write it like 'latency_ms<=5' or 'accuracy>=0.9'")
    metric, comparison, number = match.groups()
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    try:
        value = float(number)
    except ValueError:
        raise UsageError(f"the limit '{text}' needs a number after '{comparison}', got '{number}'") from None
    if not math.isfinite(value):
        raise UsageError(f"the limit '{text}' needs a finite number, got '{number}'")
    return Limit(metric, "<=" if comparison == "<=" else ">=", value)


def check_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """The objectives in the order given.

    Raises:
        UnknownNameError: There is no such metric.
        UsageError: One stands twice, or there are not two or three.
    """
    for name in names:
        if name not in METRICS:
            raise UnknownNameError("objective", name, METRICS)
    if len(set(names)) != len(names):
        raise UsageError(f"each objective may stand once, got {', '.join(names)}")
    if not 2 <= len(names) <= 3:
        raise UsageError(f"give two or three objectives of {', '.join(METRICS)}; got {len(names)}")
    return tuple(names)


def directed(names: Sequence[str], accuracy: Direction) -> Mapping[str, Direction]:
    """Objectives with their directions; that of accuracy is the metric's that stands as accuracy."""
    return {name: accuracy if name == "accuracy" else METRICS[name] for name in names}


def losses(metrics: Sequence[Mapping[str, float]], objectives: Objectives) -> Losses:
    """The metrics of ``m`` candidates as an ``(m, k)`` array in which less is better."""
    values = np.array([[row[name] for name in objectives] for row in metrics], dtype=np.float64)
    return values.reshape(-1, len(objectives)) * signs(objectives)


def violations(metrics: Sequence[Mapping[str, float]], limits: Sequence[Limit]) -> npt.NDArray[np.float64]:
    """How far ``m`` candidates are beyond ``c`` limits, shape ``(m, c)``; 0 where a limit is kept."""
    values = np.array([[limit.violation(row) for limit in limits] for row in metrics], dtype=np.float64)
    return values.reshape(len(metrics), len(limits))


def signs(objectives: Objectives) -> Losses:
    """+1 for an objective that is minimised and -1 for one that is maximised, shape ``(k,)``.

    A name that is not among the metrics is that of a loss: Optuna's studies have objectives of their own.
    """
    known: Mapping[str, Direction] = objectives if isinstance(objectives, Mapping) else METRICS
    return np.array([sign(known.get(name, "minimize")) for name in objectives])


def sign(direction: Direction) -> float:
    """+1 for what is minimised and -1 for what is maximised."""
    return 1.0 if direction == "minimize" else -1.0


def non_dominated(points: Losses) -> npt.NDArray[np.bool_]:
    """Which of ``(m, k)`` losses no other point is better than; of equal points all are kept."""
    no_worse = (points[None, :, :] <= points[:, None, :]).all(axis=2)
    better = (points[None, :, :] < points[:, None, :]).any(axis=2)
    dominated: npt.NDArray[np.bool_] = (no_worse & better).any(axis=1)
    return ~dominated


def near_front(points: Losses, tolerance: Losses) -> npt.NDArray[np.bool_]:
    """Which of ``(m, k)`` losses are on the front, or so near it that noise may hide that they are.

    A point is near when no other is better by more than the tolerance in all objectives together: none dominates it
    once its losses are lowered by the tolerance. Beside the front there are at most as many of them as it has, those
    that needed the least lowering.

    Args:
        points: Losses.
        tolerance: For each point and objective, ``(m, k)``, at least 0.
    """
    front = non_dominated(points)
    needed = np.full(len(points), np.inf)
    for share in np.linspace(1.0, 0.1, 10):  # the least share of the tolerance that puts a point on the front
        for i in np.flatnonzero(~front):
            lowered = points[i] - share * tolerance[i]
            if not ((points <= lowered).all(axis=1) & (points < lowered).any(axis=1)).any():
                needed[i] = share
    near = np.argsort(needed, kind="stable")[: int(front.sum())]
    front[near[np.isfinite(needed[near])]] = True
    return front


def hypervolume(points: Losses, reference: Losses) -> float:
    """The volume that ``(m, k)`` losses dominate below a reference point ``(k,)``; points beyond it count nothing."""
    import moocore

    inside = points[(points < reference).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=reference)) if len(inside) else 0.0
