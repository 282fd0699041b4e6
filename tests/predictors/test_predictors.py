"""What every registered predictor promises."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from qnas_plugin import registry
from qnas_plugin.predictors import Predictor, choose, features, ridge
from qnas_plugin.predictors._curve import LEAST_UNSEEN, curve
from tests.search.test_algorithms import WIDE
from tests.test_space import bert_base_sst2_quantized

PREDICTORS = registry.names("predictors")
SPACE = bert_base_sst2_quantized()


def create(name: str) -> Predictor:
    predictor: Predictor = registry.load("predictors", name).create()
    return predictor


def sampled(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and additive accuracies near 0.9 that differ in the third digit."""
    X = SPACE.features(SPACE.sample(count, np.random.default_rng(seed)))
    worth = np.random.default_rng(7).normal(size=X.shape[1])
    return X, 0.9 + 0.001 * (X @ worth)


@pytest.mark.parametrize("name", PREDICTORS)
def test_predict_ranks_unseen_candidates(name: str) -> None:
    predictor = create(name)
    predictor.fit(*sampled(200, seed=0))
    X, y = sampled(200, seed=1)
    predicted = predictor.predict(X)
    assert predicted.shape == y.shape
    assert kendalltau(predicted, y).statistic > 0.5
    assert abs(predicted.mean() - y.mean()) < 3 * y.std()


@pytest.mark.parametrize("name", PREDICTORS)
def test_fit_is_deterministic_and_independent_of_units(name: str) -> None:
    X, y = sampled(60, seed=0)
    one, other, percent = create(name), create(name), create(name)
    one.fit(X, y)
    other.fit(X, y)
    percent.fit(X, 100 * y)
    assert (one.predict(X) == other.predict(X)).all()
    assert percent.predict(X) == pytest.approx(100 * one.predict(X), rel=1e-6)


@pytest.mark.parametrize("name", PREDICTORS)
def test_fit_gives_the_constant_when_all_values_are_equal(name: str) -> None:
    X, _ = sampled(20, seed=0)
    predictor = create(name)
    predictor.fit(X, np.full(20, 0.75))
    assert predictor.predict(X) == pytest.approx(np.full(20, 0.75))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [2, 3, 6])
@pytest.mark.parametrize("name", PREDICTORS)
def test_fit_works_when_rows_are_few(name: str, rows: int) -> None:
    X, y = sampled(rows, seed=0)
    predictor = create(name)
    predictor.fit(X, y)
    assert np.isfinite(predictor.predict(X)).all()


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
