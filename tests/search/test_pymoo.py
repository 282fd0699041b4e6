import numpy as np

from qnas_plugin.search import _pymoo
from tests.search.test_evolution import BITS


def test_offspring_come_from_the_best_parents() -> None:
    rng = np.random.default_rng(0)
    parents = np.vstack([np.zeros((10, 60), dtype=np.int64), np.ones((30, 60), dtype=np.int64)])
    losses = np.repeat(parents.sum(axis=1, keepdims=True), 2, axis=1).astype(float)
    children = _pymoo.offspring(BITS, parents, (losses, np.zeros((40, 0))), population=10, rng=rng)
    assert np.mean([next(children).mean() for _ in range(20)]) < 0.2
