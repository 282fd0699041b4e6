"""Ask and tell for algorithms that work in generations, without waiting for a generation to finish."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from qnas_plugin.measure.belief import believed
from qnas_plugin.search import Observation, Problem
from qnas_plugin.space import Candidate, Genes, SearchSpace

Rank = Callable[[int, Sequence[Observation]], Iterable[Genes]]
"""Generation number and the trials before it to genotypes ``(n,)``, most wanted first; may be endless."""

PATIENCE = 1000
"""So many known candidates in a row, and the space is taken for nearly exhausted."""


class Generations:
    """Asks for the candidates that a generation ranks first.

    Generation ``g`` is ranked from the first ``g * population`` trials alone. What is asked therefore depends on the
    trials that were told and not on when they were: a resumed run goes on as the uninterrupted one would have. While
    trials of a generation are still in flight, its ranking simply goes on.

    Args:
        space: The variables.
        population: How many trials make a generation.
        rank: Ranks a generation; deterministic.
    """

    def __init__(self, space: SearchSpace, population: int, rank: Rank) -> None:
        self._space, self._population, self._rank = space, population, rank
        self._told: list[Observation] = []
        self._visited: set[str] = set()
        self._generation = -1
        self._queue: list[Candidate] = []
        self._rest: Iterator[Candidate] = iter(())

    def tell(self, observations: Sequence[Observation]) -> None:
        """Takes finished trials in the order in which they were stored."""
        self._told.extend(observations)
        self._visited.update(observation.candidate.key for observation in observations)

    def ask(self, in_flight: Collection[str] = ()) -> Candidate | None:
        """The next candidate to evaluate; None when none is left."""
        generation = len(self._told) // self._population
        if generation != self._generation:
            self._generation, self._queue, self._rest = generation, [], self._ranked(generation)
        self._queue = [candidate for candidate in self._queue if candidate.key not in self._visited]
        for candidate in self._queue:
            if candidate.key not in in_flight:
                return candidate
        for candidate in self._rest:
            if candidate.key not in self._visited:
                self._queue.append(candidate)
                if candidate.key not in in_flight:
                    return candidate
        return None

    def _ranked(self, generation: int) -> Iterator[Candidate]:
        """Each candidate that the trials before this generation have not visited, once."""
        history = self._told[: generation * self._population]
        seen = {observation.candidate.key for observation in history}
        misses = 0
        for genes in self._rank(generation, history):
            candidate = self._space.decode(genes)
            if candidate.key not in seen:
                seen.add(candidate.key)
                misses = 0
                yield candidate
            elif (misses := misses + 1) == PATIENCE:
                break
        for genes in every_genotype(self._space):
            candidate = self._space.decode(genes)
            if candidate.key not in seen:
                yield candidate


def every_genotype(space: SearchSpace) -> Iterator[Genes]:
    """All canonical genotypes ``(n,)`` in lexicographic order, one by one."""
    genes = np.zeros(len(space), dtype=np.int64)
    while True:
        yield genes.copy()
        free = np.flatnonzero(space.active(genes[None, :])[0] & (genes < space.sizes - 1))
        if not len(free):
            return
        genes[free[-1]] += 1
        genes[free[-1] + 1 :] = 0


def random_genotypes(space: SearchSpace, rng: np.random.Generator) -> Iterator[Genes]:
    """Endless canonical genotypes ``(n,)``, each gene drawn uniformly."""
    while True:
        yield from space.sample(64, rng)


def spread_genotypes(space: SearchSpace, count: int, rng: np.random.Generator) -> Genes:
    """``(count, n)`` canonical genotypes, each with its own mean size and its own share of FP32.

    With many variables, uniform draws are all of middling size and half INT8; these reach from corner to corner.
    """
    precision = np.array([variable.kind == "precision" for variable in space.variables])
    level = np.where(precision, rng.random((count, 1)), rng.random((count, 1)))
    return space.canonical(rng.binomial(space.sizes - 1, level))


def first_generation(space: SearchSpace, rng: np.random.Generator) -> Iterator[Genes]:
    """The four baselines (largest and smallest subnet, all FP32 and all INT8), then endless draws between them."""
    yield from baselines(space)
    while True:
        yield from spread_genotypes(space, 64, rng)


def stratified_start(space: SearchSpace, rng: np.random.Generator) -> Iterator[Genes]:
    """The four baselines, then endless canonical genotypes ``(n,)`` that cover depth, size and share of FP32 evenly.

    The levels follow an additive sequence of low discrepancy (Roberts
    2018, "R2") from a random point: every beginning of it covers all of them about equally.
    """
    yield from baselines(space)
    precision = np.array([variable.kind == "precision" for variable in space.variables])
    columns = depths(space)
    dimensions = 2 + len(columns)
    root = 2.0
    for _ in range(50):
        root = (1 + root) ** (1 / (dimensions + 1))
    steps = (1 / root) ** np.arange(1, dimensions + 1)
    point = rng.random(dimensions)
    while True:
        point = np.remainder(point + steps, 1.0)
        genes = rng.binomial(space.sizes - 1, np.where(precision, point[0], point[1]))
        genes[columns] = (point[2:] * space.sizes[columns]).astype(np.int64)
        yield space.canonical(genes[None])[0]


def depths(space: SearchSpace) -> list[int]:
    """The positions of the variables that others depend on."""
    return sorted({space.index[variable.when.variable] for variable in space.variables if variable.when})


def baselines(space: SearchSpace) -> Iterator[Genes]:
    """The largest and the smallest subnet, all FP32 and all INT8."""
    yield from map(space.encode, space.corners.values())


def measured(
    problem: Problem, history: Sequence[Observation], encoded: dict[str, Genes] | None = None
) -> tuple[Genes, Sequence[Mapping[str, float]]]:
    """Genotypes ``(m, n)`` of the trials that have every metric of the objectives and limits, and what is believed.

    The metrics are those of ``qnas_plugin.measure.belief``: accuracies and latencies as all these trials together say.

    Args:
        problem: What is searched.
        history: The trials.
        encoded: Genotypes by key, where they are kept from one call to the next.
    """
    needed = metric_names(problem)
    complete = [
        observation
        for observation in history
        if observation.metrics is not None and all(name in observation.metrics for name in needed)
    ]
    encoded = {} if encoded is None else encoded
    for candidate in (observation.candidate for observation in complete):
        if candidate.key not in encoded:
            encoded[candidate.key] = problem.space.encode(candidate)
    genes = np.array([encoded[observation.candidate.key] for observation in complete], dtype=np.int64)
    return genes.reshape(-1, len(problem.space)), believed(complete).metrics


def metric_names(problem: Problem) -> list[str]:
    """The metrics of the objectives and the limits, each once, in order."""
    return list(dict.fromkeys([*problem.objectives, *(limit.metric for limit in problem.limits)]))
