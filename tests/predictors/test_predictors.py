"""Every registered predictor keeps its contract; how one is chosen, and what it learns from."""

import numpy as np
import pytest

from qnas_plugin import registry
from qnas_plugin.predictors import choose, features, ridge
from qnas_plugin.predictors._curve import LEAST_UNSEEN, curve
from qnas_plugin.testing.predictors import PredictorContract, sampled
from qnas_plugin.testing.search import WIDE

PREDICTORS = registry.names("predictors")


class TestPredictors(PredictorContract):
    names = PREDICTORS


def test_choose_takes_the_one_that_ranks_better() -> None:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 2, size=(120, 8)).astype(float)
    additive, interacting = X @ rng.normal(size=8), (X[:, 0] != X[:, 1]) + 0.3 * (X[:, 2] != X[:, 3])
    for y, expected in ((additive, "ridge"), (interacting, "svr")):
        for names in (["ridge", "svr"], ["svr", "ridge"]):
            predictor, tau = choose(names, X, y, np.random.default_rng(1))
            assert type(predictor).__module__ == f"qnas_plugin.predictors.{expected}"
            assert tau > 0.6


def test_choose_gives_the_tau_of_unseen_rows() -> None:
    X, y = sampled(80, seed=0)
    noise = np.random.default_rng(3).permutation(y)
    assert choose(PREDICTORS, X, y, np.random.default_rng(0))[1] > 0.3
    assert abs(choose(["ridge"], X, noise, np.random.default_rng(0))[1]) < 0.3


@pytest.mark.filterwarnings("error")
def test_choose_gives_the_first_and_zero_when_all_values_are_equal() -> None:
    X, _ = sampled(20, seed=0)
    predictor, tau = choose(["svr", "ridge"], X, np.full(20, 0.5), np.random.default_rng(0))
    assert type(predictor).__module__ == "qnas_plugin.predictors.svr"
    assert tau == 0


def test_features_add_sums_of_variables_that_differ_in_a_number() -> None:
    genes = WIDE.sample(50, np.random.default_rng(0))
    one_hot = WIDE.features(genes)
    X = features(WIDE, genes)
    assert (X[:, : one_hot.shape[1]] == one_hot).all()
    sums = X[:, one_hot.shape[1] :]
    assert sums.shape[1] == 3 + 2  # widths and precisions; there is one depth
    active = WIDE.active(genes)
    for row, exists, counts in zip(genes, active, sums, strict=True):
        names = [
            variable.name.partition("_")[0] if there else ""
            for variable, there in zip(WIDE.variables, exists, strict=True)
        ]
        widths = [row[i] for i, name in enumerate(names) if name == "width"]
        layers = [row[i] for i, name in enumerate(names) if name == "layer"]
        assert counts.tolist() == [*np.bincount(widths, minlength=3), *np.bincount(layers, minlength=2)]


def test_curve_tells_a_good_predictor_from_a_constant() -> None:
    X, y = sampled(120, seed=0)
    noise = np.random.default_rng(1).permutation(y)
    points = list(curve({"ridge": ridge.create}, X, y, (20, 50, 100, 101), np.random.default_rng(0)))
    assert [point.rows for point in points] == [20, 50, 120 - LEAST_UNSEEN]
    assert points[0].tau < points[-1].tau > 0.5
    assert points[-1].error < 0.8 * points[-1].constant
    (random,) = curve({"ridge": ridge.create}, X, noise, (100,), np.random.default_rng(0))
    assert abs(random.tau) < 0.25
    assert random.error > 0.9 * random.constant
    assert random.mape < 0.02  # although nothing was learned
