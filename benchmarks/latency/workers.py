"""Trials per hour of whole searches with one and two workers, and what they find.

    python benchmarks/latency/workers.py REQUEST.toml [--trials 24] [--seeds 3] [--counts 1 2] [--core-each]

The request is that of ``qnas tune --config``. Without a latency table in it, no latency is measured either, as that is
done one at a time on a machine, and the objectives are accuracy and size. Searches with one worker and with more take
turns, seed by seed. Time runs from the first stored trial to the last one, so neither the start of workers nor the
verification is in it. Each search has no ranges of an earlier one. The hypervolume of a search is a share of the box
between the ideal and the worst values of all searches together.

One worker alone computes on all cores. With ``--core-each`` it has one core, driver included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev

import numpy as np

from qnas_plugin import registry
from qnas_plugin.commands.loading import load
from qnas_plugin.evaluate import workers
from qnas_plugin.evaluate.bench import Job
from qnas_plugin.objectives import hypervolume, losses, signs
from qnas_plugin.request import TuneRequest
from qnas_plugin.search import ExactMetric, Problem
from qnas_plugin.space import Candidate
from qnas_plugin.study.drive import drive
from qnas_plugin.study.evaluation import Trial
from qnas_plugin.study.study import Study


def main() -> None:
    """Prints a line for each search, and the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("request", type=Path)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--core-each", action="store_true", help="give a search as many cores as it has workers")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qnas-workers-") as folder:
        request = TuneRequest.build({"out": folder, "trials": arguments.trials}, arguments.request)
        every = sorted(os.sched_getaffinity(0))
        found: dict[int, list[list[Trial]]] = {count: [] for count in arguments.counts}
        hourly: dict[int, list[float]] = {count: [] for count in arguments.counts}
        for seed in range(arguments.seeds):
            for count in arguments.counts if seed % 2 == 0 else arguments.counts[::-1]:
                cpus = every[:count] if arguments.core_each else every
                # A process of its own: threads that start workers would keep the cores of the search before.
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                    trials, seconds = process.submit(search, request, count, seed, cpus).result()
                found[count].append(trials)
                hourly[count].append((len(trials) - 1) / seconds * 3600)
                other = 1 - mean(t.seconds["accuracy"] / sum(t.seconds.values()) for t in trials)
                print(
                    f"seed {seed}, {count} workers: {hourly[count][-1]:.0f} trials an hour; "
                    f"a trial {mean(sum(t.seconds.values()) for t in trials):.2f} s, {100 * other:.0f} % not accuracy",
                    flush=True,
                )
        compare(objectives(request), found, hourly)


def search(request: TuneRequest, count: int, seed: int, cpus: Sequence[int]) -> tuple[list[Trial], float]:
    """The trials of one search on some cores, and the seconds from the first to the last."""
    os.sched_setaffinity(0, cpus)
    os.environ["XDG_CACHE_HOME"] = f"{request.out}/{seed}-{count}"
    lab = load(request)
    supernet = lab.network
    exact: dict[str, ExactMetric] = {"size_mb": lab.costs.size_mb}
    if lab.estimator is not None:
        exact["latency_ms"] = lab.estimator
    problem = Problem(supernet.space, objectives(request), exact=exact)
    algorithm = registry.load("search", request.algorithm).create(
        problem, seed=seed, population=min(request.population, request.trials)
    )

    def job(candidate: Candidate) -> Job:
        told = lab.job(candidate)
        return replace(told, latency=told.latency or (1.0, 0.0))

    times: list[float] = []
    storage = f"{request.out}/{seed}-{count}.journal"
    with (
        Study.open(storage, supernet.space, problem.objectives, identity={"seed": str(seed)}) as study,
        workers.connect(count, None, lab.profile.name) as client,
        workers.executor(client, lab.bench, job, lab.profile) as executor,
    ):
        drive(
            study,
            algorithm,
            executor,
            trials=request.trials,
            on_trial=lambda trial: times.append(time.monotonic()),
        )
        return study.trials(), times[-1] - times[0]


def objectives(request: TuneRequest) -> tuple[str, ...]:
    """What is searched for."""
    return request.objectives if request.latency == "table" else ("accuracy", "size_mb")


def compare(
    names: Sequence[str], found: Mapping[int, Sequence[Sequence[Trial]]], hourly: Mapping[int, Sequence[float]]
) -> None:
    """Prints the rates and hypervolumes of each number of workers."""
    every = losses([t.metrics for searches in found.values() for trials in searches for t in trials], names)
    worst, ideal = every.max(axis=0), np.minimum(signs(names), 0.0)
    first = min(found)
    for count, searches in found.items():
        shares = [
            hypervolume(losses([t.metrics for t in trials], names), worst) / float((worst - ideal).prod())
            for trials in searches
        ]
        rate, alone = mean(hourly[count]), mean(hourly[first])
        print(
            f"{count} workers: {rate:.0f} trials an hour ({rate / alone:.2f} times), "
            f"hypervolume {mean(shares):.4f} +- {pstdev(shares):.4f}"
        )


if __name__ == "__main__":
    main()
