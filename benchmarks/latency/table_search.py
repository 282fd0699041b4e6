"""What a latency table is worth: searches with it against searches that measure, and retargeting against a new search.

    python benchmarks/latency/table_search.py --supernet bert --checkpoint DIR --task text_classification --data DIR \
        --seq-len 64 [--trials 60] [--seeds 0] [--threads 2 --batch 8] [--out runs/table-search]

Both searches get the same trials and seeds. The members of all Pareto sets are then timed anew in turns in one run, and
their hypervolumes (accuracy of the search part, latency, size; up to the worst of them all) compared. The study with
the table is retargeted to the second setting and compared there, on accuracies that are measured for each retargeted
candidate, with a fresh search. Searches that are finished in ``--out`` are not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from qnas_plugin.api import retarget
from qnas_plugin.commands.loading import load
from qnas_plugin.commands.tune import tune
from qnas_plugin.objectives import Losses, hypervolume, losses
from qnas_plugin.request import TuneRequest

OBJECTIVES = ("accuracy", "latency_ms", "size_mb")


def main() -> None:
    """Prints one block a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--supernet", "--checkpoint", "--task", "--data"):
        parser.add_argument(name, required=True)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2, help="of the setting to retarget to")
    parser.add_argument("--batch", type=int, default=8, help="of the setting to retarget to")
    parser.add_argument("--evaluate", type=int, default=10, help="evaluations that retargeting may spend")
    parser.add_argument("--insist", action="store_true", help="take tables that speak against themselves")
    parser.add_argument("--out", type=Path, default=Path("runs/table-search"))
    arguments = parser.parse_args()
    common = {
        "supernet": arguments.supernet,
        "checkpoint": arguments.checkpoint,
        "task": arguments.task,
        "data": arguments.data,
        "seq_len": arguments.seq_len,
        "objectives": OBJECTIVES,
        "trials": arguments.trials,
        "population": arguments.population,
    }
    for seed in arguments.seeds:
        folder: Path = arguments.out / str(seed)
        here = {"threads": 1, "batch": 1, "seed": seed}
        there = {"threads": arguments.threads, "batch": arguments.batch, "seed": seed}
        table = {"latency": "table", "insist": arguments.insist}
        with_table = TuneRequest(**common, **here, **table, out=folder / "table")
        print(f"seed {seed}, {arguments.trials} trials, {arguments.supernet}, 1 thread, batch 1")
        compare(with_table, TuneRequest(**common, **here, latency="measured", out=folder / "measured"))
        print(f"seed {seed}, retargeted to {arguments.threads} threads, batch {arguments.batch}")
        fresh = TuneRequest(**common, **there, **table, out=folder / "fresh")
        carry_over(with_table, fresh, arguments.evaluate)


def compare(with_table: TuneRequest, measuring: TuneRequest) -> None:
    """A search with the table against one that measures."""
    fronts, seconds = {}, {}
    for name, request in (("table", with_table), ("measured", measuring)):
        seconds[name] = search(request)
        fronts[name] = json.loads((request.out / "pareto.json").read_text(encoding="utf-8"))["members"]
    everyone = [(name, member) for name, members in fronts.items() for member in members]
    requests = {"table": with_table, "measured": measuring}
    paths = [requests[name].out / member["folder"] / "model.onnx" for name, member in everyone]
    timed = load(measuring).latency(paths, rounds=8)
    rows = [{**member["search"], "latency_ms": time.median} for (_, member), time in zip(everyone, timed, strict=True)]
    points = losses(rows, OBJECTIVES)
    for name, share in shares({key: points[[own == key for own, _ in everyone]] for key in fronts}).items():
        print(
            f"  {name:9} {len(fronts[name]):3} members   hypervolume {share:.4f} of the box   {seconds[name]:6.0f} s "
            f"to search and verify"
        )


def carry_over(study: TuneRequest, fresh: TuneRequest, evaluate: int) -> None:
    """A retargeted study against a fresh search at the new setting."""
    seconds = {"fresh": search(fresh)}
    lab = load(fresh)
    trials = json.loads((fresh.out / "pareto.json").read_text(encoding="utf-8"))["members"]
    fronts = {"fresh": losses([member["search"] for member in trials], OBJECTIVES)}
    known: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for count in dict.fromkeys((0, evaluate)):
            title = f"retarget --evaluate {count}"
            began = time.perf_counter()
            found = retarget(
                study.out,
                "auto",
                threads=fresh.threads,
                batch=fresh.batch,
                evaluate=count,
                insist=fresh.insist,
                out=Path(name) / "out",
            )
            seconds[title] = time.perf_counter() - began
            rows = []
            for member in found.members:
                key = member.candidate.key
                if key not in known:
                    known[key] = lab.accuracy(member.candidate, Path(name))
                rows.append({**member.metrics, "accuracy": known[key]})
            fronts[title] = losses(rows, OBJECTIVES)
    for title, share in shares(fronts).items():
        print(
            f"  {title:22} {len(fronts[title]):3} members, hypervolume {share:.4f} of the box, {seconds[title]:.0f} s"
        )


def search(request: TuneRequest) -> float:
    """Seconds that a search with its verification takes, or took."""
    record = request.out / "seconds.json"
    if not record.exists():
        began = time.perf_counter()
        tune(request)
        record.write_text(json.dumps(time.perf_counter() - began), encoding="utf-8")
    seconds: float = json.loads(record.read_text(encoding="utf-8"))
    return seconds


def shares(fronts: dict[str, Losses]) -> dict[str, Any]:
    """The hypervolume of each front as a share of the box that all of them span."""
    everything = np.concatenate(list(fronts.values()))
    worst, best = everything.max(axis=0), everything.min(axis=0)
    box = float((worst - best).prod())
    return {name: hypervolume(points, worst) / box for name, points in fronts.items()}


if __name__ == "__main__":
    main()
