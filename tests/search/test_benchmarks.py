"""The comparison of algorithms: that it is fair in what it counts, and repeats itself."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.search import joint
from benchmarks.search.contenders import CONTENDERS, trace
from benchmarks.search.replay import Replay
from benchmarks.search.spaces import SPACES
from qnas_plugin.search import Problem
from qnas_plugin.space import SearchSpace
from qnas_plugin.testing._contract import printed_with
from qnas_plugin.testing._spaces import encoder_space, layered_metrics
from qnas_plugin.testing.search import WIDE

QUICK = ("random", "nsga2", "pymoo NSGA-II", "pymoo SMS-EMOA", "pymoo MOEA/D", "Optuna TPE", "Optuna TPE, multivariate")
PROBLEM = Problem(WIDE, ("accuracy", "latency_ms"))


def keys(name: str, seed: int, budget: int = 70) -> list[str]:
    return [candidate.key for candidate in trace(CONTENDERS[name], PROBLEM, layered_metrics, seed, budget)]


@pytest.mark.parametrize("name", QUICK)
def test_contenders_spend_the_budget_on_distinct_candidates_but_for_optuna(name: str) -> None:
    asked = keys(name, 0)
    assert len(asked) == 70
    assert (len(set(asked)) == 70) == (not name.startswith("Optuna"))
    assert keys(name, 1) != asked


def test_contenders_are_the_same_whatever_the_hash_seed() -> None:
    program = (
        "from tests.search.test_benchmarks import *\nimport numpy as np\nfor name in QUICK:\n    print(keys(name, 3))\n"
    )
    assert printed_with(program, "PYTHONHASHSEED", ("1", "2")).count("\n") == len(QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_compare_prints_the_same_whatever_the_hash_seed(space: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    def printed(seed: str) -> list[str]:
        runs = tmp_path_factory.mktemp("runs")
        out = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.search.compare", "--spaces", space, "--seeds", "2"),
                *("--contenders", "linas", "nsga2", "published LINAS", "--budget", "60", "--runs", str(runs)),
            ],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return [line.rpartition("|")[0].rpartition("|")[0] for line in out.splitlines()]  # without the seconds

    assert printed("1") == printed("2")


@pytest.mark.parametrize("space", SPACES)
def test_records_are_distinct_candidates_of_their_space(space: str) -> None:
    replay = Replay(SPACES[space])
    assert (replay.space.canonical(replay.genes) == replay.genes).all()
    assert len(np.unique(replay.genes, axis=0)) == len(replay.genes)
    for accuracies in replay.accuracies.values():
        assert accuracies.shape == (len(replay.genes),)
        assert 0 < accuracies.min() < accuracies.max() < 1
    size_mb = replay.size_mb(replay.genes)
    assert np.abs(size_mb / replay.recorded_mb - 1).max() < 0.5
    assert np.corrcoef(size_mb, replay.recorded_mb)[0, 1] > 0.99


def test_replay_gives_recorded_candidates_what_they_got() -> None:
    replay = Replay(SPACES["digits"])
    for i in (0, 7, 100):
        metrics = replay.metrics(replay.space.decode(replay.genes[i]))
        assert metrics["accuracy"] == replay.accuracies["search"][i]


@pytest.mark.parametrize("space", [WIDE, encoder_space()], ids=["wide", "bert"])
def test_fixed_leaves_only_what_can_exist(space: SearchSpace) -> None:
    depth = space.variables[0]
    part = joint.fixed(space, {"depth": depth.choices[0]})
    rng = np.random.default_rng(0)
    for genes in part.sample(20, rng):
        candidate = space.candidate(dict(part.decode(genes)))
        assert candidate["depth"] == depth.choices[0]
        assert dict(candidate) == dict(part.decode(genes))
