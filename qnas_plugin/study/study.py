"""The study: trials, stored so that a run killed at any moment goes on where it was.

Trials live in an Optuna storage: a journal file by default, or any of its databases by URL; its dashboard shows both.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import IO, Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from qnas_plugin.errors import OutputError, StudyError, UsageError, door, quoted
from qnas_plugin.measure.belief import Halves
from qnas_plugin.objectives import Limit, Objectives
from qnas_plugin.space import Candidate, SearchSpace
from qnas_plugin.study.evaluation import Evaluation, Trial
from qnas_plugin.study.storage import errors_of, load_study, lock_file
from qnas_plugin.study.storage_url import shown

SCHEMA_VERSION = 1
_ATTRIBUTE = "qnas"
RECORDED_LATER = {
    "max_length": None,
    "onnxruntime": None,
    "processor": None,
    "quantizer": "neural_compressor 3.7.1",
}
"""What older versions did not record of a study, and what it was; with None, it is taken from the run that goes on."""


class Study:
    """Trials of one request. Made by ``Study.open``; a context manager that gives the storage back.

    Attributes:
        space: The variables of the candidates.
        objectives: Names of metrics.
        limits: Bounds for the Pareto set; they may differ from run to run.
        identity: What its trials were made with.
        taken: What of that an older version had not recorded, and was taken from this run.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        space: SearchSpace,
        objectives: tuple[str, ...],
        limits: tuple[Limit, ...],
        lock: IO[bytes] | None,
        identity: Mapping[str, str],
        taken: Sequence[str],
        where: str,
    ) -> None:
        self.identity, self.taken = dict(identity), tuple(taken)
        self.space, self.objectives, self.limits = space, objectives, limits
        self._study, self._storage, self._lock, self._where = study, storage, lock, where
        self._distributions = {variable.name: CategoricalDistribution(variable.choices) for variable in space.variables}

    @classmethod
    def open(
        cls,
        storage: str,
        space: SearchSpace,
        objectives: Objectives,
        *,
        identity: Mapping[str, str],
        limits: Sequence[Limit] = (),
        name: str = "qnas",
        write: bool = True,
    ) -> Study:
        """Opens a study, or creates it where there is none.

        Args:
            storage: A path of a journal file, or a database URL (``sqlite:///trials.db``, ``postgresql://...``).
            space: The variables.
            objectives: Names of metrics, two or three, with their directions where these are not the usual ones.
            identity: What makes trials comparable, by name (``dataset`` to its fingerprint ...); the space and the
                objectives are added to it.
            limits: Bounds for the Pareto set.
            name: The study's name in a database that holds several.
            write: Whether trials will be added. Only one process may write a file at a time; any number may read.

        Raises:
            StudyError: The storage cannot be read, holds trials of another identity, or, without ``write``, no study.
            OutputError: The file cannot be used, or another process writes it.
        """
        identity = {**identity, "space": space.fingerprint, "objectives": ",".join(objectives)}
        with errors_of(storage):
            lock = lock_file(storage) if write else None
        taken: list[str] = []
        try:
            with errors_of(storage):
                opened, study = load_study(storage, name, objectives if write else None)
                attribute = study.user_attrs.get(_ATTRIBUTE)
                if attribute is None and write and not study.get_trials(deepcopy=False):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                        study.set_metric_names(list(objectives))  # for the dashboard
                    study.set_user_attr(_ATTRIBUTE, {"schema_version": SCHEMA_VERSION, "identity": identity})
                else:
                    stored = _check_identity(storage, attribute, identity)
                    taken = [name for name in identity if name not in stored and not RECORDED_LATER.get(name)]
                    identity = stored | {name: identity[name] for name in taken}
                    if taken and write:
                        study.set_user_attr(_ATTRIBUTE, {"schema_version": SCHEMA_VERSION, "identity": identity})
        except BaseException:
            if lock is not None:
                lock.close()
            raise
        return cls(study, opened, space, tuple(objectives), tuple(limits), lock, identity, taken, storage)

    def close(self) -> None:
        """Lets other processes write. Nothing is lost without it: each trial is on disk when ``add`` returns."""
        self._storage.remove_session()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def trials(self) -> list[Trial]:
        """All finished trials in order.

        Raises:
            StudyError: A stored trial was changed to something outside the space.
        """
        with errors_of(self._where):
            finished = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        return [self._read(trial) for trial in finished]

    def add(self, candidate: Candidate, evaluation: Evaluation) -> Trial:
        """Stores a finished trial; it is on disk when this returns.

        An evaluation that lacks an objective or a limited metric, or has a metric that is not finite, counts as failed.

        Raises:
            OutputError: The disk is full, or the database is gone.
        """
        evaluation = self._checked(evaluation)
        complete = evaluation.error is None
        record = optuna.trial.create_trial(
            state=TrialState.COMPLETE if complete else TrialState.FAIL,
            values=[evaluation.metrics[name] for name in self.objectives] if complete else None,
            params=dict(candidate),
            distributions={name: self._distributions[name] for name in candidate},
            user_attrs={
                name: dict(getattr(evaluation, name)) for name in ("metrics", "spread", "seconds", "environment")
            }
            | {"candidate": candidate.key}
            | ({} if evaluation.halves is None else {"halves": asdict(evaluation.halves)})
            | ({} if complete else {"error": evaluation.error}),
        )
        assert record.datetime_complete is not None
        record.datetime_start = record.datetime_complete - timedelta(seconds=sum(evaluation.seconds.values()))
        with door(OutputError, "cannot store a trial", "those before it are stored"):
            self._study.add_trial(record)
            number = len(self._study.get_trials(deepcopy=False)) - 1
        return Trial(**vars(evaluation), number=number, candidate=candidate)

    def _checked(self, evaluation: Evaluation) -> Evaluation:
        error = evaluation.error
        for name in [*self.objectives, *(limit.metric for limit in self.limits), *evaluation.metrics]:
            value = evaluation.metrics.get(name)
            if error is None and (value is None or not math.isfinite(value)):
                error = f"{name} is {'missing' if value is None else value}; a trial needs a finite number"
        return replace(
            evaluation,
            metrics=_finite(evaluation.metrics),
            spread=_finite(evaluation.spread),
            seconds=_finite(evaluation.seconds),
            error=error,
        )

    def _read(self, trial: FrozenTrial) -> Trial:
        attributes = trial.user_attrs
        with door(StudyError, f"stored trial {trial.number} cannot be read", "start anew in another --out"):
            json.dumps(attributes, ensure_ascii=False).encode()  # half a character could be neither shown nor written
            try:
                candidate = self.space.candidate(trial.params)
            except UsageError as error:
                raise ValueError(error) from error
            metrics = _finite(attributes["metrics"])
            if trial.state == TrialState.COMPLETE and not all(name in metrics for name in self.objectives):
                raise ValueError("it lacks an objective")
            return Trial(
                metrics=metrics,
                spread=_finite(attributes["spread"]),
                seconds=_finite(attributes["seconds"]),
                environment=dict(attributes["environment"]),
                error=str(attributes["error"]) if trial.state == TrialState.FAIL else None,
                halves=_halves(attributes.get("halves")),
                number=trial.number,
                candidate=candidate,
            )


def stored_identity(storage: str, name: str = "qnas") -> dict[str, str]:
    """What the trials in a storage were made with.

    Raises:
        StudyError: There is no study.
    """
    with errors_of(storage):
        opened, study = load_study(storage, name, None)
        identity = _identity(storage, study.user_attrs.get(_ATTRIBUTE))
        opened.remove_session()
        return identity


def _halves(stored: Mapping[str, Any] | None) -> Halves | None:
    if stored is None:
        return None
    soft = stored["soft"]
    return Halves(int(stored["examples"]), tuple(stored["accuracy"]), None if soft is None else tuple(map(float, soft)))


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _identity(storage: str, attribute: Mapping[str, object] | None) -> dict[str, str]:
    if attribute is None or attribute.get("schema_version") != SCHEMA_VERSION:
        raise StudyError(
            f"the study in '{shown(storage)}' is not one of this version of qnas; start anew in another --out"
        )
    identity = attribute["identity"]
    if not isinstance(identity, dict):
        raise StudyError(f"the study in '{shown(storage)}' is damaged: its identity is {quoted(identity)}")
    return identity


def _check_identity(storage: str, attribute: Mapping[str, object] | None, asked: Mapping[str, str]) -> dict[str, str]:
    """The stored identity, where it is the one asked for."""
    stored = _identity(storage, attribute)
    names = [
        name
        for name in sorted({*stored, *asked})
        if stored.get(name) != asked.get(name)
        and not (name in RECORDED_LATER and name not in stored and RECORDED_LATER[name] in (None, asked.get(name)))
    ]
    if names:
        there, here = (", ".join(f"{name} {side.get(name, 'unset')}" for name in names) for side in (stored, asked))
        raise StudyError(
            f"the study in '{shown(storage)}' has {there}, this run has {here}; "
            "use another --out, or the options of that study"
        )
    return stored
