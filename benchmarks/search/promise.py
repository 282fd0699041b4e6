"""Whether the recommended member keeps the limit that was promised, on records.

    python -m benchmarks.search.promise [--studies 400] [--confidence 0.9] [--examples 300 600 1000 2000]

All examples of a recorded space, of both splits, are the population: the true accuracy of a record is that on all of
them. A study draws search examples and as many selection examples from it, with replacement, searches the records with
a ridge in batches as LINAS does, and recommends a record: by today's rule, the fastest of the front whose accuracy on
the search examples is within the limit, or by tests on the selection examples (``results.selection``). Counted is
how often it truly loses more than allowed against the full INT8 network, and how much faster it is, beside what an
oracle picks that knows the true accuracies of the same trials.

Where a space was recorded with the probability of the label too, the same follows with the front by corrected accuracy
(``qnas_plugin.measure.witness``), and how well the probability tells the true accuracy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import moocore
import numpy as np
import numpy.typing as npt

from benchmarks.search.replay import Replay
from benchmarks.search.spaces import SOFT, SPACES, Recorded
from qnas_plugin import predictors
from qnas_plugin.measure.witness import Corrected, corrected, halvings
from qnas_plugin.results import selection
from qnas_plugin.results.statistics import Paired
from qnas_plugin.space import Precision

Floats = npt.NDArray[np.float64]
LIMITS = (0.005, 0.01, 0.02)
PENALTIES = np.logspace(-1, 4, 16)
TRIALS, START, BATCH = 200, 40, 40
CONFIDENCES = (0.8, 0.9, 0.95)


@dataclass(frozen=True, eq=False)
class Population:
    """The records of a space and all their answers.

    Args:
        name: Of the space.
        right: Which examples each record gets right, ``(m, examples)``.
        soft: The probability that it gives the labels; None where that was not recorded.
        costs: Latency and size, ``(m, 2)``.
        features: What the search learns from, ``(m, f)``.
        reference: The row of the full INT8 network.
        trials: How many records a study evaluates.
    """

    name: str
    right: npt.NDArray[np.float32]
    soft: npt.NDArray[np.float32] | None
    costs: Floats
    features: Floats
    reference: int
    trials: int

    @classmethod
    def of(cls, recorded: Recorded) -> Population:
        """Reads the records of a space."""
        replay = Replay(recorded)
        full = replay.space.encode(replay.space.corner("largest", Precision.INT8))
        soft = replay.probabilities
        features = predictors.features(replay.space, replay.genes)
        return cls(
            f"{recorded.name}, soft" if recorded.soft else recorded.name,
            replay.answers.astype(np.float32),
            None if soft is None else soft.astype(np.float32),
            np.column_stack([recorded.latency(replay.genes), replay.size_mb(replay.genes)]),
            features[:, features.std(axis=0) > 0],
            int(np.flatnonzero((replay.genes == full).all(axis=1))[0]),
            min(TRIALS, len(replay.genes) // 4),
        )

    @property
    def examples(self) -> int:
        """How many there are."""
        return self.right.shape[1]


@dataclass(frozen=True, eq=False)
class Study:
    """One simulated search. Its trials are numbered as in ``told``; the first one is the reference.

    Args:
        population: What was searched.
        told: Rows of the evaluated records, ``(t,)``.
        search: The examples searched on, ``(n,)``.
        selection: The examples of the tests, ``(n,)``.
    """

    population: Population
    told: npt.NDArray[np.int64]
    search: npt.NDArray[np.int64]
    selection: npt.NDArray[np.int64]

    @classmethod
    def run(cls, population: Population, count: int, seed: int, *, soft: bool = False) -> Study:
        """Searches on so many examples and draws as many for the tests.

        Args:
            population: The records.
            count: Of examples.
            seed: Of the draws.
            soft: Whether the search learns the probability of the label in place of accuracy.
        """
        rng = np.random.default_rng([seed, count])
        drawn, others = rng.integers(population.examples, size=(2, count))
        scores = population.soft if soft else population.right
        assert scores is not None
        measured = scores @ np.bincount(drawn, minlength=population.examples).astype(np.float32) / count
        return cls(population, _search(population, measured.astype(np.float64), rng), drawn, others)

    @cached_property
    def gains(self) -> Floats:
        """How many times faster than the reference each trial is."""
        latencies = self.population.costs[self.told, 0]
        return latencies[0] / latencies

    @cached_property
    def true_losses(self) -> Floats:
        """True accuracy of the reference minus that of each trial."""
        accuracies = self.population.right[self.told].mean(axis=1, dtype=np.float64)
        return accuracies[0] - accuracies

    @cached_property
    def measured(self) -> Floats:
        """Accuracy of each trial on the search examples."""
        return self.population.right[self.told][:, self.search].mean(axis=1, dtype=np.float64)

    @cached_property
    def corrected(self) -> Corrected:
        """Accuracy of each trial as the soft score corrects it."""
        halves = halvings(len(self.search))
        accuracy, soft = (
            None if scores is None else scores[self.told][:, self.search].astype(np.float64)
            for scores in (self.population.right, self.population.soft)
        )
        assert accuracy is not None
        means = [None if scores is None else scores @ halves.T / halves.sum(axis=1) for scores in (accuracy, soft)]
        assert means[0] is not None
        return corrected(
            accuracy.mean(axis=1), None if soft is None else soft.mean(axis=1), means[0], means[1], len(self.search)
        )

    def today(self, allowed: float) -> int | None:
        """The fastest of the front that is within the limit on the search examples."""
        within = [i for i in self._front(self.measured) if self.measured[i] >= self.measured[0] - allowed]
        return max(within, key=lambda i: self.gains[i], default=None)

    def tests(self, allowed: float, confidence: float, accuracies: Floats) -> tuple[selection.Test, ...]:
        """The tests of the chain by these accuracies, up to the first that fails."""
        right = self.population.right[self.told]
        reference = right[0, self.selection].astype(np.float64)
        chain = selection.plan(accuracies, self.gains)
        return selection.pick(
            chain,
            lambda i: Paired(right[i, self.selection] - reference),
            self.gains,
            allowed=allowed,
            confidence=confidence,
        ).tests

    def oracle(self, allowed: float) -> int:
        """The fastest trial that truly loses no more than allowed."""
        within = np.flatnonzero(self.true_losses <= allowed + 1e-9)
        return int(within[self.gains[within].argmax()])

    def _front(self, accuracies: Floats) -> list[int]:
        points = np.column_stack([-accuracies, self.population.costs[self.told]])
        return np.flatnonzero(moocore.is_nondominated(points, keep_weakly=True)).tolist()


def _search(population: Population, measured: Floats, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows of the records that a search evaluates, the reference first: a start, then batches from predicted fronts."""
    rows = rng.permutation(len(measured))
    told = [population.reference, *rows[rows != population.reference][: START - 1].tolist()]
    unseen = np.ones(len(measured), dtype=bool)
    unseen[told] = False
    while len(told) < population.trials:
        points = np.column_stack([-_ridge(population.features, told, measured[told]), population.costs])
        batch: list[int] = []
        rest = np.flatnonzero(unseen)
        size = min(BATCH, population.trials - len(told))
        while len(batch) < size:
            front = moocore.is_nondominated(points[rest])
            batch += rng.permutation(rest[front])[: size - len(batch)].tolist()
            rest = rest[~front]
        told += batch
        unseen[batch] = False
    return np.array(told)


def _ridge(features: Floats, rows: Sequence[int], values: Floats) -> Floats:
    """Predictions for all records ``(m,)`` by a ridge trained on some, with the best penalty."""
    X, centre = features[rows] - features[rows].mean(axis=0), values.mean()
    U, S, Vt = np.linalg.svd(X, full_matrices=False)
    projected = U.T @ (values - centre)
    shrunken = S**2 / (S**2 + PENALTIES[:, None])
    residuals = (values - centre) - (shrunken * projected) @ U.T
    errors = (residuals / (1 - shrunken @ (U**2).T - 1 / len(rows))) ** 2
    best = shrunken[errors.mean(axis=1).argmin()]
    weights = Vt.T @ (best / np.maximum(S, 1e-9) * projected)
    return centre + (features - features[rows].mean(axis=0)) @ weights


@dataclass(frozen=True)
class Result:
    """What a rule recommended in one study; the gain is 1 where it recommended nothing.

    Args:
        gain: How many times faster it is than the reference.
        breaks: Whether it truly loses more than allowed.
        oracle: The gain of what the oracle picks.
    """

    gain: float
    breaks: bool
    oracle: float


def results(study: Study, confidences: Sequence[float]) -> Iterator[tuple[tuple[float, str], Result]]:
    """What each rule recommends for each limit, by limit and name of the rule."""

    def result(allowed: float, chosen: int | None) -> Result:
        oracle = float(study.gains[study.oracle(allowed)])
        if chosen is None:
            return Result(1.0, False, oracle)
        return Result(float(study.gains[chosen]), bool(study.true_losses[chosen] > allowed + 1e-9), oracle)

    fronts = {"": study.measured}
    if study.population.soft is not None:
        fronts[", soft front"] = study.corrected.accuracy
    for allowed in LIMITS:
        yield (allowed, "today"), result(allowed, study.today(allowed))
        for name, accuracies in fronts.items():
            tests = study.tests(allowed, min(confidences), accuracies)
            for confidence in confidences:
                passed = [
                    test.member
                    for test in takewhile(lambda test, level=1 - confidence: test.p_value <= level + 1e-12, tests)
                ]
                yield (allowed, f"tests, {confidence:.0%}{name}"), result(allowed, passed[-1] if passed else None)


def line(space: str, count: int, allowed: float, rule: str, of: Sequence[Result]) -> str:
    """A row of the table."""
    gains, oracle = np.array([one.gain for one in of]), np.mean([one.oracle for one in of])
    return (
        f"| {space} | {count} + {count} | {100 * allowed:g} | {rule} | {len(of)} | "
        f"{np.mean([one.breaks for one in of]):.1%} | "
        f"{np.mean(gains <= 1):.0%} | {gains.mean():.2f} | {np.median(gains):.2f} | {oracle:.2f} | "
        f"{gains.mean() / oracle:.0%} |"
    )


def witness(study: Study) -> list[float]:
    """How well accuracy and the soft score on the search examples tell true accuracy, over the trials of a study.

    Correlations of accuracy on one half of the examples with that on the other, of the soft score on one half with
    accuracy on the other, of the soft score on both; of accuracy and of the soft score on all with true accuracy; and 1
    where the guard takes the soft score.
    """
    found, soft = study.corrected, study.population.soft
    assert soft is not None
    drawn = soft[study.told][:, study.search].mean(axis=1)
    true = [float(np.corrcoef(values, -study.true_losses)[0, 1]) for values in (study.measured, drawn)]
    halves = [found.accuracy_correlation, found.soft_correlation, found.soft_reliability]
    return [*halves, *true, float(found.witness == "soft")]


def simulate(population: Population, options: argparse.Namespace) -> Iterator[list[float]]:
    """Prints the lines of a space; gives those about its soft score. Ctrl-C prints what there is, and ends."""
    for count in options.examples:
        found: dict[tuple[float, str], list[Result]] = {}
        about: list[list[float]] = []
        stopped = False
        try:
            for seed in range(options.studies):
                study = Study.run(population, count, seed, soft=population.soft is not None)
                for key, result in list(results(study, options.confidence)):
                    found.setdefault(key, []).append(result)
                if population.soft is not None:
                    about.append(witness(study))
                if sys.stderr.isatty():
                    print(f"\r{population.name}, {count}: {seed + 1} of {options.studies}", end="\r", file=sys.stderr)
        except KeyboardInterrupt:
            stopped = True
        for (allowed, rule), of in found.items():
            print(line(population.name, count, allowed, rule, of), flush=True)
        if about:
            yield [count, *np.mean(about, axis=0).tolist()]
        if stopped:
            raise SystemExit(130)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--confidence", type=float, nargs="+", default=CONFIDENCES)
    parser.add_argument("--examples", type=int, nargs="+", default=(300, 600, 1000, 2000))
    options = parser.parse_args()
    print(
        "| space | search + selection examples | limit, points | rule | studies | breaks it | nothing better | ", end=""
    )
    print("mean speed-up | median | oracle | of the oracle |\n|---|---|---|---|---|---|---|---|---|---|---|")
    lines = []
    for spaces in (SPACES, SOFT):
        for space in (spaces[name] for name in options.spaces):
            if space.records.exists():
                population = Population.of(space)
                for count, *values in simulate(population, options):
                    numbers = " | ".join(f"{value:.2f}" for value in values)
                    lines.append(f"| {population.name} | {count} | {numbers} |")
    if lines:
        print("\n| space | examples | accuracy A, accuracy B | soft A, accuracy B | soft A, soft B | ", end="")
        print("accuracy, true accuracy | soft, true accuracy | guard takes soft |\n|---|---|---|---|---|---|---|---|")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
