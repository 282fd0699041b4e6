"""The seam of the search algorithms: plain ask and tell.

An algorithm is a module of this folder (or of an entry point ``qnas_plugin.search``) with one function:

    create(problem: Problem, *, seed: int, population: int) -> Algorithm
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qnas_plugin.measure.belief import Halves
from qnas_plugin.objectives import Limit, Objectives
from qnas_plugin.space import Candidate, Genes, SearchSpace

ExactMetric = Callable[[Genes], npt.NDArray[np.float64]]
"""Canonical genotypes ``(m, n)`` to the exact values ``(m,)`` of a metric that needs no measurement."""


@dataclass(frozen=True)
class Problem:
    """What is searched and for what.

    Args:
        space: The variables.
        objectives: Names of metrics, two or three, with their directions where ``qnas_plugin.objectives`` has others.
        limits: Bounds that the result should keep.
        exact: Metrics that follow from the candidate alone; the others are predicted.
    """

    space: SearchSpace
    objectives: Objectives
    limits: tuple[Limit, ...] = ()
    exact: Mapping[str, ExactMetric] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """A candidate that was evaluated.

    Args:
        candidate: What was evaluated.
        metrics: Values by name; None when it failed.
        halves: Mean scores on halves of the examples, where they are known.
    """

    candidate: Candidate
    metrics: Mapping[str, float] | None
    halves: Halves | None = None


class Algorithm(Protocol):
    """Proposes candidates. Deterministic: the same seed and the same history give the same proposals."""

    def tell(self, observations: Sequence[Observation]) -> None:
        """Takes finished trials in the order in which they were stored; also those of an earlier, stopped run."""
        ...

    def ask(self, in_flight: Collection[str] = ()) -> Candidate | None:
        """The next candidate to evaluate: none told before and none whose key is in flight; None when none is left."""
        ...
