"""LINAS: search on predictors, measure what they find, learn from it, and again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qnas_plugin import predictors
from qnas_plugin.objectives import Losses, losses, non_dominated, violations
from qnas_plugin.search import Algorithm, Observation, Problem, _pymoo
from qnas_plugin.search._generations import (
    Generations,
    every_genotype,
    first_generation,
    measured,
    metric_names,
    spread_genotypes,
)
from qnas_plugin.space import Genes

PREDICTORS = ("ridge", "svr")
INNER_POPULATION = 200
INNER_GENERATIONS = 100
ENUMERATED = 2000
"""Spaces of up to so many networks are predicted whole."""


def create(problem: Problem, *, seed: int, population: int) -> Algorithm:
    """Makes LINAS (Cummings et al. 2022, Alg. 1).

    Each generation trains one predictor a metric on all trials so far, runs NSGA-II on the predictions, and measures
    what it finds. Differs: metrics that are known exactly are computed; the inner search starts from the trials and
    uses operators for choices; a generation is the predicted front only, most different members first, instead of
    the whole last population; limits are kept before anything is improved; no candidate is asked for twice.
    """
    space = problem.space

    def rank(generation: int, history: Sequence[Observation]) -> Iterator[Genes]:
        rng = np.random.default_rng([seed, generation])
        genes, metrics = measured(problem, history)
        if len(genes) < 3:
            yield from first_generation(space, rng)
            return
        front, values = predicted_front(problem, genes, metrics, rng)
        seen = {observation.candidate.key for observation in history}
        new = [i for i, row in enumerate(front) if space.decode(row).key not in seen]
        yield from front[new][farthest_first(values[new])]
        while True:
            yield from space.mutate(front, rng, 2 / len(space))

    return Generations(space, population, rank)


def farthest_first(points: npt.NDArray[np.float64]) -> list[int]:
    """An order of ``(m, k)`` points in which each is the farthest from those before it; every prefix is spread out.

    Starts with the least in the first column. Distances are relative to the range of each column.
    """
    if not len(points):
        return []
    span = np.ptp(points, axis=0)
    points = points / np.where(span > 0, span, 1.0)
    order = [int(np.argmin(points[:, 0]))]
    distance = np.full(len(points), np.inf)
    while len(order) < len(points):
        distance = np.minimum(distance, np.linalg.norm(points - points[order[-1]], axis=1))
        distance[order[-1]] = -1.0
        order.append(int(np.argmax(distance)))
    return order


def predicted_front(
    problem: Problem, genes: Genes, metrics: Sequence[Mapping[str, float]], rng: np.random.Generator
) -> tuple[Genes, Losses]:
    """The inner search: canonical genotypes ``(f, n)`` of the predicted front, and their losses."""
    space = problem.space
    needed = metric_names(problem)
    exact = {name: problem.exact[name] for name in needed if name in problem.exact}
    X = space.features(genes)
    trained = {
        name: predictors.choose(PREDICTORS, X, np.array([row[name] for row in metrics]), rng)[0]
        for name in needed
        if name not in exact
    }

    def score(genes: Genes) -> _pymoo.Scores:
        genes = space.canonical(genes)
        X = space.features(genes)
        columns = {name: predictor.predict(X) for name, predictor in trained.items()}
        columns.update((name, compute(genes)) for name, compute in exact.items())
        rows = [dict(zip(columns, row, strict=True)) for row in np.column_stack(list(columns.values())).tolist()]
        return losses(rows, problem.objectives), violations(rows, problem.limits)

    if space.networks <= ENUMERATED:
        last = np.stack(list(every_genotype(space)))
    else:
        start = np.concatenate([genes, spread_genotypes(space, INNER_POPULATION, rng)])
        last = space.canonical(
            _pymoo.minimise(space, score, start, population=INNER_POPULATION, generations=INNER_GENERATIONS, rng=rng)
        )
    values, excess = score(last)
    excess = excess.sum(axis=1)
    allowed = np.flatnonzero(excess <= excess.min())
    front = allowed[non_dominated(values[allowed])]
    return last[front], values[front]
