"""What every search algorithm promises."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from qnas_plugin import registry
from qnas_plugin.objectives import Limit, hypervolume, losses, non_dominated
from qnas_plugin.search import Algorithm, Observation, Problem
from qnas_plugin.space import Candidate, Genes, Precision, SearchSpace, Variable
from qnas_plugin.testing._contract import Contract, printed_with
from qnas_plugin.testing._spaces import layered_metrics, layered_space

POPULATION = 10
TINY = layered_space(2)  # 6 + 36 networks
WIDE = layered_space(8)


def _size_of_genes(genes: Genes) -> npt.NDArray[np.float64]:
    return np.array([layered_metrics(WIDE.decode(row))["size_mb"] for row in genes])


PROBLEMS = {
    "two": Problem(WIDE, ("accuracy", "latency_ms")),
    "three with limits": Problem(
        WIDE,
        ("accuracy", "latency_ms", "size_mb"),
        limits=(Limit("latency_ms", "<=", 9.0), Limit("accuracy", ">=", 0.3)),
        exact={"size_mb": _size_of_genes},
    ),
}
TWO = PROBLEMS["two"]


def observe(candidate: Candidate) -> Observation:
    """Its trial; every fourth candidate or so fails."""
    return Observation(candidate, None if int(candidate.key, 16) % 4 == 0 else layered_metrics(candidate))


def create(name: str, problem: Problem, seed: int = 0) -> Algorithm:
    """A fresh one."""
    algorithm: Algorithm = registry.load("search", name).create(problem, seed=seed, population=POPULATION)
    return algorithm


def run(algorithm: Algorithm, trials: int) -> list[Candidate]:
    """What is asked in a search of so many trials, or of fewer where nothing is left."""
    asked = []
    for _ in range(trials):
        candidate = algorithm.ask()
        if candidate is None:
            break
        asked.append(candidate)
        algorithm.tell([observe(candidate)])
    return asked


class AlgorithmContract(Contract):
    """Algorithms repeat nothing, follow their seed and the history alone, never wait, and end when all was visited."""

    unguided: ClassVar[Sequence[str]] = ()
    """Names of algorithms that need not do better than random search."""

    def quicken(self, patch: pytest.MonkeyPatch) -> None:
        """Makes small what is large in an algorithm of the class, so that its tests are quick."""

    @pytest.fixture(autouse=True)
    def _quick(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            self.quicken(patch)
            yield

    def printed(self, program: str, variable: str, values: tuple[str, ...], *arguments: str) -> str:
        """See `printed_with`; the program has this module's names and what this class makes small."""
        start = (
            "import importlib, sys, pytest\n"
            "from qnas_plugin.testing.search import *\n"
            f"contract = importlib.import_module({type(self).__module__!r}).{type(self).__qualname__}()\n"
            "contract.quicken(pytest.MonkeyPatch())\n"
        )
        return printed_with(start + program, variable, values, *arguments)

    @pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
    def test_ask_repeats_nothing_and_follows_the_seed(self, name: str, problem: Problem) -> None:
        asked = run(create(name, problem), 20)
        assert len({candidate.key for candidate in asked}) == 20
        assert all(WIDE.candidate(dict(candidate)) == candidate for candidate in asked)
        assert run(create(name, problem), 20) == asked
        assert run(create(name, problem, seed=1), 20) != asked

    @pytest.mark.parametrize("stop", [0, 1, POPULATION - 1, POPULATION, 2 * POPULATION + 1])
    def test_ask_goes_on_as_the_uninterrupted_run_when_resumed(self, name: str, stop: int) -> None:
        asked = run(create(name, TWO), 20)
        resumed = create(name, TWO)
        resumed.tell([observe(candidate) for candidate in asked[:stop]])
        assert run(resumed, 20 - stop) == asked[stop:]

    def test_ask_is_the_same_whatever_the_hash_seed(self, name: str) -> None:
        program = f"print([candidate.key for candidate in run(create(sys.argv[1], TWO), {2 * POPULATION + 2})])"
        assert len(self.printed(program, "PYTHONHASHSEED", ("1", "2"), name)) > 200

    def test_ask_never_waits_nor_repeats_while_trials_are_in_flight(self, name: str) -> None:
        algorithm, rng = create(name, TWO), np.random.default_rng(0)
        in_flight: dict[str, Candidate] = {}
        asked: list[str] = []
        for _ in range(40):
            while len(in_flight) < 8:
                candidate = algorithm.ask(in_flight.keys())
                assert candidate is not None
                assert candidate.key not in in_flight
                in_flight[candidate.key] = candidate
                asked.append(candidate.key)
            done = in_flight.pop(str(rng.choice(sorted(in_flight))))
            algorithm.tell([observe(done)])
        assert len(set(asked)) == len(asked)

    def test_ask_gives_a_candidate_again_when_its_trial_was_lost(self, name: str) -> None:
        algorithm = create(name, TWO)
        first = algorithm.ask()
        assert first is not None
        second = algorithm.ask([first.key])
        assert second not in (None, first)
        assert algorithm.ask() == first

    def test_ask_ends_when_every_network_was_visited(self, name: str) -> None:
        algorithm = create(name, Problem(TINY, ("accuracy", "latency_ms")))
        asked = run(algorithm, 1000)
        assert len({candidate.key for candidate in asked}) == len(asked) == TINY.networks == 42
        assert algorithm.ask() is None

    def test_ask_gives_none_when_the_rest_is_in_flight(self, name: str) -> None:
        algorithm = create(name, Problem(TINY, ("accuracy", "latency_ms")))
        in_flight: list[str] = []
        while (candidate := algorithm.ask(in_flight)) is not None:
            in_flight.append(candidate.key)
            assert len(in_flight) <= TINY.networks
        assert len(set(in_flight)) == len(in_flight) == TINY.networks

    def test_ask_works_when_there_is_one_network(self, name: str) -> None:
        space = SearchSpace((Variable("width", (8,)),))
        algorithm = create(name, Problem(space, ("accuracy", "latency_ms")))
        only = space.corner("largest", Precision.FP32)
        assert algorithm.ask() == only
        algorithm.tell([Observation(only, {"accuracy": 0.5, "latency_ms": 1.0})])
        assert algorithm.ask() is None

    @pytest.mark.parametrize("metrics", [None, {"accuracy": 0.5, "latency_ms": 1.0}], ids=["failed", "equal"])
    def test_ask_goes_on_when_all_trials_are_alike(self, name: str, metrics: dict[str, float] | None) -> None:
        algorithm = create(name, TWO)
        for _ in range(3 * POPULATION):
            candidate = algorithm.ask()
            assert candidate is not None
            algorithm.tell([Observation(candidate, metrics)])

    def test_search_comes_closer_to_the_front_than_random_search(self, name: str) -> None:
        if name in self.unguided:
            pytest.skip("follows nothing")

        def score(name: str) -> float:
            found = [observe(candidate).metrics for candidate in run(create(name, TWO), 40)]
            points = losses([metrics for metrics in found if metrics], TWO.objectives)
            return float(hypervolume(points, np.array([-0.2, 30.0])))

        assert score(name) > score("random")

    def test_search_keeps_limits_more_often_than_random_search(self, name: str) -> None:
        if name in self.unguided:
            pytest.skip("follows nothing")
        limit = Limit("latency_ms", "<=", 4.0)
        problem = Problem(WIDE, ("accuracy", "latency_ms"), limits=(limit,))

        def kept(name: str) -> int:
            asked = run(create(name, problem), 40)[10:]
            return sum(limit.violation(layered_metrics(candidate)) == 0 for candidate in asked)

        assert kept(name) > 2 * kept("random")

    def test_search_finds_the_front_of_a_tiny_space(self, name: str) -> None:
        problem = Problem(TINY, ("accuracy", "latency_ms"))
        algorithm = create(name, problem)
        asked = []
        while (candidate := algorithm.ask()) is not None:
            asked.append(candidate)
            assert len(asked) <= TINY.networks
            algorithm.tell([Observation(candidate, layered_metrics(candidate))])
        points = losses([layered_metrics(candidate) for candidate in asked], problem.objectives)
        genotypes = itertools.product(*(range(size) for size in TINY.sizes))
        every = {candidate.key: candidate for candidate in (TINY.decode(np.array(genes)) for genes in genotypes)}
        truth = losses([layered_metrics(candidate) for candidate in every.values()], problem.objectives)
        assert {tuple(p) for p in points[non_dominated(points)]} == {tuple(p) for p in truth[non_dominated(truth)]}
