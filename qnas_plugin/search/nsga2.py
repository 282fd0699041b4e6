"""NSGA-II on measured candidates, without predictors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qnas_plugin.objectives import losses, violations
from qnas_plugin.search import Algorithm, Observation, Problem, _pymoo
from qnas_plugin.search._generations import Generations, first_generation, measured
from qnas_plugin.space import Genes


def create(problem: Problem, *, seed: int, population: int) -> Algorithm:
    """Makes NSGA-II (Deb et al. 2002) with operators for choices.

    Differs: parents are the best of all trials so far, not of the last two generations; the first generation starts
    with the baselines; no candidate is asked for twice.
    """

    def rank(generation: int, history: Sequence[Observation]) -> Iterator[Genes]:
        rng = np.random.default_rng([seed, generation])
        genes, metrics = measured(problem, history)
        if len(genes) >= 2:
            scores = losses(metrics, problem.objectives), violations(metrics, problem.limits)
            yield from _pymoo.offspring(problem.space, genes, scores, population=population, rng=rng)
        yield from first_generation(problem.space, rng)

    return Generations(problem.space, population, rank)
