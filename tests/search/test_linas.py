from itertools import islice
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from qnas_plugin.objectives import Limit, hypervolume
from qnas_plugin.search import Problem, linas
from qnas_plugin.search._generations import every_genotype, first_generation, spread_genotypes, stratified_start
from qnas_plugin.search.linas import most_gain_first
from qnas_plugin.space import Genes, SearchSpace
from qnas_plugin.testing._spaces import encoder_space, layered_metrics
from qnas_plugin.testing.search import WIDE, create, run
from tests.test_space import spaces

GRID = st.integers(-4, 4).map(float)


@given(
    stn.arrays(float, st.tuples(st.integers(0, 8), st.just(2)), elements=GRID),
    stn.arrays(float, st.tuples(st.integers(1, 5), st.just(2)), elements=GRID),
)
def test_most_gain_first_equals_brute_force(points: np.ndarray, known: np.ndarray) -> None:
    order = list(most_gain_first((points, np.zeros((len(points), 0))), (known, np.zeros((len(known), 0)))))
    assert sorted(order) == list(range(len(points)))
    everything = np.concatenate([known, points])
    span = np.where(np.ptp(everything, axis=0) > 0, np.ptp(everything, axis=0), 1)
    reference = everything.min(axis=0) + 1.1 * span
    front = known
    for n, i in enumerate(order):
        volumes = {j: hypervolume(np.vstack([front, points[j]]), reference) for j in order[n:]}
        assert np.isclose(volumes[i], max(volumes.values()))
        front = np.vstack([front, points[i]])


def test_most_gain_first_keeps_limits_before_all_else() -> None:
    points = np.array([[0.0, 0.0], [5.0, 5.0], [4.0, 6.0], [1.0, 1.0]])
    excess = np.array([[0.5], [0.0], [0.0], [0.2]])
    known = np.array([[2.0, 2.0], [6.0, 6.0]]), np.array([[0.3], [0.0]])
    assert list(most_gain_first((points, excess), known)) == [1, 2, 3, 0]


def test_inner_search_reaches_the_front_that_a_weight_sweep_finds() -> None:
    """Ridge is additive at each depth, so that its supported front follows exactly from all mixes of the losses."""
    rng = np.random.default_rng(0)
    model, genes = ridge_of_bert_base(rng)
    found, truth = model(linas.inner_search(model, genes, rng))[0], model(weight_sweep(model, 64))[0]
    reference = np.concatenate([found, truth]).max(axis=0)
    assert hypervolume(found, reference) >= 0.98 * hypervolume(truth, reference)


def ridge_of_bert_base(rng: np.random.Generator) -> tuple[linas.Model, Genes]:
    """A ridge that was trained on 100 candidates of the space of BERT-base (99 variables), and these."""
    space = encoder_space()
    worth, cost = rng.normal(size=(2, int(space.sizes.sum())))

    def latency(genes: Genes) -> np.ndarray:
        return space.features(genes) @ np.abs(cost)

    problem = Problem(space, ("accuracy", "latency_ms"), exact={"latency_ms": latency})
    genes = stratified(space, 100)
    accuracy = space.features(genes) @ worth + 0.1 * rng.normal(size=len(genes))
    metrics = [{"accuracy": a, "latency_ms": b} for a, b in zip(accuracy, latency(genes), strict=True)]
    with patch.object(linas, "PREDICTORS", ("ridge",)):
        return linas.Model.fitted(problem, genes, metrics, rng), genes


def weight_sweep(model: linas.Model, mixes: int) -> Genes:
    """For each depth and mix of the losses, the best network: each gene alone, as nothing interacts."""
    space = model.problem.space
    base = np.zeros((len(space.variables[0].choices), len(space)), dtype=np.int64)
    base[:, 0] = np.arange(len(base))
    best = []
    for start in base:
        options = np.repeat(start[None], int(space.sizes[1:].max()) * (len(space) - 1), axis=0)
        rows = np.arange(len(options)).reshape(len(space) - 1, -1)
        for column in range(1, len(space)):
            options[rows[column - 1], column] = np.minimum(np.arange(rows.shape[1]), space.sizes[column] - 1)
        effects = (model(options)[0] - model(start[None])[0]).reshape(*rows.shape, 2)
        effects /= np.abs(effects).max(axis=(0, 1))
        for mix in (1 - np.cos(np.linspace(0, np.pi, mixes))) / 2:
            best.append(start.copy())
            best[-1][1:] = np.minimum((effects @ [mix, 1 - mix]).argmin(axis=1), space.sizes[1:] - 1)
    return np.array(best)


def stratified(space: SearchSpace, count: int) -> Genes:
    return np.array(list(islice(stratified_start(space, np.random.default_rng(0)), count)))


def test_stratified_start_covers_depth_and_precision_evenly() -> None:
    space = encoder_space()
    genes = stratified(space, 4 + 28)[4:]
    depths = np.bincount(genes[:, 0], minlength=7)
    assert depths.min() >= 3
    assert depths.max() <= 5
    precision = np.array([variable.kind == "precision" for variable in space.variables])
    active = space.active(genes) & precision
    shares = (genes * active).sum(axis=1) / active.sum(axis=1)
    assert np.histogram(shares, bins=4, range=(0, 1))[0].min() >= 4  # of 28; uniform draws leave the outer two empty
    assert (space.canonical(genes) == genes).all()


@pytest.mark.parametrize("unmet", [False, True], ids=["feasible", "infeasible"])
def test_limits_steer_what_is_measured(unmet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feasible problem is searched inside its limits; an infeasible one ends with what violates least."""
    monkeypatch.setattr(linas, "INNER_POPULATION", 50)
    monkeypatch.setattr(linas, "INNER_GENERATIONS", 10)
    monkeypatch.setattr(linas, "BATCHES", 2)
    limit = Limit("latency_ms", "<=", 1.0 if unmet else 4.0)
    problem = Problem(WIDE, ("accuracy", "latency_ms"), limits=(limit,))
    asked = [
        candidate for seed in range(1 if unmet else 3) for candidate in run(create("linas", problem, seed), 60)[30:]
    ]
    found = [layered_metrics(candidate) for candidate in asked]
    if unmet:  # five networks of the space are below 2.5, thirty-six below 3.4; uniform draws repeat them
        drawn = [
            layered_metrics(WIDE.decode(genes))["latency_ms"] for genes in WIDE.sample(1000, np.random.default_rng(0))
        ]
        assert np.median([metrics["latency_ms"] for metrics in found]) < np.quantile(drawn, 0.25)
    else:
        kept = np.mean([limit.violation(metrics) == 0 for metrics in found])
        drawn = [layered_metrics(WIDE.decode(genes)) for genes in WIDE.sample(1000, np.random.default_rng(0))]
        assert np.mean([limit.violation(metrics) == 0 for metrics in drawn]) < 0.5 < 0.75 < kept


@given(spaces())
def test_every_genotype_gives_each_network_once(space: SearchSpace) -> None:
    genotypes = np.stack(list(every_genotype(space)))
    assert (space.canonical(genotypes) == genotypes).all()
    assert len({space.decode(genes).key for genes in genotypes}) == len(genotypes) == space.networks


@given(spaces(), st.integers(0, 2**32 - 1))
def test_spread_genotypes_are_canonical(space: SearchSpace, seed: int) -> None:
    genotypes = spread_genotypes(space, 20, np.random.default_rng(seed))
    assert ((genotypes >= 0) & (genotypes < space.sizes)).all()
    assert (space.canonical(genotypes) == genotypes).all()


def test_spread_genotypes_reach_from_corner_to_corner() -> None:
    space = encoder_space()
    precision = np.array([variable.kind == "precision" for variable in space.variables])

    def shares_of_fp32(genotypes: np.ndarray) -> np.ndarray:
        active = space.active(genotypes) & precision
        return (genotypes * active).sum(axis=1) / active.sum(axis=1)

    rng = np.random.default_rng(0)
    spread, uniform = shares_of_fp32(spread_genotypes(space, 200, rng)), shares_of_fp32(space.sample(200, rng))
    assert spread.min() < 0.1 < 0.9 < spread.max()
    assert 0.25 < uniform.min() < uniform.max() < 0.75


def test_first_generation_starts_with_the_largest_in_fp32() -> None:
    space = encoder_space()
    first = space.decode(next(first_generation(space, np.random.default_rng(0))))
    assert first["depth"] == 12
    assert set(first.values()) == {12, 3072, "fp32"}
