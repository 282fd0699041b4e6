import numpy as np

from qnas_plugin.search import _pymoo
from qnas_plugin.space import Genes, Precision, SearchSpace, Variable

BITS = SearchSpace(tuple(Variable(f"v{i}", tuple(precision.value for precision in Precision)) for i in range(60)))


def test_minimise_reaches_the_supported_front_of_an_additive_problem() -> None:
    """Each point of the lower convex hull is the minimum of a weighted sum, found gene by gene."""
    weights = np.random.default_rng(0).exponential(size=(60, 2)) * [-1, 1]

    def score(genes: Genes) -> _pymoo.Scores:
        return genes @ weights, np.zeros((len(genes), 0))

    rng = np.random.default_rng(1)
    last = _pymoo.minimise(BITS, score, BITS.sample(100, rng), population=100, generations=150, rng=rng)
    found = score(last)[0]
    for mix in np.linspace(0.1, 0.9, 9):
        direction = np.array([mix, 1 - mix])
        best = np.minimum(weights @ direction, 0).sum()
        assert (found @ direction).min() <= best + 0.05 * abs(weights @ direction).sum()


def test_minimise_keeps_limits_first() -> None:
    def score(genes: Genes) -> _pymoo.Scores:
        ones = genes.sum(axis=1, keepdims=True)
        return np.hstack([-ones, ones]).astype(float), np.maximum(0.0, ones - 5.0)

    rng = np.random.default_rng(0)
    last = _pymoo.minimise(BITS, score, BITS.sample(40, rng), population=40, generations=60, rng=rng)
    assert last.sum(axis=1).max() == 5


def test_offspring_come_from_the_best_parents() -> None:
    rng = np.random.default_rng(0)
    parents = np.vstack([np.zeros((10, 60), dtype=np.int64), np.ones((30, 60), dtype=np.int64)])
    losses = np.repeat(parents.sum(axis=1, keepdims=True), 2, axis=1).astype(float)
    children = _pymoo.offspring(BITS, parents, (losses, np.zeros((40, 0))), population=10, rng=rng)
    assert np.mean([next(children).mean() for _ in range(20)]) < 0.2
