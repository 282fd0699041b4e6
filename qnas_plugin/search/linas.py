"""LINAS: search on predictors, measure what they find, learn from it, and again."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from qnas_plugin import predictors
from qnas_plugin.objectives import Losses, hypervolume, non_dominated, signs
from qnas_plugin.predictors import Predictor
from qnas_plugin.search import Algorithm, Observation, Problem, _evolution
from qnas_plugin.search._generations import (
    Generations,
    depths,
    every_genotype,
    measured,
    metric_names,
    spread_genotypes,
    stratified_start,
)
from qnas_plugin.space import Genes

PREDICTORS = ("ridge", "svr")
START = 10
"""Trials before the first training."""
BATCHES = 10
"""The predictors learn anew so many times in a population."""
INNER_POPULATION = 200
INNER_GENERATIONS = 100
MIXES, DEPTHS = 16, 32
"""Mixes of the objectives, for each of so many depths at most."""
ENUMERATED = 2000
"""Spaces of up to so many networks are predicted whole."""


def create(problem: Problem, *, seed: int, population: int) -> Algorithm:
    """Makes LINAS (Cummings et al. 2022, Alg. 1); ``docs/linas.md`` has its departures and what each one gains.

    Each generation, a tenth of the population, trains a predictor for each metric that is not exact, runs NSGA-II on
    the predictions, and measures what adds most to the hypervolume of the trials.
    """
    space = problem.space
    encoded: dict[str, Genes] = {}

    def rank(generation: int, history: Sequence[Observation]) -> Iterator[Genes]:
        rng = np.random.default_rng([seed, generation])
        genes, metrics = measured(problem, history, encoded)
        if len(genes) < 3 or len(history) < START:
            yield from stratified_start(space, np.random.default_rng(seed))
            return
        model = Model.fitted(problem, genes, metrics, rng)
        found = inner_search(model, genes, rng)
        seen = {observation.candidate.key for observation in history}
        new = found[[space.decode(row).key not in seen for row in found]]
        known = model(genes)
        if len(new):
            yield from new[list(most_gain_first(model(new), known))]
        while True:
            yield from space.mutate(found, rng, 2 / len(space))

    return Generations(space, max(1, population // BATCHES), rank)


@dataclass(frozen=True)
class Model:
    """Scores genotypes that nobody measured: exact metrics are computed, the others predicted.

    Args:
        problem: What is searched.
        predictors: Of the metrics that are not exact.
        steps: What the values of each metric are rounded to.
    """

    problem: Problem
    predictors: Mapping[str, Predictor]
    steps: Mapping[str, float]

    @classmethod
    def fitted(
        cls, problem: Problem, genes: Genes, metrics: Sequence[Mapping[str, float]], rng: np.random.Generator
    ) -> Model:
        """Trains on genotypes ``(m, n)`` and their metrics."""
        X = predictors.features(problem.space, genes)
        values = {
            name: problem.exact[name](genes) if name in problem.exact else np.array([row[name] for row in metrics])
            for name in metric_names(problem)
        }
        return cls(
            problem,
            {
                name: predictors.choose(PREDICTORS, X, y, rng)[0]
                for name, y in values.items()
                if name not in problem.exact
            },
            {name: predictors.step(y) for name, y in values.items()},
        )

    def __call__(self, genes: Genes) -> _evolution.Scores:
        """Losses ``(m, k)`` and violations ``(m, c)`` of genotypes ``(m, n)``."""
        problem, genes = self.problem, self.problem.space.canonical(genes)
        X = predictors.features(problem.space, genes)
        columns = {name: predictor.predict(X) for name, predictor in self.predictors.items()}
        columns |= {name: problem.exact[name](genes) for name in metric_names(problem) if name not in columns}
        columns = {name: predictors.rounded(values, self.steps[name]) for name, values in columns.items()}
        points = np.column_stack([columns[name] for name in problem.objectives]) * signs(problem.objectives)
        excess = [limit.excess(columns[limit.metric]) for limit in problem.limits]
        return points, np.reshape(excess, (len(problem.limits), len(genes))).T


def inner_search(model: Model, genes: Genes, rng: np.random.Generator) -> Genes:
    """Canonical genotypes ``(p, n)`` that the model scores best, searched from those that were measured ``(m, n)``."""
    space = model.problem.space
    if space.networks <= ENUMERATED:
        return np.stack(list(every_genotype(space)))
    start = np.concatenate([genes, one_by_one(model, genes, rng), spread_genotypes(space, INNER_POPULATION, rng)])
    return space.canonical(
        _evolution.minimise(space, model, start, population=INNER_POPULATION, generations=INNER_GENERATIONS, rng=rng)
    )


def one_by_one(model: Model, genes: Genes, rng: np.random.Generator) -> Genes:
    """Genotypes ``(s, n)`` that are best for random mixes of the losses, if variables add up: each is set by itself.

    For a linear model this is exact, and these are on its front. There are some for each depth; the effects of the
    other variables are those that they have around one of the genotypes given.
    """
    space = model.problem.space
    parents = depths(space)
    column = np.repeat(np.arange(len(space)), space.sizes)
    choice = np.concatenate([np.arange(size) for size in space.sizes])
    seeds = []
    for values in islice(itertools.product(*(range(size) for size in space.sizes[parents])), DEPTHS):
        centre = genes[rng.integers(len(genes))].copy()
        centre[parents] = values
        changed = np.repeat(centre[None], len(column), axis=0)
        free = np.flatnonzero(~np.isin(column, parents))
        changed[free, column[free]] = choice[free]
        effects = model(changed)[0]
        span = np.ptp(effects, axis=0)
        mixes = rng.dirichlet(np.ones(len(span)), size=MIXES) / np.where(span > 0, span, 1.0)
        worth = predictors.rounded(mixes @ effects.T, 1e-9)  # effects over their span
        best = np.repeat(centre[None], MIXES, axis=0)
        for i in np.setdiff1d(np.arange(len(space)), parents):
            best[:, i] = worth[:, column == i].argmin(axis=1)
        seeds.append(best)
    return np.concatenate(seeds)


def most_gain_first(scores: _evolution.Scores, known: _evolution.Scores) -> Iterator[int]:
    """An order of ``m`` scored points: first those nearest to the limits, each time the one that adds most volume.

    Volume is what the points before it and the known ones that keep the limits as well do not dominate. Points that
    add nothing come last.
    """
    points, excess = scores[0], scores[1].sum(axis=1)
    if not len(points):
        return
    allowed = np.flatnonzero(excess <= excess.min())
    everything = np.concatenate([known[0], points[allowed]])
    low, high = everything.min(axis=0), everything.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    reference = np.full(points.shape[1], 1.1)
    front = (known[0][known[1].sum(axis=1) <= excess.min()] - low) / span
    front = front[non_dominated(front)]
    points = (points - low) / span
    volume = hypervolume(front, reference)
    # Volume added only shrinks as the front grows, so that an old gain is a bound.
    queue = [(-np.inf, i) for i in allowed.tolist()]
    while queue:
        _, i = heapq.heappop(queue)
        gain = hypervolume(np.vstack([front, points[i]]), reference) - volume
        if queue and -gain > queue[0][0]:
            heapq.heappush(queue, (-gain, i))
            continue
        yield i
        front, volume = np.vstack([front, points[i]]), volume + gain
    yield from np.flatnonzero(excess > excess.min())[np.argsort(excess[excess > excess.min()], kind="stable")].tolist()


def predicted_front(
    problem: Problem, genes: Genes, metrics: Sequence[Mapping[str, float]], rng: np.random.Generator
) -> tuple[Genes, Losses]:
    """Canonical genotypes ``(f, n)`` of the front that predictors trained on trials see, and their losses."""
    model = Model.fitted(problem, genes, metrics, rng)
    found = inner_search(model, genes, rng)
    values, excess = model(found)
    allowed = np.flatnonzero(excess.sum(axis=1) <= excess.sum(axis=1).min())
    front = allowed[non_dominated(values[allowed])]
    return found[front], values[front]
