"""Exact traversal against brute force and against a solver of integer programs."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from qnas_plugin.additive import Term, total
from qnas_plugin.additive.traverse import traverse
from qnas_plugin.errors import UsageError
from qnas_plugin.space import Condition, SearchSpace, Variable


def random_case(seed: int, sums: int) -> tuple[SearchSpace, tuple[Term, ...]]:
    """A few layers under a depth, terms of one layer and of neighbours; every other case has ties."""
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(2, 4))
    depths = tuple(range(1, layers + 1))
    variables = [Variable("depth", depths)]
    for i in range(layers):
        when = Condition("depth", depths[i:])
        variables.append(Variable(f"width.{i}", tuple(range(int(rng.integers(1, 4)))), when=when))
        variables.append(Variable(f"precision.{i}", ("int8", "fp32"), "precision", when))
    variables.append(Variable("alone", (0, 1)))
    space = SearchSpace(tuple(variables))
    scopes = [(f"width.{i}", f"precision.{i}") for i in range(layers)]
    scopes += [(f"precision.{i}", f"precision.{i + 1}") for i in range(layers - 1)]
    scopes += [("depth",), ("alone",), ("alone", "precision.0")]
    values = rng.normal(size=1) if seed % 2 else None
    terms = []
    for scope in scopes:
        shape = (*(len(space.variables[space.index[name]].choices) for name in scope), sums)
        drawn = rng.integers(-3, 9, size=shape).astype(float) if values is None else rng.normal(size=shape)
        terms.append(Term(scope, drawn))
    return space, tuple(terms)


def everything(space: SearchSpace) -> np.ndarray:
    genes = np.array(list(itertools.product(*(range(size) for size in space.sizes))))
    return np.unique(space.canonical(genes), axis=0)


def front_of(points: np.ndarray) -> np.ndarray:
    unique = np.unique(points.round(9), axis=0)
    below = (unique[:, None] <= unique[None]).all(axis=2) & (unique[:, None] < unique[None]).any(axis=2)
    return unique[~below.any(axis=0)]


@pytest.mark.parametrize("sums", [2, 3])
def test_the_front_is_that_of_all_candidates(sums: int) -> None:
    for seed in range(100):
        space, terms = random_case(seed, sums)
        genes = everything(space)
        found = traverse(space, terms)
        np.testing.assert_allclose(found.sums.round(9), front_of(total(space, terms, genes)), atol=1e-8)
        np.testing.assert_allclose(total(space, terms, found.genes), found.sums, atol=1e-9)
        np.testing.assert_array_equal(space.canonical(found.genes), found.genes)
        assert not found.error.any()


def test_limits_leave_what_is_within_them() -> None:
    for seed in range(30):
        space, terms = random_case(seed, 2)
        points = total(space, terms, everything(space))
        limit = float(np.median(points[:, 0]))
        whole = front_of(points)
        np.testing.assert_allclose(
            traverse(space, terms, limits=[limit, math.inf]).sums.round(9), whole[whole[:, 0] <= limit], atol=1e-8
        )
        with pytest.raises(UsageError, match="no candidate is within the limits"):
            traverse(space, terms, limits=[points[:, 0].min() - 1, math.inf])


def chain(blocks: int, candidates: int, seed: int) -> tuple[SearchSpace, tuple[Term, ...]]:
    rng = np.random.default_rng(seed)
    space = SearchSpace(tuple(Variable(f"block.{i}", tuple(range(candidates))) for i in range(blocks)))
    cost = rng.uniform(0.1, 1, (blocks, candidates))
    loss = np.exp(-3 * cost) + rng.uniform(0, 0.02, cost.shape)  # what costs more loses less
    both = np.stack([cost, loss], axis=-1)
    return space, tuple(Term((v.name,), values) for v, values in zip(space.variables, both, strict=True))


def test_the_front_is_the_optimum_of_an_integer_program_at_each_budget() -> None:
    space, terms = chain(8, 12, 0)
    found = traverse(space, terms)
    assert not found.error.any()
    cost, loss = (np.concatenate([term.values[:, i] for term in terms]) for i in (0, 1))
    one = np.kron(np.eye(8), np.ones(12))
    for budget in np.quantile(found.sums[:, 0], np.linspace(0.02, 1, 20)):
        solved = milp(
            loss,
            constraints=[LinearConstraint(one, 1, 1), LinearConstraint(cost[None], -np.inf, budget)],
            integrality=np.ones(len(loss)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0},
        )
        assert found.sums[found.sums[:, 0] <= budget + 1e-9, 1].min() == pytest.approx(solved.fun, abs=1e-6)


def test_a_front_that_was_thinned_says_by_how_much_it_can_be_off() -> None:
    space, terms = chain(6, 12, 1)
    exact, thinned = traverse(space, terms, most=10**6), traverse(space, terms, most=200)
    assert not exact.error.any()
    assert 0 < thinned.error[0] < 0.5
    for cost, loss in exact.sums:
        near = (thinned.sums[:, 0] <= cost + thinned.error[0] + 1e-9) & (
            thinned.sums[:, 1] <= loss + thinned.error[1] + 1e-9
        )
        assert near.any()


def test_many_candidates_in_few_blocks_take_less_than_a_second() -> None:
    space, terms = chain(6, 1296, 2)
    began = time.process_time()
    found = traverse(space, terms)
    assert time.process_time() - began < 3.0  # 0.2 s on an idle core
    assert len(found.sums) > 100
