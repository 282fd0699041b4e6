"""Random search: each gene drawn uniformly, no candidate twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qnas_plugin.search import Algorithm, Observation, Problem
from qnas_plugin.search._generations import Generations, random_genotypes
from qnas_plugin.space import Genes


def create(problem: Problem, *, seed: int, population: int) -> Algorithm:
    """Makes the algorithm; it draws anew from the seed for each ``population`` trials and learns nothing from them."""

    def rank(generation: int, history: Sequence[Observation]) -> Iterator[Genes]:
        return random_genotypes(problem.space, np.random.default_rng([seed, generation]))

    return Generations(problem.space, population, rank)
