"""Optuna: the search algorithms as a sampler for any study with categorical variables."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from qnas_plugin import registry
from qnas_plugin.search import Algorithm, Observation, Problem
from qnas_plugin.space import Candidate, SearchSpace, Variable

_PROPOSED = "qnas:proposed"
"""The attribute of a trial with the key of what was proposed for it, until its function has asked for each value."""

_Kinds = Mapping[str, CategoricalDistribution]


class LinasSampler(BaseSampler):
    """LINAS for any Optuna study: measures a population, trains predictors on it, searches on them, and again.

    It searches the categorical variables that all finished trials had, for one or more objectives. All else comes from
    the independent sampler: the first trial, numbers, variables that only some trials have, and all variables once
    each combination was tried. Trials that run at the same time are not proposed twice, and after a stop the stored
    trials and the same seed give the proposals that would have come without it.

    Args:
        seed: Of every random choice; None draws one.
        population: Trials between two trainings of the predictors.
        algorithm: The registered search algorithm.
        search_space: The variables, where they are known beforehand: the first trial is then proposed too.
        independent_sampler: Of all else; None draws uniformly.

    Raises:
        UnknownNameError: There is no such algorithm.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        population: int = 50,
        algorithm: str = "linas",
        search_space: _Kinds | None = None,
        independent_sampler: BaseSampler | None = None,
    ) -> None:
        registry.check("search", algorithm)
        self._independent = independent_sampler or RandomSampler(seed=seed)
        self._seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed
        self._population, self._algorithm = population, algorithm
        self._given, self._common = search_space, IntersectionSearchSpace(include_pruned=True)
        self._search: tuple[object, _Search] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_search": None}  # it follows from the stored trials

    def reseed_rng(self) -> None:
        """Reseeds the independent sampler alone: who proposes what is settled by the trials that run."""
        self._independent.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The categorical variables that are searched together."""
        known = self._common.calculate(study) if self._given is None else self._given
        return {name: kind for name, kind in known.items() if isinstance(kind, CategoricalDistribution)}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values for these variables; from the independent sampler for numbers, and once each combination was tried."""
        kinds = {name: kind for name, kind in search_space.items() if isinstance(kind, CategoricalDistribution)}
        values: dict[str, Any] = {}
        if kinds:
            key = (study._study_id, tuple(kinds.items()))
            if self._search is None or self._search[0] != key:
                problem = _problem(kinds, study.directions)
                module = registry.load("search", self._algorithm)
                algorithm = module.create(problem, seed=self._seed, population=self._population)
                self._search = key, _Search(kinds, algorithm, problem)
            values = self._search[1].propose(study, trial)
        for name, kind in search_space.items():
            if name not in values:
                values[name] = self._independent.sample_independent(study, trial, name, kind)
        return values

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value from the independent sampler."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passes on to the independent sampler."""
        self._independent.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Passes on to the independent sampler."""
        self._independent.after_trial(study, trial, state, values)


def _problem(kinds: _Kinds, directions: Sequence[StudyDirection]) -> Problem:
    """Variables whose choices are numbered; values of objectives become losses when they are observed."""
    variables = tuple(Variable(name, tuple(range(len(kind.choices)))) for name, kind in kinds.items())
    return Problem(SearchSpace(variables), tuple(f"loss_{i}" for i in range(len(directions))))


class _Search:
    """An algorithm that has been told of a study's trials.

    Args:
        kinds: The variables.
        algorithm: Fresh.
        problem: Its problem.
    """

    def __init__(self, kinds: _Kinds, algorithm: Algorithm, problem: Problem) -> None:
        self._kinds, self._algorithm, self._problem = kinds, algorithm, problem
        self._told: set[int] = set()
        self._lock = threading.Lock()  # a study with n_jobs runs its sampler in several threads

    def propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """The values of the next candidate; none when each was tried."""
        with self._lock:
            trials = study.get_trials(deepcopy=False)
            finished = [other for other in trials if other.state.is_finished() and other.number not in self._told]
            finished.sort(key=lambda other: (other.datetime_complete, other.number))
            observed = {other.number: self._observation(other, study.directions) for other in finished}
            self._algorithm.tell([observation for observation in observed.values() if observation is not None])
            self._told.update(number for number, observation in observed.items() if observation is not None)
            in_flight = [other.system_attrs.get(_PROPOSED) for other in trials if other.number not in self._told]
            candidate = self._algorithm.ask([key for key in in_flight if key is not None])
            if candidate is None:
                return {}
            study._storage.set_trial_system_attr(trial._trial_id, _PROPOSED, candidate.key)
            return {name: self._kinds[name].choices[int(index)] for name, index in candidate.items()}

    def _observation(self, trial: FrozenTrial, directions: Sequence[StudyDirection]) -> Observation | None:
        """What the algorithm is told of a finished trial; None when it lacks a variable."""
        if any(trial.distributions.get(name) != kind for name, kind in self._kinds.items()):
            return None
        candidate = self._candidate(trial)
        if trial.state != TrialState.COMPLETE or not all(map(math.isfinite, trial.values)):
            return Observation(candidate, None)
        losses = [
            -value if direction == StudyDirection.MAXIMIZE else value
            for value, direction in zip(trial.values, directions, strict=True)
        ]
        return Observation(candidate, dict(zip(self._problem.objectives, losses, strict=True)))

    def _candidate(self, trial: FrozenTrial) -> Candidate:
        indices = {name: int(kind.to_internal_repr(trial.params[name])) for name, kind in self._kinds.items()}
        return self._problem.space.candidate(indices)
