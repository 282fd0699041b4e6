"""Compares search algorithms on recorded spaces: hypervolume against evaluations, over seeds.

    python -m benchmarks.search.compare [--spaces digits minilm] [--contenders linas nsga2 ...] [--seeds 10]

Finished runs are kept in ``--runs`` and not repeated; delete the folder to do so. The table goes to standard output, a
chart of all evaluations to ``--plot``, an HTML file.
Equal seeds give equal numbers in every process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.search import plot
from benchmarks.search.ablations import ABLATIONS
from benchmarks.search.contenders import CONTENDERS, trace
from benchmarks.search.replay import Replay
from benchmarks.search.spaces import SPACES
from qnas_plugin.files import write_json
from qnas_plugin.objectives import hypervolume
from qnas_plugin.space import Genes, Precision

Floats = npt.NDArray[np.float64]
ALL = CONTENDERS | ABLATIONS
BUDGET = 250
RIVAL = "nsga2"
"""Whose hypervolume after the whole budget is to be reached."""


@dataclass(frozen=True)
class Run:
    """One contender on one space from one seed."""

    space: str
    objectives: tuple[str, ...]
    contender: str
    seed: int
    budget: int

    def path(self, folder: Path) -> Path:
        """Where its evaluations are kept."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.contender} {self.budget}".lower())
        return folder / f"{self.space}-{len(self.objectives)}" / words / f"{self.seed}.json"

    def genes(self, folder: Path) -> Genes:
        """What it evaluated, in order: canonical genotypes ``(m, n)``."""
        return np.array(json.loads(self.path(folder).read_text())["genes"], dtype=np.int64)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=ALL, metavar="NAME")
    parser.add_argument("--ablations", action="store_true", help="compare LINAS without its parts instead")
    parser.add_argument("--objectives", nargs="+", default=["accuracy", "latency_ms", "size_mb"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=BUDGET)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=Path("build/search"))
    parser.add_argument("--plot", type=Path, default=Path("build/search.html"), help="where the chart goes")
    options = parser.parse_args()
    names = ["nsga2", *ABLATIONS] if options.ablations else options.contenders
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    charts: dict[str, dict[str, Floats]] = {}
    for space in options.spaces:
        replay = Replay(SPACES[space], tuple(options.objectives))
        runs = [Run(space, replay.objectives, contender, seed, options.budget) for contender in names for seed in seeds]
        execute(replay, runs, options.runs, options.processes)
        text, charts[space] = table(replay, runs, options.runs)
        print(text)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    options.plot.write_text(plot.render(charts), encoding="utf-8")
    print(f"Hypervolume against evaluations: {options.plot}", file=sys.stderr)


def execute(replay: Replay, runs: Sequence[Run], folder: Path, processes: int | None) -> None:
    """Makes the runs that are not in the folder yet."""
    missing = [run for run in runs if not run.path(folder).exists()]
    if not missing:
        return
    replay.metrics(replay.space.corner("largest", Precision.FP32))  # all that is fitted lazily, once for all processes
    context = multiprocessing.get_context("fork")
    with context.Pool(processes, _start, (replay, folder), maxtasksperchild=4) as pool:
        for done, run in enumerate(pool.imap_unordered(_execute, missing), 1):
            print(f"{done} of {len(missing)}: {run.space}, {run.contender}, seed {run.seed}", file=sys.stderr)


def _start(replay: Replay, folder: Path) -> None:
    global _context
    _context = replay, folder


def _execute(run: Run) -> Run:
    replay, folder = _context
    np.random.seed(run.seed)  # pymoo 0.6 draws some of its decisions from numpy's own
    began = time.perf_counter()
    asked = trace(ALL[run.contender], replay.problem, replay.metrics, run.seed, run.budget)
    record = {
        "genes": [replay.space.encode(candidate).tolist() for candidate in asked],
        "seconds": time.perf_counter() - began,
    }
    write_json(run.path(folder), record)
    return run


def traces(replay: Replay, runs: Sequence[Run], folder: Path, *, smooth: bool) -> Floats:
    """The hypervolume ``(runs, budget)`` after each evaluation, as a share of that of the best known front.

    Args:
        smooth: Whether to take the surrogate's accuracies of all candidates instead of the observed ones.
    """
    shares = np.empty((len(runs), max(run.budget for run in runs)))
    for i, run in enumerate(runs):
        points = replay.losses(run.genes(folder), smooth=smooth)
        volumes = [hypervolume(points[: n + 1], replay.reference) for n in range(len(points))]
        shares[i] = np.pad(volumes, (0, shares.shape[1] - len(points)), mode="edge")
    return shares / replay.best_volume


def table(replay: Replay, runs: Sequence[Run], folder: Path, rival: str = RIVAL) -> tuple[str, dict[str, Floats]]:
    """A Markdown table, a row a contender, medians and quartiles over seeds; and the traces without luck of each."""
    observed, smooth = (traces(replay, runs, folder, smooth=smooth) for smooth in (False, True))
    names = list(dict.fromkeys(run.contender for run in runs))
    of = {name: [i for i, run in enumerate(runs) if run.contender == name] for name in names}
    budget = observed.shape[1]
    lines = [
        f"**{replay.recorded.name}**, {', '.join(replay.objectives)}",
        "",
        f"| algorithm | evaluations to {rival}'s {budget} | without luck | share at 50 | share at {budget} | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        reach = []
        for shares in (observed, smooth):
            goal = float(np.median(shares[of.get(rival, of[name]), -1]))
            reach.append(_quartiles([_first(row, goal) for row in shares[of[name]]], "{:.0f}"))
        ends = [_quartiles(smooth[of[name], n - 1], "{:.3f}") for n in (min(50, budget), budget)]
        seconds = [json.loads(runs[i].path(folder).read_text())["seconds"] for i in of[name]]
        lines.append(f"| {name} | {reach[0]} | {reach[1]} | {ends[0]} | {ends[1]} | {np.median(seconds):.0f} |")
    return "\n".join([*lines, ""]), {name: smooth[of[name]] for name in names}


def _first(shares: Floats, goal: float) -> float:
    """After how many evaluations a goal is reached; infinite where it is not."""
    reached = shares >= goal
    return float(reached.argmax() + 1) if reached.any() else np.inf


def _quartiles(values: Sequence[float] | Floats, form: str) -> str:
    """Median and quartiles; those are values that occurred, so that some may be infinite."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="higher").tolist()
    texts = ["never" if np.isinf(value) else form.format(value) for value in (middle, low, high)]
    return f"{texts[0]} ({texts[1]}-{texts[2]})"


if __name__ == "__main__":
    main()
