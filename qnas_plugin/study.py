"""Trials, their storage, and the loop that fills it: ask, evaluate, store, tell."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from qnas_plugin.errors import CandidateError, MeasurementError, OutputError, StudyError, UsageError
from qnas_plugin.objectives import METRICS
from qnas_plugin.search import Algorithm, Observation
from qnas_plugin.space import Candidate, SearchSpace

SCHEMA_VERSION = 1
_IDENTITY = "qnas_identity"


class Evaluated(Protocol):
    """What an evaluation gives; see ``qnas_plugin.evaluate.Evaluation``."""

    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def spread(self) -> Mapping[str, float]: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Trial:
    """One evaluated candidate.

    Args:
        number: Its place in the study, from 0.
        candidate: What was evaluated.
        state: ``failed`` when it could not be built or measured.
        metrics: Measured values; what was not measured is absent.
        spread: How far a repetition of each may differ.
        seconds: Wall time by stage.
        error: Why it failed, one line; None when it did not.
    """

    number: int
    candidate: Candidate
    state: Literal["complete", "failed"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def observation(self) -> Observation:
        """What a search algorithm is told."""
        return Observation(self.candidate, self.metrics if self.state == "complete" else None)


class Study:
    """Trials in an Optuna storage, of one request; made by ``Study.open``."""

    def __init__(self, study: optuna.Study, space: SearchSpace, objectives: Sequence[str]) -> None:
        self._study, self._space, self._objectives = study, space, tuple(objectives)
        self._trials = [self._read(trial) for trial in study.get_trials(deepcopy=False)]

    @classmethod
    @contextmanager
    def open(
        cls,
        storage: str,
        space: SearchSpace,
        objectives: Sequence[str],
        *,
        identity: Mapping[str, str],
        name: str,
    ) -> Iterator[Self]:
        """Opens a study, or makes it; a journal file is this process's alone while it is open.

        Args:
            storage: The path of a journal file, or a database URL that Optuna takes.
            space: What the trials are of.
            objectives: Names of metrics, in the order of the stored values.
            identity: What must be the same for trials to belong together, by the name of what the user chose.
            name: Of the study in its storage.

        Raises:
            StudyError: The storage holds a study of another request, or is damaged.
            OutputError: Another process has the journal file open, or it cannot be written.
            UsageError: The storage cannot be reached.
        """
        identity = {"objectives": ", ".join(objectives), **identity, "schema_version": str(SCHEMA_VERSION)}
        with _quiet(), _backend(storage) as backend:
            try:
                study = optuna.create_study(
                    storage=backend,
                    study_name=name,
                    directions=[METRICS[objective] for objective in objectives],
                    load_if_exists=True,
                )
                stored = study.user_attrs.get(_IDENTITY)
                if stored is None:
                    if study.get_trials(deepcopy=False):
                        raise StudyError(f"study '{name}' in {storage} was not made by qnas; give another --out")
                    study.set_user_attr(_IDENTITY, identity)
                else:
                    _check_identity(stored, identity, storage)
            except (StudyError, UsageError):
                raise
            except Exception as error:  # each database driver has its own
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise StudyError(
                    f"cannot open the study in {storage}: {reason}; give another --storage or --out"
                ) from error
            yield cls(study, space, objectives)

    def trials(self) -> Sequence[Trial]:
        """All trials in their order."""
        return tuple(self._trials)

    def add(self, candidate: Candidate, evaluation: Evaluated | None = None, error: str | None = None) -> Trial:
        """Stores a finished trial: what was measured, or why it failed.

        Raises:
            OutputError: The storage cannot be written.
        """
        trial = Trial(
            len(self._trials),
            candidate,
            "failed" if evaluation is None else "complete",
            dict(evaluation.metrics) if evaluation else {},
            dict(evaluation.spread) if evaluation else {},
            dict(evaluation.seconds) if evaluation else {},
            error,
        )
        complete = trial.state == "complete"
        record = {
            "qnas_key": candidate.key,
            "qnas_metrics": trial.metrics,
            "qnas_spread": trial.spread,
            "qnas_seconds": trial.seconds,
            **({"qnas_error": error} if error else {}),
        }
        try:
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE if complete else TrialState.FAIL,
                    values=[trial.metrics[name] for name in self._objectives] if complete else None,
                    params=dict(candidate),
                    distributions={
                        name: optuna.distributions.CategoricalDistribution(
                            self._space.variables[self._space.index[name]].choices
                        )
                        for name in candidate
                    },
                    user_attrs=record,
                )
            )
        except OSError as failure:
            raise OutputError(f"cannot store trial {trial.number}: {failure.strerror or failure}") from failure
        self._trials.append(trial)
        return trial

    def _read(self, stored: FrozenTrial) -> Trial:
        try:
            return Trial(
                stored.number,
                self._space.candidate(stored.params),
                "complete" if stored.state == TrialState.COMPLETE else "failed",
                stored.user_attrs["qnas_metrics"],
                stored.user_attrs["qnas_spread"],
                stored.user_attrs["qnas_seconds"],
                stored.user_attrs.get("qnas_error"),
            )
        except (UsageError, KeyError) as error:
            raise StudyError(
                f"stored trial {stored.number} does not fit this search space ({error}); give another --out"
            ) from error


def drive(
    study: Study,
    algorithm: Algorithm,
    evaluate: Callable[[Candidate], Evaluated],
    *,
    trials: int,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> None:
    """Evaluates what the algorithm asks for until the study has this many trials or the space is exhausted.

    A candidate that cannot be built or measured is stored as failed; any other exception passes through, with every
    finished trial stored.

    Args:
        study: Stored trials are told to the algorithm first.
        algorithm: Fresh, or one that knows exactly the stored trials.
        evaluate: Raises ``CandidateError`` for a candidate that cannot be built or measured.
        trials: How many the study should have in all.
        on_trial: Is told of each new trial.
    """
    algorithm.tell([trial.observation for trial in study.trials()])
    while len(study.trials()) < trials:
        candidate = algorithm.ask()
        if candidate is None:
            return
        try:
            evaluation = evaluate(candidate)
            _check_finite(evaluation.metrics)
        except CandidateError as error:
            trial = study.add(candidate, error=" ".join(str(error).split()))
        else:
            trial = study.add(candidate, evaluation)
        algorithm.tell([trial.observation])
        on_trial(trial)


def _check_finite(metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise MeasurementError(f"{name} is {value}, it must be finite")


def _check_identity(stored: Mapping[str, str], asked: Mapping[str, str], storage: str) -> None:
    for name, value in asked.items():
        if stored.get(name) != value:
            raise StudyError(
                f"{storage} holds a study with {name} '{stored.get(name)}', asked is '{value}'; "
                "give the same options to continue it, or another --out"
            )


@contextmanager
def _backend(storage: str) -> Iterator[Any]:
    if "://" in storage:
        yield storage
        return
    path = Path(storage)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("a")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; give another --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another process is writing {path}; wait for it or give another --out") from None
        _drop_torn_line(path)
        yield JournalStorage(JournalFileBackend(str(path), lock_obj=_NoLock()))  # type: ignore[arg-type]


class _NoLock:
    """No lock of its own: ``_backend`` keeps other processes out, and a killed one leaves nothing behind."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _drop_torn_line(path: Path) -> None:
    """Cuts off what a process that was killed while writing left of its last line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = keep = 0
        for line in file:
            end += len(line)
            if not line.endswith(b"\n"):
                break
            keep = end
        if keep < path.stat().st_size:
            file.truncate(keep)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna's log lines and its notes on experimental parts from the user."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
