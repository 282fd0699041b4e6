"""A request searched by several algorithms: hypervolumes at equal trials, and what the best members gain.

    python benchmarks/search/networks.py tune.toml [--algorithms linas nsga2 random]

Each algorithm searches into a folder of its own in the request's ``out``; what is finished there is not repeated.
Hypervolumes are of the trials' own metrics (search split), as shares of the box that the fronts of all algorithms span.
The table has the first algorithm's baselines and two members of each, as verified on the report split: the one that it
recommends, and the fastest that loses no more there than the request allows, picked with that split in view. All are
timed anew in turns in one run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from qnas_plugin.commands.loading import load
from qnas_plugin.commands.study_folder import trials_in
from qnas_plugin.console import tuning
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.objectives import Losses, hypervolume, losses, non_dominated
from qnas_plugin.request import TuneRequest

SHARES = (0.25, 0.5, 1.0)
"""Hypervolumes are printed after these shares of the trials."""


def main() -> None:
    """Searches what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("request", type=Path, help="TOML file as for qnas tune --config")
    parser.add_argument("--algorithms", nargs="+", default=["linas", "nsga2", "random"])
    options = parser.parse_args()
    out = TuneRequest.build({}, options.request).out
    requests = {
        name: TuneRequest.build({"algorithm": name, "out": out / name}, options.request) for name in options.algorithms
    }
    for request in requests.values():
        if not (request.out / "pareto.json").exists():
            tuning(request)
    lab = load(next(iter(requests.values())))
    points = {}
    for name, request in requests.items():
        _, trials = trials_in(request.out, request, lab.network)
        points[name] = losses([trial.metrics for trial in trials], request.objectives)
    volumes(points)
    members(requests, lab)


def volumes(points: dict[str, Losses]) -> None:
    """Prints the share of the box of all fronts that each algorithm's trials dominate."""
    fronts = np.concatenate([found[non_dominated(found)] for found in points.values()])
    worst, best = fronts.max(axis=0), fronts.min(axis=0)
    counts = [round(share * min(len(found) for found in points.values())) for share in SHARES]
    print("\n| algorithm | " + " | ".join(f"hypervolume after {count}" for count in counts) + " |")
    print("|---" * (1 + len(counts)) + "|")
    for name, found in points.items():
        shares = [hypervolume(found[:count], worst) / float((worst - best).prod()) for count in counts]
        print(f"| {name} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")


def members(requests: dict[str, TuneRequest], lab: Lab) -> None:
    """Prints the baselines and each algorithm's recommended member, timed in turns in one run."""
    rows: dict[str, tuple[Path, dict[str, Any]]] = {}
    for name, request in requests.items():
        record = json.loads((request.out / "pareto.json").read_text(encoding="utf-8"))
        if record["recommended"] is None:
            print(f"\n{name} recommends none: {record['reason']}")
        chosen = [] if rows else [(row["name"], row) for row in record["baselines"]]
        for row in record["members"]:
            if row["name"] == record["recommended"]:
                chosen.append((f"{name}, recommended: {row['name']}", row))
        if kept := [row for row in record["members"] if loses_at_most(request.max_accuracy_drop, row)]:
            fastest = min(kept, key=lambda row: row["report"]["latency_ms"])
            chosen.append((f"{name}, fastest within the limit: {fastest['name']}", fastest))
        rows |= {title: (request.out / row["folder"] / "model.onnx", row) for title, row in chosen}
    latencies = lab.latency([path for path, _ in rows.values()], rounds=20)
    ms = dict(zip(rows, (latency.median for latency in latencies), strict=True))
    print("\n| network | accuracy | latency ms | size MB | against INT8: points (p), faster, smaller | against FP32 |")
    print("|---|---|---|---|---|---|")
    for title, (_, row) in rows.items():
        report, texts = row["report"], []
        for baseline in ("largest-int8", "largest-fp32"):
            ratio = row["against"].get(baseline)  # none for itself
            texts.append(
                f"{100 * ratio['accuracy_difference']:+.2f} ({ratio['p_value']:.2g}), "
                f"{ms[baseline] / ms[title]:.2f}x, {ratio['size_ratio']:.2f}x"
                if ratio
                else ""
            )
        print(
            f"| {title} | {report['accuracy']:.4f} | {ms[title]:.2f} | {report['size_mb']:.2f} | {' | '.join(texts)} |"
        )


def loses_at_most(limit: float, row: dict[str, Any]) -> bool:
    """Whether a member's accuracy on the report split is within a limit of that of the full network in INT8."""
    return bool(row["against"]["largest-int8"]["accuracy_difference"] > -limit - 1e-9)


if __name__ == "__main__":
    main()
