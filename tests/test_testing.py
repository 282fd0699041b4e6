"""The contract suites: a family in a package of its own passes them without a change here, and broken modules fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_cnn

from qnas_plugin import registry
from qnas_plugin.predictors import ridge
from qnas_plugin.search import random
from qnas_plugin.tasks import arrays
from qnas_plugin.testing import predictors, search, supernets, tasks

ROOT = Path(__file__).parents[1]
TOY = ROOT / "examples" / "toy_supernet"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip leaves it: the toy's module, and the entry points that its pyproject.toml names."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((TOY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (information := folder / "toy_supernet-0.1.0.dist-info").mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    shutil.copy(TOY / "tiny_cnn.py", folder)
    return folder


def run(site: Path, folder: Path, *arguments: str) -> str:
    """What Python prints in an environment that has the package beside this one."""
    path = os.pathsep.join([str(site), *(entry for entry in sys.path if entry != str(TOY)), str(ROOT)])
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_family_of_another_package_passes_its_suite(site: Path, tmp_path: Path) -> None:
    shutil.copy(TOY / "test_tiny_cnn.py", tmp_path)
    printed = run(site, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_tiny_cnn.py")
    passed = re.search(r"(\d+) passed, 2 skipped", printed)
    assert passed, printed
    assert int(passed[1]) >= 28


def test_family_of_another_package_is_shown(site: Path, tmp_path: Path) -> None:
    shown = run(site, tmp_path, "-m", "qnas_plugin", "show", "supernets")
    assert "tiny_cnn" in shown
    assert "small residual network" in " ".join(shown.split())


def test_package_needs_pytest_nowhere_else() -> None:
    package = ROOT / "qnas_plugin"
    users = [path.relative_to(package) for path in package.rglob("*.py") if "import pytest" in path.read_text("utf-8")]
    assert {path.parts[0] for path in users} == {"testing"}


def test_contract_without_names_says_so() -> None:
    with pytest.raises(AssertionError, match="needs the attribute 'names'"):
        supernets.SupernetContract().pytest_generate_tests(SimpleNamespace(fixturenames=["name"]))  # type: ignore[arg-type]


class Steps:
    """A ridge that predicts another value each time, or one that depends on the unit."""

    def __init__(self, change: Callable[[np.ndarray, int], np.ndarray]) -> None:
        self.ridge, self.change = ridge.create(), change
        self.fitted = 0

    def fit(self, X: np.ndarray, y: np.ndarray) -> None:
        self.ridge.fit(X, y)

    def predict(self, X: np.ndarray) -> np.ndarray:
        CALLS.append(1)
        return self.change(self.ridge.predict(X), len(CALLS))


CALLS: list[int] = []


@pytest.mark.parametrize(
    ("promise", "change"),
    [
        ("test_predict_ranks_unseen_candidates", lambda y, _: -y),
        ("test_predict_ranks_unseen_candidates", lambda y, _: y - 1),
        ("test_fit_is_deterministic_and_independent_of_units", lambda y, calls: y + calls * 1e-9),
        ("test_fit_is_deterministic_and_independent_of_units", lambda y, _: np.minimum(y, 1)),
        ("test_fit_gives_the_constant_when_all_values_are_equal", lambda y, _: y + 0.01),
    ],
    ids=["turned round", "moved", "unsteady", "of one unit", "not constant"],
)
def test_predictor_that_breaks_a_promise_fails(promise: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda *_: SimpleNamespace(create=lambda: Steps(change)))
    with pytest.raises(AssertionError):
        getattr(predictors.PredictorContract(), promise)("broken")


class Forgetful:
    """Random search that can't see what is in flight, or what was told."""

    def __init__(self, problem: Any, seed: int, population: int, *, told: bool) -> None:
        self.own, self.told = random.create(problem, seed=seed, population=population), told

    def ask(self, in_flight: Any = ()) -> Any:
        return self.own.ask(in_flight if not self.told else ())

    def tell(self, observations: Any) -> None:
        if self.told:
            self.own.tell(observations)


@pytest.mark.parametrize(
    ("promise", "told"),
    [
        ("test_ask_gives_a_candidate_again_when_its_trial_was_lost", True),
        ("test_ask_never_waits_nor_repeats_while_trials_are_in_flight", True),
        ("test_ask_never_waits_nor_repeats_while_trials_are_in_flight", False),
        ("test_ask_ends_when_every_network_was_visited", False),
        ("test_ask_gives_none_when_the_rest_is_in_flight", True),
        ("test_search_finds_the_front_of_a_tiny_space", False),
    ],
)
def test_algorithm_that_breaks_a_promise_fails(promise: str, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(problem: Any, *, seed: int, population: int) -> Forgetful:
        return Forgetful(problem, seed, population, told=told)

    monkeypatch.setattr(registry, "load", lambda *_: SimpleNamespace(create=create))
    with pytest.raises(AssertionError):
        getattr(search.AlgorithmContract(), promise)("broken")


def test_task_that_shows_its_report_fails(tmp_path: Path) -> None:
    dataset = arrays.load(str(arrays.tiny(tmp_path).data), sizes=tasks.SIZES)
    tasks.TaskContract().test_load_gives_disjoint_parts(dataset)
    leaking = SimpleNamespace(**{part: getattr(dataset, part) for part in tasks.PARTS} | {"search": dataset.report})
    with pytest.raises(AssertionError):
        tasks.TaskContract().test_load_gives_disjoint_parts(leaking)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("promise", "broken"),
    [
        ("test_activate_restores_the_whole_supernet_when_none", {"activate": lambda _: None}),
        ("test_activate_computes_the_hard_pruned_subnet", {"activate": lambda _: None}),
        ("test_order_keeps_the_function_and_sorts_units", {"order": lambda _: None}),
    ],
)
def test_supernet_that_breaks_a_promise_fails(
    promise: str, broken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_cnn.tiny(tmp_path)
    supernet = tiny_cnn.load(str(tmp_path))
    contract = supernets.SupernetContract()
    monkeypatch.setattr(contract, "pruned", lambda *_: supernets.cut_to_size(tiny_cnn.load(str(tmp_path)), _[1]))
    getattr(contract, promise)(supernet, tiny)
    supernet.activate(None)
    for name, method in broken.items():
        monkeypatch.setattr(supernet, name, method)
    with pytest.raises(AssertionError):
        getattr(contract, promise)(supernet, tiny)
