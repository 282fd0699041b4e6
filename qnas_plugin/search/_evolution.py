"""NSGA-II on genotypes, whole populations at a time: with predictors, pymoo's objects would take most of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from qnas_plugin.objectives import Losses
from qnas_plugin.space import Genes, SearchSpace

Floats = npt.NDArray[np.float64]
Scores = tuple[Losses, Floats]
"""Losses ``(m, k)`` and violations of the limits ``(m, c)`` of ``m`` genotypes."""


def minimise(
    space: SearchSpace,
    score: Callable[[Genes], Scores],
    start: Genes,
    *,
    population: int,
    generations: int,
    rng: np.random.Generator,
) -> Genes:
    """The last population ``(p, n)`` of NSGA-II from a start population ``(m, n)`` of any size; canonical genotypes.

    Deb et al. 2002 with operators for choices: uniform crossover and random reset. A network is in a population once;
    one that keeps the limits, or is nearer to them, wins over one that does not.
    """
    genes = _new(space.canonical(start))
    losses, violations = score(genes)
    excess = violations.sum(axis=1)
    kept = _survivors(losses, excess, population)
    genes, losses, excess = genes[kept], losses[kept], excess[kept]
    for _ in range(generations):
        rivals = rng.integers(len(genes), size=(2, 2, population))
        parents = genes[rivals.min(axis=0)]  # the population is in order, the best first
        children = np.where(rng.random(parents.shape[1:]) < 0.5, parents[0], parents[1])
        children = space.canonical(space.mutate(children, rng, 1 / len(space)))
        children = _new(children, genes)
        if not len(children):
            continue
        found, violations = score(children)
        genes, losses = np.concatenate([genes, children]), np.concatenate([losses, found])
        excess = np.concatenate([excess, violations.sum(axis=1)])
        kept = _survivors(losses, excess, population)
        genes, losses, excess = genes[kept], losses[kept], excess[kept]
    return genes


def _survivors(losses: Losses, excess: Floats, count: int) -> npt.NDArray[np.int64]:
    """The indices of the best ``count`` points, best first."""
    import moocore

    allowed = excess <= 0
    rank = len(losses) + np.unique(excess, return_inverse=True)[1]
    rank[allowed] = moocore.pareto_rank(losses[allowed]) if allowed.any() else 0
    crowding = np.zeros(len(losses))
    for level in np.unique(rank):
        members = np.flatnonzero(rank == level)
        crowding[members] = _crowding(losses[members])
        if (rank <= level).sum() >= count:
            break
    best: npt.NDArray[np.int64] = np.lexsort((-crowding, rank))[:count]
    return best


def _crowding(points: Losses) -> Floats:
    """The distance ``(m,)`` of each point's neighbours along all objectives; infinite at the ends."""
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
        distance[order[[0, -1]]] = np.inf
    return distance


def _new(genes: Genes, known: Sequence[Genes] | Genes = ()) -> Genes:
    """The first of each row that is not among the known ones."""
    rows = {row.tobytes(): i for i, row in reversed(list(enumerate(genes)))}
    for row in known:
        rows.pop(row.tobytes(), None)
    return genes[sorted(rows.values())]
