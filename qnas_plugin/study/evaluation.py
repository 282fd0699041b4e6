"""What came out when a candidate was built and measured, and that as a stored trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from qnas_plugin.errors import CandidateError
from qnas_plugin.measure.belief import Halves
from qnas_plugin.search import Observation
from qnas_plugin.space import Candidate

What = TypeVar("What")


@dataclass(frozen=True)
class Evaluation:
    """What came out when a candidate was built and measured.

    Args:
        metrics: Values by name; a metric that was not measured is absent.
        spread: The spread of measured values, in their unit.
        seconds: How long each stage took.
        environment: What the values depend on beside the candidate: versions, the CPU, the setting; empty when it
            failed.
        error: Why it failed; None when it did not.
        halves: Mean scores on halves of the examples, where the accuracy was measured example by example.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    halves: Halves | None = None


@dataclass(frozen=True)
class Trial(Evaluation):
    """A stored, evaluated candidate. Trials are numbered from 0 in the order in which they finished."""

    number: int = field(kw_only=True)
    candidate: Candidate = field(kw_only=True)

    @property
    def state(self) -> Literal["complete", "failed"]:
        """Complete when every objective was measured."""
        return "complete" if self.error is None else "failed"

    @property
    def observation(self) -> Observation:
        """What a search algorithm is told."""
        return Observation(self.candidate, self.metrics if self.error is None else None, self.halves)


def attempt(evaluate: Callable[[What], Evaluation], what: What) -> Evaluation:
    """The evaluation of a candidate; a ``CandidateError`` makes it a failed one."""
    start = time.perf_counter()
    try:
        return evaluate(what)
    except CandidateError as error:
        return Evaluation(error=f"{type(error).__name__}: {error}", seconds={"failed": time.perf_counter() - start})
