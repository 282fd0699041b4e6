"""The loop that asks an algorithm, evaluates, stores and tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from qnas_plugin.errors import CandidateError
from qnas_plugin.search import Algorithm
from qnas_plugin.space import Candidate
from qnas_plugin.study.evaluation import Evaluation, Trial
from qnas_plugin.study.study import Study

What = TypeVar("What")


def drive(
    study: Study,
    algorithm: Algorithm,
    evaluate: Callable[[Candidate], Evaluation],
    *,
    trials: int,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> None:
    """Asks, evaluates, stores and tells, until the study has so many trials or no candidate is left.

    Args:
        study: Opened for writing; the trials that it has are told first and count.
        algorithm: Fresh.
        evaluate: Builds and measures a candidate. A ``CandidateError`` makes a failed trial; others end the run.
        trials: The total, stored ones included.
        on_trial: Called after each new trial.
    """
    stored = study.trials()
    algorithm.tell([trial.observation for trial in stored])
    for _ in range(len(stored), trials):
        candidate = algorithm.ask()
        if candidate is None:
            return
        trial = study.add(candidate, attempt(evaluate, candidate))
        algorithm.tell([trial.observation])
        on_trial(trial)


def attempt(evaluate: Callable[[What], Evaluation], what: What) -> Evaluation:
    """The evaluation of a candidate; a ``CandidateError`` makes it a failed one."""
    start = time.perf_counter()
    try:
        return evaluate(what)
    except CandidateError as error:
        return Evaluation(error=f"{type(error).__name__}: {error}", seconds={"failed": time.perf_counter() - start})
