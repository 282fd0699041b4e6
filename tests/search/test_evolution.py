import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from qnas_plugin.objectives import non_dominated
from qnas_plugin.search import _evolution
from qnas_plugin.space import Genes, Precision, SearchSpace, Variable
from qnas_plugin.testing.search import WIDE

BITS = SearchSpace(tuple(Variable(f"v{i}", tuple(precision.value for precision in Precision)) for i in range(60)))


def test_minimise_reaches_the_supported_front_of_an_additive_problem() -> None:
    """Each point of the lower convex hull is the minimum of a weighted sum, found gene by gene."""
    weights = np.random.default_rng(0).exponential(size=(60, 2)) * [-1, 1]

    def score(genes: Genes) -> _evolution.Scores:
        return genes @ weights, np.zeros((len(genes), 0))

    rng = np.random.default_rng(1)
    last = _evolution.minimise(BITS, score, BITS.sample(100, rng), population=100, generations=300, rng=rng)
    found = score(last)[0]
    for mix in np.linspace(0.1, 0.9, 9):
        direction = np.array([mix, 1 - mix])
        best = np.minimum(weights @ direction, 0).sum()
        assert (found @ direction).min() <= best + 0.05 * abs(weights @ direction).sum()


def test_minimise_keeps_limits_first() -> None:
    def score(genes: Genes) -> _evolution.Scores:
        ones = genes.sum(axis=1, keepdims=True)
        return np.hstack([-ones, ones]).astype(float), np.maximum(0.0, ones - 5.0)

    rng = np.random.default_rng(0)
    last = _evolution.minimise(BITS, score, BITS.sample(40, rng), population=40, generations=60, rng=rng)
    assert last.sum(axis=1).max() == 5


def test_minimise_gives_each_network_once() -> None:
    def score(genes: Genes) -> _evolution.Scores:
        assert (WIDE.canonical(genes) == genes).all()
        return np.column_stack([genes.sum(axis=1), -genes[:, 0]]).astype(float), np.zeros((len(genes), 0))

    rng = np.random.default_rng(0)
    last = _evolution.minimise(WIDE, score, WIDE.sample(30, rng), population=30, generations=10, rng=rng)
    assert len(np.unique(last, axis=0)) == len(last) == 30


@given(
    stn.arrays(float, st.tuples(st.integers(1, 12), st.integers(2, 3)), elements=st.integers(-3, 3).map(float)),
    st.integers(1, 12),
)
def test_survivors_are_those_that_fewer_fronts_are_better_than(points: np.ndarray, count: int) -> None:
    kept = _evolution._survivors(points, np.zeros(len(points)), count).tolist()
    assert len(set(kept)) == len(kept) == min(count, len(points))
    left = list(range(len(points)))
    while left:
        front = [left[i] for i in np.flatnonzero(non_dominated(points[left]))]
        left = [i for i in left if i not in front]
        if any(i in kept for i in left):
            assert set(front) <= set(kept)
