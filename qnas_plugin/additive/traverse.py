"""Every Pareto-optimal sum of additive quantities over a whole space, without evaluating candidates.

Variables are eliminated one by one (bucket elimination, Dechter 1999). What is left of the terms that know a variable
is, for each choice of the other variables that they know, the front of the sums over that variable's choices: a sum of
fronts is the front of all pairs' sums. A variable that many terms know, such as the depth, stays to the end, so each of
its choices is solved by itself; where two layers share a cost, as at a change of precision, both of their choices are
known until it is paid.

The result is exact as long as no front on the way has more than ``most`` points. Longer ones are thinned to one point
in each cell of a grid, and the result says by how much a sum can be off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np
import numpy.typing as npt

from qnas_plugin.additive import Floats, Term
from qnas_plugin.errors import UsageError
from qnas_plugin.space import Genes, SearchSpace

Small = npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Front:
    """The Pareto-optimal sums, all to be small, and a candidate for each.

    Args:
        sums: ``(k, sums)``, sorted by the first one.
        genes: Canonical genotypes ``(k, n)`` that have these sums.
        error: By how much a sum of this front can be above that of a Pareto-optimal one, ``(sums,)``: 0 where exact.
    """

    sums: Floats
    genes: Genes
    error: Floats


@dataclass(frozen=True, eq=False)
class _Table:
    """A front for each choice of some variables.

    Args:
        scope: Positions of the variables, sorted.
        fronts: Choices of these to points and the genes that are decided, 0 elsewhere.
    """

    scope: tuple[int, ...]
    fronts: dict[tuple[int, ...], tuple[Floats, Small]]


def traverse(
    space: SearchSpace, terms: Sequence[Term], *, limits: Sequence[float] | None = None, most: int = 4000
) -> Front:
    """The front of all candidates of a space.

    Args:
        space: The variables and when they exist.
        terms: Each with as many sums, two or three; all are to be small.
        limits: What each sum may be at most, ``math.inf`` for none.
        most: Points that a front on the way may have before it is thinned.

    Raises:
        UsageError: No candidate is within the limits.
    """
    count = terms[0].values.shape[-1]
    floor = np.zeros(count)
    tables = []
    for term in terms:
        table, least = _tabulate(space, term)
        tables.append(table)
        floor += least
    bounds = np.full(count, math.inf) if limits is None else np.asarray(limits, dtype=np.float64)
    solver = _Solver(space, bounds - floor, most, np.zeros(count))
    left = {i for table in tables for i in table.scope}
    while left:
        variable = min(left, key=lambda i: (solver.width(tables, i), i))
        tables = solver.eliminate(tables, variable)
        left.remove(variable)
    points, genes = solver.summed([table.fronts[()] for table in tables])
    if not len(points):
        raise UsageError("no candidate is within the limits, by these tables")
    order = np.lexsort(points.T[::-1])
    return Front(points[order] + floor, space.canonical(genes[order].astype(np.int64)), solver.error)


def _tabulate(space: SearchSpace, term: Term) -> tuple[_Table, Floats]:
    """A term with the variables that decide whether it is there, its values above their least, and that least."""
    own = [space.index[name] for name in term.variables]
    scope = set(own)
    for i in own:
        while (when := space.variables[i].when) is not None:
            i = space.index[when.variable]
            scope.add(i)
    ordered = tuple(sorted(scope))
    choices = np.array(list(itertools.product(*(range(space.sizes[i]) for i in ordered))), dtype=np.int64)
    genes = np.zeros((len(choices), len(space)), dtype=np.int64)
    genes[:, ordered] = choices
    there = space.active(genes)[:, own].all(axis=1)
    values = np.where(there[:, None], term.values[tuple(genes[:, own].T)], 0.0)
    least = values.min(axis=0)
    nothing = np.zeros((1, len(space)), dtype=np.int16)
    return _Table(
        ordered,
        {tuple(row): (value[None], nothing) for row, value in zip(choices.tolist(), values - least, strict=True)},
    ), least


@dataclass(eq=False)
class _Solver:
    """What all eliminations share.

    Args:
        bounds: What sums above their floor may be at most.
        error: Grows with each thinning.
    """

    space: SearchSpace
    bounds: Floats
    most: int
    error: Floats

    def width(self, tables: Sequence[_Table], variable: int) -> int:
        """How many combinations of other variables a variable's elimination looks at."""
        scope = {i for table in tables if variable in table.scope for i in table.scope} - {variable}
        return math.prod(int(self.space.sizes[i]) for i in scope)

    def eliminate(self, tables: Sequence[_Table], variable: int) -> list[_Table]:
        """The tables with those that know a variable joined into one that does not."""
        known = [table for table in tables if variable in table.scope]
        scope = tuple(sorted({i for table in known for i in table.scope} - {variable}))
        fronts = {}
        off = np.zeros(len(self.bounds))
        for choice in itertools.product(*(range(self.space.sizes[i]) for i in scope)):
            fronts[choice], lost = self._best(known, dict(zip(scope, choice, strict=True)), variable)
            off = np.maximum(off, lost)
        self.error += off
        return [*(table for table in tables if variable not in table.scope), _Table(scope, fronts)]

    def summed(self, fronts: Sequence[tuple[Floats, Small]]) -> tuple[Floats, Small]:
        """The front of all sums of one point of each front, thinned after each of them."""
        (points, genes), *others = sorted(fronts, key=lambda front: len(front[0]))
        for more, own in others:
            pairs = (points[:, None] + more[None]).reshape(-1, points.shape[1])
            kept = self._front(pairs)
            points, genes = pairs[kept], genes[kept // len(more)] + own[kept % len(more)]
            points, genes, lost = self._thinned(points, genes)
            self.error += lost
        return points, genes

    def _best(self, tables: Sequence[_Table], at: dict[int, int], variable: int) -> tuple[tuple[Floats, Small], Floats]:
        """The front over the choices of a variable, and by how much thinning it is off."""
        before = self.error.copy()
        off = np.zeros_like(before)
        found = []
        for choice in range(self.space.sizes[variable]):
            place = at | {variable: choice}
            self.error[:] = 0
            points, genes = self.summed([table.fronts[tuple(place[i] for i in table.scope)] for table in tables])
            off = np.maximum(off, self.error)
            genes = genes.copy()
            genes[:, variable] = choice
            found.append((points, genes))
        self.error[:] = before
        points, genes = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        kept = self._front(points)
        points, genes, lost = self._thinned(points[kept], genes[kept])
        return (points, genes), off + lost

    def _front(self, points: Floats) -> npt.NDArray[np.int64]:
        """The positions of points within the bounds that no other is below."""
        within = np.flatnonzero((points <= self.bounds + 1e-9).all(axis=1))
        if len(within) < 2:
            return within
        inside = points[within]
        if points.shape[1] != 2:
            return np.asarray(within[moocore.is_nondominated(inside)])
        order = np.lexsort((inside[:, 1], inside[:, 0]))
        seconds = inside[order, 1]
        before = np.concatenate([[math.inf], np.minimum.accumulate(seconds)[:-1]])
        return np.asarray(within[order[seconds < before]])

    def _thinned(self, points: Floats, genes: Small) -> tuple[Floats, Small, Floats]:
        """One point in each cell of a grid over all sums but the last: the one whose last sum is least."""
        lost = np.zeros(points.shape[1])
        if len(points) <= self.most:
            return points, genes, lost
        cells = int(self.most ** (1 / (points.shape[1] - 1)))
        low, high = points.min(axis=0)[:-1], points.max(axis=0)[:-1]
        lost[:-1] = (high - low) / cells
        cell = np.minimum(((points[:, :-1] - low) / np.where(high > low, high - low, 1) * cells).astype(int), cells - 1)
        code = np.ravel_multi_index(tuple(cell.T), (cells,) * cell.shape[1])
        order = np.lexsort((points[:, -1], code))
        first = order[np.concatenate([[True], np.diff(code[order]) > 0])]
        return points[first], genes[first], lost
