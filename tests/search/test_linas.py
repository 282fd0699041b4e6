import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from qnas_plugin.search._generations import every_genotype, first_generation, spread_genotypes
from qnas_plugin.search.linas import farthest_first
from qnas_plugin.space import SearchSpace
from tests.test_space import bert_base_sst2_quantized, spaces


@given(stn.arrays(float, st.tuples(st.integers(0, 12), st.integers(2, 3)), elements=st.integers(-5, 5).map(float)))
def test_farthest_first_equals_brute_force(points: np.ndarray) -> None:
    order = farthest_first(points)
    assert sorted(order) == list(range(len(points)))
    if len(points):
        span = np.ptp(points, axis=0)
        scaled = points / np.where(span > 0, span, 1)
        assert points[order[0], 0] == points[:, 0].min()
        for i in range(1, len(order)):
            gaps = {j: min(np.linalg.norm(scaled[j] - scaled[k]) for k in order[:i]) for j in order[i:]}
            assert np.isclose(gaps[order[i]], max(gaps.values()))


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
    space = bert_base_sst2_quantized()
    precision = np.array([variable.kind == "precision" for variable in space.variables])

    def shares_of_fp32(genotypes: np.ndarray) -> np.ndarray:
        active = space.active(genotypes) & precision
        return (genotypes * active).sum(axis=1) / active.sum(axis=1)

    rng = np.random.default_rng(0)
    spread, uniform = shares_of_fp32(spread_genotypes(space, 200, rng)), shares_of_fp32(space.sample(200, rng))
    assert spread.min() < 0.1 < 0.9 < spread.max()
    assert 0.25 < uniform.min() < uniform.max() < 0.75


def test_first_generation_starts_with_the_largest_in_fp32() -> None:
    space = bert_base_sst2_quantized()
    first = space.decode(next(first_generation(space, np.random.default_rng(0))))
    assert first["depth"] == 12
    assert set(first.values()) == {12, 3072, "fp32"}
