"""Joint search against architecture search followed by precision search, at equal evaluations, by LINAS.

    python -m benchmarks.search.joint [--spaces digits minilm] [--seeds 10]

All ways share the algorithm, the budget and the records:

- joint: one search of the whole space;
- sequential, FP32 or INT8: half of the budget searches architectures with all groups at that precision, the other half
  searches the precision of three of the architectures found, equally far apart on the front, a third of it each;
- precision only: the full network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.search import compare, contenders
from benchmarks.search.contenders import Contender, Evaluate
from benchmarks.search.replay import Replay
from benchmarks.search.spaces import SPACES
from qnas_plugin.objectives import losses, non_dominated
from qnas_plugin.search import ExactMetric, Problem, linas
from qnas_plugin.space import Candidate, Genes, Precision, SearchSpace, Value

CHOSEN = 3
"""Architectures whose precision is searched."""


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=None)
    parser.add_argument("--runs", type=Path, default=Path("build/search"))
    options = parser.parse_args()
    compare.ALL |= WAYS
    for space in options.spaces:
        replay = Replay(SPACES[space])
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        runs = [
            compare.Run(space, replay.objectives, way, seed, compare.BUDGET)
            for way in ["linas", *WAYS]
            for seed in seeds
        ]
        compare.execute(replay, runs, options.runs, options.processes)
        print(compare.table(replay, runs, options.runs, rival="linas")[0])


def fixed(space: SearchSpace, values: Mapping[str, Value]) -> SearchSpace:
    """The part of a space in which some variables have one value; what can't exist there is left out."""
    choices: dict[str, tuple[Value, ...]] = {}
    variables = []
    for variable in space.variables:
        when = variable.when
        if when is not None:
            allowed = tuple(value for value in when.values if value in choices.get(when.variable, ()))
            if not allowed:
                continue
            when = replace(when, values=allowed)
        kept = (values[variable.name],) if variable.name in values else variable.choices
        choices[variable.name] = kept
        variables.append(replace(variable, choices=kept, when=when))
    return SearchSpace(tuple(variables))


def searched(problem: Problem, values: Mapping[str, Value], evaluate: Evaluate, seed: int, budget: int) -> None:
    """Searches a part of the space by LINAS with at most so many evaluations."""
    part, whole = fixed(problem.space, values), problem.space
    columns = [whole.index[variable.name] for variable in part.variables]
    indices = [
        np.array([whole.variables[column].choices.index(choice) for choice in variable.choices])
        for column, variable in zip(columns, part.variables, strict=True)
    ]

    def in_whole(genes: Genes) -> Genes:
        found = np.zeros((len(genes), len(whole)), dtype=np.int64)
        for i, column in enumerate(columns):
            found[:, column] = indices[i][genes[:, i]]
        return whole.canonical(found)

    def moved(exact: ExactMetric) -> ExactMetric:
        return lambda genes: exact(in_whole(genes))

    inside = Problem(part, problem.objectives, exact={name: moved(exact) for name, exact in problem.exact.items()})
    left = budget

    def counted(candidate: Candidate) -> Mapping[str, float]:
        nonlocal left
        if not left:
            raise _PartSpent
        left -= 1
        return evaluate(candidate)

    try:
        contenders.asked(linas.create)(inside, counted, seed)
    except _PartSpent:
        return


class _PartSpent(Exception):  # noqa: N818
    """A stage of a search made its evaluations."""


def sequential(precision: Precision) -> Contender:
    """Architectures at one precision first, then the precision of some."""

    def run(problem: Problem, evaluate: Evaluate, seed: int) -> None:
        seen: list[tuple[Candidate, Mapping[str, float]]] = []

        def remembered(candidate: Candidate) -> Mapping[str, float]:
            seen.append((candidate, evaluate(candidate)))
            return seen[-1][1]

        groups = {
            variable.name: precision.value for variable in problem.space.variables if variable.kind == "precision"
        }
        searched(problem, groups, remembered, seed, compare.BUDGET // 2)
        for candidate in chosen(problem, seen):
            values = dict(problem.space.architecture(candidate))
            searched(problem, values, evaluate, seed, -(-compare.BUDGET // 2 // CHOSEN))

    return run


def chosen(problem: Problem, seen: list[tuple[Candidate, Mapping[str, float]]]) -> list[Candidate]:
    """Candidates spread over the front of what was seen: equally far apart in the order of accuracy."""
    points = losses([metrics for _, metrics in seen], problem.objectives)
    front = np.flatnonzero(non_dominated(points))
    front = front[np.argsort(points[front, 0], kind="stable")]
    return [seen[front[i]][0] for i in np.linspace(0, len(front) - 1, CHOSEN).round().astype(int)]


def precision_only(problem: Problem, evaluate: Evaluate, seed: int) -> None:
    """The precision of the full network."""
    values = dict(problem.space.architecture(problem.space.corner("largest", Precision.FP32)))
    searched(problem, values, evaluate, seed, compare.BUDGET)


WAYS: dict[str, Callable[[Problem, Evaluate, int], None]] = {
    "architecture in FP32, then precision": sequential(Precision.FP32),
    "architecture in INT8, then precision": sequential(Precision.INT8),
    "precision of the full network": precision_only,
}

if __name__ == "__main__":
    main()
