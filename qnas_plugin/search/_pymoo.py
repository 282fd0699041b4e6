"""pymoo's NSGA-II with operators for choices, on genotypes. The only module that imports pymoo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.ux import UX
from pymoo.problems.static import StaticProblem

from qnas_plugin.search._evolution import Scores
from qnas_plugin.space import Genes, SearchSpace


def offspring(
    space: SearchSpace, parents: Genes, scores: Scores, *, population: int, rng: np.random.Generator
) -> Iterator[Genes]:
    """Children ``(n,)`` of the best ``population`` of the parents ``(m, n)``, by NSGA-II's survival and tournaments.

    Ends when crossover and mutation find nothing new.
    """
    evolution = _start(space, parents, scores, population, rng)
    evolution.pop = evolution.survival.do(
        evolution.problem, evolution.pop, n_survive=population, algorithm=evolution, random_state=evolution.random_state
    )
    while (children := evolution.ask()) is not None:
        yield from children.get("X")


def _start(space: SearchSpace, genes: Genes, scores: Scores, population: int, rng: np.random.Generator) -> Any:
    losses, violations = scores
    problem = Problem(
        n_var=len(space), n_obj=losses.shape[1], n_ieq_constr=violations.shape[1], xl=0, xu=space.sizes - 1, vtype=int
    )
    start = _evaluate(problem, Population.new("X", genes), scores)
    evolution = NSGA2(
        pop_size=population,
        sampling=start,
        crossover=UX(),
        mutation=_RandomReset(space),
        eliminate_duplicates=_SameNetwork(space),
    )
    evolution.setup(problem, seed=int(rng.integers(2**31)))
    evolution.termination = NoTermination()
    evolution.tell(infills=start)
    return evolution


def _evaluate(problem: Problem, genes: Population, scores: Scores) -> Population:
    losses, violations = scores
    return Evaluator().eval(StaticProblem(problem, F=losses, G=violations), genes)


class _RandomReset(Mutation):  # type: ignore[misc]
    """Each gene moves to another of its choices with probability 1/n."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def _do(self, problem: Problem, X: Genes, *, random_state: np.random.Generator, **_: object) -> Genes:
        return self.space.mutate(X, random_state, 1 / len(self.space))


class _SameNetwork(DuplicateElimination):  # type: ignore[misc]
    """Genotypes that differ in inactive genes only are duplicates."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def _do(
        self, pop: Population, other: Population | None, is_duplicate: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        seen = set() if other is None else set(self._networks(other))
        for i, network in enumerate(self._networks(pop)):
            is_duplicate[i] = network in seen
            seen.add(network)
        return is_duplicate

    def _networks(self, pop: Population) -> list[bytes]:
        return [row.tobytes() for row in self.space.canonical(pop.get("X"))]
