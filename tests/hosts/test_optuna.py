from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import FrozenTrial, Trial, TrialState

import qnas_plugin
from qnas_plugin.errors import UnknownNameError
from qnas_plugin.hosts.optuna import LinasSampler
from qnas_plugin.objectives import hypervolume
from qnas_plugin.search import Observation, Problem
from qnas_plugin.search.linas import create
from qnas_plugin.space import SearchSpace, Variable

optuna.logging.set_verbosity(optuna.logging.WARNING)

NAMES = [f"gene_{i}" for i in range(6)]
CHOICES = (8, "wide", None)
SPACE = {name: CategoricalDistribution(CHOICES) for name in NAMES}
COST = np.random.default_rng(7).random((2, len(NAMES), len(CHOICES)))


class TestPublishedChecks(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """All checks that Optuna publishes, but those for samplers of a single objective: this one takes several."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return partial(LinasSampler, seed=0, population=8)


def costs(genes: list[int]) -> tuple[float, float]:
    """Two sums over the genes; the second is to be maximised."""
    first, second = COST[:, np.arange(len(genes)), genes].sum(axis=1).tolist()
    return first, second


def function(trial: Trial) -> tuple[float, float]:
    return costs([CHOICES.index(trial.suggest_categorical(name, CHOICES)) for name in NAMES])


def study(sampler: BaseSampler, storage: optuna.storages.BaseStorage | None = None) -> optuna.Study:
    return optuna.create_study(
        directions=["minimize", "maximize"], sampler=sampler, storage=storage, study_name="s", load_if_exists=True
    )


def params(trials: list[FrozenTrial]) -> list[tuple[object, ...]]:
    return [tuple(trial.params[name] for name in NAMES) for trial in trials]


def test_sampler_is_public() -> None:
    assert qnas_plugin.LinasSampler is LinasSampler


def test_sampler_proposes_what_the_algorithm_does() -> None:
    searched = study(LinasSampler(seed=3, population=10, search_space=SPACE))
    searched.optimize(function, n_trials=35)
    problem = Problem(SearchSpace(tuple(Variable(name, (0, 1, 2)) for name in NAMES)), ("latency_ms", "accuracy"))
    algorithm = create(problem, seed=3, population=10)
    for proposed in params(searched.trials):
        candidate = algorithm.ask()
        assert candidate is not None
        genes = [int(candidate[name]) for name in NAMES]
        assert proposed == tuple(CHOICES[gene] for gene in genes)
        algorithm.tell([Observation(candidate, dict(zip(problem.objectives, costs(genes), strict=True)))])


def test_sampler_finds_a_better_front_than_random_draws() -> None:
    def volume(sampler: BaseSampler) -> float:
        searched = study(sampler)
        searched.optimize(function, n_trials=45)
        return hypervolume(np.array([trial.values for trial in searched.trials]) * [1, -1], np.array([6.0, 0.0]))

    found = [volume(LinasSampler(seed=seed, population=15)) for seed in range(3)]
    assert min(found) > max(volume(RandomSampler(seed=seed)) for seed in range(3))


def test_sampler_goes_on_where_a_study_stopped() -> None:
    storage = optuna.storages.InMemoryStorage()
    for trials in (7, 13, 10):
        study(LinasSampler(seed=5, population=10, search_space=SPACE), storage).optimize(function, n_trials=trials)
    whole = study(LinasSampler(seed=5, population=10, search_space=SPACE))
    whole.optimize(function, n_trials=30)
    assert params(study(RandomSampler(), storage).trials) == params(whole.trials)


def test_sampler_proposes_nothing_twice_when_trials_run_together_or_fail() -> None:
    searched = study(LinasSampler(seed=0, population=8, search_space=SPACE))
    running = [searched.ask(SPACE) for _ in range(5)]
    before_suggesting = [searched.ask() for _ in range(3)]
    for trial in running[:2]:
        searched.tell(trial, state=TrialState.FAIL)
    for trial in running[2:]:
        searched.tell(trial, costs([CHOICES.index(trial.params[name]) for name in NAMES]))
    for trial in before_suggesting:
        function(trial)
    searched.optimize(function, n_trials=12)
    assert len(set(params(searched.trials))) == 20


def test_sampler_takes_threads_and_pickle() -> None:
    searched = study(pickle.loads(pickle.dumps(LinasSampler(seed=0, population=8, search_space=SPACE))))
    searched.optimize(function, n_trials=24, n_jobs=4)
    assert len(set(params(searched.trials))) == 24
    searched.sampler = pickle.loads(pickle.dumps(searched.sampler))
    searched.optimize(function, n_trials=1)
    assert len(set(params(searched.trials))) == 25


def test_sampler_draws_numbers_and_conditional_choices_elsewhere() -> None:
    def mixed(trial: Trial) -> float:
        rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        return rate + (0 if kind == "a" else trial.suggest_categorical("only_b", [1, 2]))

    class Fixed(RandomSampler):
        def sample_independent(self, study, trial, name, distribution):  # type: ignore[no-untyped-def]
            return {"rate": 0.125, "only_b": 2}.get(name) or super().sample_independent(
                study, trial, name, distribution
            )

    searched = optuna.create_study(sampler=LinasSampler(seed=0, population=5, independent_sampler=Fixed(seed=0)))
    searched.optimize(mixed, n_trials=20)
    assert {trial.params["rate"] for trial in searched.trials} == {0.125}
    assert {trial.params["kind"] for trial in searched.trials} == {"a", "b"}
    assert {trial.params.get("only_b") for trial in searched.trials} == {None, 2}


def test_sampler_draws_on_when_each_combination_was_tried() -> None:
    searched = optuna.create_study(sampler=LinasSampler(seed=0, population=4))
    searched.optimize(lambda trial: trial.suggest_categorical("a", [0, 1]) + trial.suggest_categorical("b", [0, 1]), 9)
    assert {(trial.params["a"], trial.params["b"]) for trial in searched.trials[:4]} == {
        *((0, 0), (0, 1), (1, 0), (1, 1))
    }
    assert searched.best_value == 0


def test_sampler_refuses_an_unknown_algorithm() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'linas'"):
        LinasSampler(algorithm="lina")
