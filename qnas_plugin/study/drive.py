"""The loop that asks an algorithm, has candidates evaluated, stores and tells; one for this process and for workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from qnas_plugin.search import Algorithm, Observation
from qnas_plugin.space import Candidate
from qnas_plugin.study.evaluation import Evaluation, Trial, attempt
from qnas_plugin.study.study import Study


class Executor(Protocol):
    """Where candidates are evaluated."""

    def room(self) -> int:
        """How many candidates may be under way now, at least 1."""
        ...

    def submit(self, candidate: Candidate) -> None:
        """Takes a candidate; what comes of it is given later."""
        ...

    def finished(self) -> tuple[Candidate, Evaluation]:
        """Waits for one of the candidates under way, of which there is one; each is given once."""
        ...


class Here:
    """Evaluates in this process, one candidate after the other.

    Args:
        evaluate: Builds and measures a candidate. A ``CandidateError`` makes a failed trial; others end the run.
    """

    def __init__(self, evaluate: Callable[[Candidate], Evaluation]) -> None:
        self._evaluate = evaluate
        self._waiting: deque[Candidate] = deque()

    def room(self) -> int:
        """One: the next proposal knows this trial."""
        return 1

    def submit(self, candidate: Candidate) -> None:
        """Takes a candidate."""
        self._waiting.append(candidate)

    def finished(self) -> tuple[Candidate, Evaluation]:
        """Evaluates the one that was submitted first."""
        candidate = self._waiting.popleft()
        return candidate, attempt(self._evaluate, candidate)


def drive(
    study: Study,
    algorithm: Algorithm,
    executor: Executor,
    *,
    trials: int,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> None:
    """Asks, has evaluated, stores and tells, until the study has so many trials or no candidate is left.

    The algorithm is told of trials in the order in which it was asked for them, and asked for the next candidate each
    time that it was told of one. So what it proposes does not depend on which worker was faster: where metrics are the
    same and no worker ends, a seed and a number of workers give the same trials.

    Args:
        study: Opened for writing; the trials that it has are told first and count.
        algorithm: Fresh.
        executor: Evaluates. Its errors end the run.
        trials: The total, stored ones included.
        on_trial: Called after each new trial.
    """
    stored = study.trials()
    algorithm.tell([trial.observation for trial in stored])
    asked, under_way, exhausted = len(stored), 0, False
    untold: deque[Candidate] = deque()
    outcomes: dict[str, Observation] = {}
    while True:
        while not exhausted and asked < trials and len(untold) < executor.room():
            candidate = algorithm.ask([candidate.key for candidate in untold])
            if candidate is None:
                exhausted = True
            else:
                asked, under_way = asked + 1, under_way + 1
                untold.append(candidate)
                executor.submit(candidate)
        if untold and untold[0].key in outcomes:
            algorithm.tell([outcomes.pop(untold.popleft().key)])
            continue
        if not under_way:
            return
        candidate, evaluation = executor.finished()
        under_way -= 1
        trial = study.add(candidate, evaluation)
        outcomes[candidate.key] = trial.observation
        on_trial(trial)
