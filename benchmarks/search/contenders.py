"""The algorithms that are compared: each takes an evaluation function until its budget is spent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import optuna
from pymoo.algorithms.moo.moead import MOEAD
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.sms import SMSEMOA
from pymoo.algorithms.moo.spea2 import SPEA2
from pymoo.algorithms.moo.unsga3 import UNSGA3
from pymoo.core.problem import Problem as PymooProblem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.crossover.ux import UX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize
from pymoo.util.ref_dirs import get_reference_directions
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVR

from qnas_plugin import registry
from qnas_plugin.objectives import METRICS, Losses, losses
from qnas_plugin.search import Algorithm, Observation, Problem
from qnas_plugin.search._generations import first_generation
from qnas_plugin.search._pymoo import _RandomReset, _SameNetwork
from qnas_plugin.space import Candidate, Genes, SearchSpace, unique_rows

Evaluate = Callable[[Candidate], Mapping[str, float]]
Contender = Callable[[Problem, Evaluate, int], None]
"""Searches a problem with an evaluation function and a seed until that raises ``Spent``, or nothing is left."""

POPULATION = 50


class Spent(Exception):  # noqa: N818
    """All evaluations were made."""


def asked(create: Callable[..., Algorithm], **options: Any) -> Contender:
    """One of the package's algorithms."""

    def run(problem: Problem, evaluate: Evaluate, seed: int) -> None:
        algorithm = create(problem, seed=seed, **{"population": POPULATION, **options})
        while (candidate := algorithm.ask()) is not None:
            algorithm.tell([Observation(candidate, evaluate(candidate))])

    return run


def registered(name: str) -> Contender:
    """One of the package's algorithms by name."""
    return asked(lambda *arguments, **options: registry.load("search", name).create(*arguments, **options))


def evolved(make: Callable[..., Any]) -> Contender:
    """An algorithm of pymoo with operators for choices and the first generation of the package's NSGA-II.

    A network that was evaluated before costs nothing.

    Args:
        make: Takes the number of objectives and what all of pymoo's algorithms take.
    """

    def run(problem: Problem, evaluate: Evaluate, seed: int) -> None:
        space, known = problem.space, dict[str, Losses]()
        start = np.array(list(islice(first_generation(space, np.random.default_rng(seed)), 4 * POPULATION)))
        start = start[unique_rows(start)][:POPULATION]

        def measure(genes: Genes) -> Losses:
            for candidate in map(space.decode, genes):
                if candidate.key not in known:
                    known[candidate.key] = losses([evaluate(candidate)], problem.objectives)[0]
            return np.array([known[space.decode(row).key] for row in genes])

        span = np.ptp(measure(start), axis=0)  # MOEA/D does not bring objectives to one scale by itself

        def score(genes: Genes) -> Losses:
            return measure(genes) / span

        algorithm = make(
            len(problem.objectives),
            pop_size=POPULATION,
            sampling=start,
            crossover=UX(),
            mutation=_RandomReset(space),
            eliminate_duplicates=_SameNetwork(space),
        )
        minimize(_Scored(space, len(problem.objectives), score), algorithm, ("n_gen", 10**6), seed=seed)

    return run


def _directed(make: Callable[..., Any]) -> Callable[..., Any]:
    """With reference directions, as many as the population has members; MOEA/D takes its size and order from them."""

    def made(count: int, *, pop_size: int, eliminate_duplicates: Any, **options: Any) -> Any:
        directions = get_reference_directions("energy", count, pop_size, seed=1)
        if make is MOEAD:
            return MOEAD(directions, **options)
        return make(directions, pop_size=pop_size, eliminate_duplicates=eliminate_duplicates, **options)

    return made


def _age_moea(count: int, **options: Any) -> Any:
    from pymoo.algorithms.moo.age import AGEMOEA  # needs numba: pip install numba

    return AGEMOEA(**options)


def _plain(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda count, **options: make(**options)


class _Scored(PymooProblem):  # type: ignore[misc]
    """pymoo's view of genotypes with losses."""

    def __init__(self, space: SearchSpace, count: int, score: Callable[[Genes], Losses]) -> None:
        super().__init__(n_var=len(space), n_obj=count, xl=0, xu=space.sizes - 1, vtype=int)
        self.score = score

    def _evaluate(self, X: Genes, out: dict[str, Any], *_: object, **__: object) -> None:
        out["F"] = self.score(X.astype(np.int64))


def sampled(make: Callable[[int], optuna.samplers.BaseSampler]) -> Contender:
    """A sampler of Optuna: variables are asked for one by one, inactive ones not at all.

    A network that was evaluated before costs another evaluation, as in a study of Optuna's. TPE proposes known networks
    without end where repeats are free.
    """

    def run(problem: Problem, evaluate: Evaluate, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)

        def objective(trial: optuna.Trial) -> list[float]:
            values: dict[str, Any] = {}
            for variable in problem.space.variables:
                if variable.when is None or values.get(variable.when.variable) in variable.when.values:
                    values[variable.name] = trial.suggest_categorical(variable.name, variable.choices)
            metrics = evaluate(problem.space.candidate(values))
            return [metrics[name] for name in problem.objectives]

        study = optuna.create_study(directions=[METRICS[name] for name in problem.objectives], sampler=make(seed))
        study.optimize(objective)

    return run


def published_linas(problem: Problem, evaluate: Evaluate, seed: int, *, exact: bool = False) -> None:
    """LINAS as DyNAS-T 1.6.0 runs it, for its BERT supernets.

    50 uniform draws; in each loop all 50 are measured, known or not; for every objective ridge and SVR by grid search,
    on the absolute percentage error, of one-hot features; NSGA-II for two objectives or U-NSGA-III for three, from the
    same random draws each time, with SBX and polynomial mutation that are rounded, 20,000 predictions; all of the last
    population comes next. Differs: features of skipped layers are all zero, which it gets
    wrong; its grids of 100 values are tried at every tenth.

    Args:
        exact: Takes latency and size as known, as this package does, instead of predicting them.
    """
    space, rng = problem.space, np.random.default_rng(seed)
    population = rng.integers(0, space.sizes, size=(POPULATION, len(space)))
    genes, metrics = [], []
    while True:
        for row in population:
            metrics.append(evaluate(space.decode(row)))
            genes.append(row)
        rows = np.array(unique_rows(np.array(genes)))
        X = space.features(np.array(genes)[rows])
        trained = {
            name: _grid_searched(X, np.array([metrics[i][name] for i in rows]))
            for name in problem.objectives
            if not exact or name not in problem.exact
        }

        def score(found: Genes, trained: Mapping[str, Any] = trained) -> Losses:
            found = space.canonical(found)
            X = space.features(found)
            columns = [
                trained[name].predict(X) if name in trained else problem.exact[name](found)
                for name in problem.objectives
            ]
            return losses(
                [dict(zip(problem.objectives, row, strict=True)) for row in zip(*columns, strict=True)],
                problem.objectives,
            )

        count = len(problem.objectives)
        options = {"pop_size": POPULATION, "sampling": IntegerRandomSampling(), "eliminate_duplicates": True}
        options |= {"mutation": PM(prob=0.02, eta=20, vtype=float, repair=RoundingRepair())}
        if count == 2:
            crossover = SBX(prob=0.9, eta=15, vtype=float, repair=RoundingRepair())
            algorithm = NSGA2(crossover=crossover, **options)
        else:
            crossover = SBX(prob=1.0, eta=30, vtype=float, repair=RoundingRepair())
            directions = get_reference_directions("energy", count, 20, seed=1)
            algorithm = UNSGA3(directions, crossover=crossover, **options)
        result = minimize(_Scored(space, count, score), algorithm, ("n_gen", 20_000 // POPULATION), seed=seed)
        population = result.pop.get("X").astype(np.int64)


def _grid_searched(X: Any, y: Any) -> Any:
    grids = (
        (Ridge(), {"alpha": np.arange(1.0, 10.1, 1.0)}),
        (SVR(kernel="rbf", gamma="auto", epsilon=0.0, max_iter=1_000_000), {"C": np.arange(10, 101, 10)}),
    )
    searches = [
        GridSearchCV(model, grid, scoring="neg_mean_absolute_percentage_error", cv=5).fit(X, y) for model, grid in grids
    ]
    return max(searches, key=lambda search: search.best_score_).best_estimator_


CONTENDERS: dict[str, Contender] = {
    "linas": registered("linas"),
    "nsga2": registered("nsga2"),
    "random": registered("random"),
    "pymoo NSGA-II": evolved(_plain(NSGA2)),
    "pymoo U-NSGA-III": evolved(_directed(UNSGA3)),
    "pymoo AGE-MOEA": evolved(_age_moea),
    "pymoo SPEA2": evolved(_plain(SPEA2)),
    "pymoo SMS-EMOA": evolved(_plain(SMSEMOA)),
    "pymoo MOEA/D": evolved(_directed(MOEAD)),
    "Optuna TPE": sampled(lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "Optuna TPE, multivariate": sampled(
        lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    ),
    "Optuna GP": sampled(lambda seed: optuna.samplers.GPSampler(seed=seed)),
    "published LINAS": published_linas,
    "published LINAS, exact costs": lambda *arguments: published_linas(*arguments, exact=True),
}


def trace(
    contender: Contender, problem: Problem, metrics: Callable[[Candidate], Mapping[str, float]], seed: int, budget: int
) -> list[Candidate]:
    """What a contender evaluates, in order; repeated candidates that it pays for are in it again."""
    log: list[Candidate] = []

    def evaluate(candidate: Candidate) -> Mapping[str, float]:
        if len(log) == budget:
            raise Spent
        log.append(candidate)
        return metrics(candidate)

    with contextlib.suppress(Spent):
        contender(problem, evaluate, seed)
    return log
