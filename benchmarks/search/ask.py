"""How long LINAS takes to propose a batch, against the trials that it knows.

    OMP_NUM_THREADS=1 python -m benchmarks.search.ask [--trials 100 300 1000 3000] [--variables 200] [--predicted 2]

The space is that of an encoder: layers with a head count, a width and six groups of INT8 or FP32. Metrics are made up:
sums over variables, interactions and noise. Size is exact; accuracy is predicted, and latency too unless
``--predicted`` is 1, as with a latency table. Seconds are those of the processor, medians over ``--repeat`` batches of
one search; the first one of a search that was resumed stands apart, as it encodes all trials.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from qnas_plugin.search import Observation, Problem, linas
from qnas_plugin.space import Condition, Genes, SearchSpace, Variable

OBJECTIVES = ("accuracy", "latency_ms", "size_mb")


def encoder(variables: int) -> SearchSpace:
    """Eight variables a layer, and the depth."""
    layers = max(2, variables // 8)
    depth = Variable("depth", tuple(range(max(1, layers - 6), layers + 1)))
    found = [depth]
    for i in range(layers):
        when = Condition("depth", tuple(d for d in depth.choices if d > i)) if i >= depth.choices[0] else None
        found += [
            Variable(f"layer.{i}.heads", (2, 4, 6, 8), when=when),
            Variable(f"layer.{i}.ffn", (512, 1024, 2048), when=when),
        ]
        for group in ("query", "key", "value", "output", "up", "down"):
            found.append(Variable(f"precision.layer.{i}.{group}", ("int8", "fp32"), "precision", when))
    return SearchSpace(tuple(found))


class Made:
    """Metrics of a space that are made up."""

    def __init__(self, space: SearchSpace) -> None:
        rng = np.random.default_rng(0)
        self.space = space
        features = int(space.sizes.sum())
        self.worth = np.abs(rng.normal(size=(features, len(OBJECTIVES))))
        self.pairs = rng.integers(features, size=(60, 2))

    def __call__(self, genes: Genes) -> np.ndarray:
        """Values ``(m, 3)`` of genotypes ``(m, n)``."""
        X = self.space.features(genes)
        values = X @ self.worth / self.worth.sum(axis=0)
        values[:, 0] += 0.02 * (X[:, self.pairs[:, 0]] * X[:, self.pairs[:, 1]]).mean(axis=1)
        return values


def main() -> None:
    """Prints a row for each number of trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", type=int, default=[100, 300, 1000, 3000])
    parser.add_argument("--variables", type=int, default=200)
    parser.add_argument("--predicted", type=int, choices=[1, 2], default=2)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    space = encoder(options.variables)
    made = Made(space)
    exact = {
        name: (lambda genes, i=i: made(genes)[:, i]) for i, name in enumerate(OBJECTIVES) if i >= options.predicted
    }
    problem = Problem(space, OBJECTIVES, exact=exact)
    print(f"{len(space)} variables, {options.predicted} predicted metrics")
    print("| trials | seconds to the first proposal of a batch | the first after a resume |")
    print("|---|---|---|")
    ask(problem, history(space, made, 20), 1)  # imports
    for trials in options.trials:
        first, *others = ask(problem, history(space, made, trials + 5 * options.repeat), 1 + options.repeat)
        print(f"| {trials} | {np.median(others):.2f} | {first:.2f} |", flush=True)


def history(space: SearchSpace, made: Made, trials: int) -> list[Observation]:
    """So many trials."""
    rng = np.random.default_rng(trials)
    genes = space.sample(trials, rng)
    rows = (made(genes) + rng.normal(0, [0.002, 0.001, 0], size=(trials, len(OBJECTIVES)))).tolist()
    return [
        Observation(space.decode(gene), dict(zip(OBJECTIVES, row, strict=True)))
        for gene, row in zip(genes, rows, strict=True)
    ]


def ask(problem: Problem, told: list[Observation], batches: int) -> list[float]:
    """Seconds to the first proposal of each of the last batches of five."""
    algorithm = linas.create(problem, seed=0, population=50)
    algorithm.tell(told[: len(told) - 5 * (batches - 1)])
    took = []
    for batch in range(batches):
        began = time.process_time()
        algorithm.ask()
        took.append(time.process_time() - began)
        left = len(told) - 5 * (batches - 1 - batch)
        algorithm.tell(told[left : left + 5])
    return took


if __name__ == "__main__":
    main()
