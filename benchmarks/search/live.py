"""Whether replayed fronts are real: builds and runs the front of a run of each contender.

    python -m benchmarks.search.live digits --checkpoint demo/digits-supernet --data digits --contenders linas nsga2

Takes the runs of ``benchmarks.search.compare``, and evaluates the front that a contender had after so many evaluations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from benchmarks.search.compare import BUDGET, Run
from benchmarks.search.record import Live, right
from benchmarks.search.replay import Replay
from benchmarks.search.spaces import SPACES
from qnas_plugin.objectives import hypervolume, non_dominated


def main() -> None:
    """Prints a line a front."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", choices=SPACES)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument(
        "--contenders", nargs="+", default=["linas:60", "linas:250", "nsga2:250"], metavar="NAME:EVALUATIONS"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("build/search"))
    options = parser.parse_args()
    live, replay = Live(SPACES[options.space], options.checkpoint, options.data), Replay(SPACES[options.space])
    for name in options.contenders:
        contender, _, count = name.rpartition(":")
        run = Run(options.space, replay.objectives, contender, options.seed, BUDGET)
        genes = run.genes(options.runs)[: int(count)]
        replayed = replay.losses(genes)
        front = non_dominated(replayed)
        genes, replayed = genes[front], replayed[front]
        found: dict[str, list[float]] = {split: [] for split in live.splits}
        for row in map(live.row, genes):
            for split in found:
                found[split].append(right(row[split], len(live.splits[split])).mean())
        measured = replayed.copy()
        measured[:, 0] = -np.array(found["search"])
        volumes = [hypervolume(points, replay.reference) / replay.best_volume for points in (replayed, measured)]
        error = -measured[:, 0] + replayed[:, 0]
        tau = kendalltau(measured[:, 0], replayed[:, 0]).statistic
        print(
            f"{name}: front of {len(genes)}; hypervolume replayed {volumes[0]:.3f}, live {volumes[1]:.3f}; accuracy "
            f"live - replayed {error.mean():+.4f} (sd {error.std():.4f}), Kendall tau {tau:.2f}; "
            f"report split: mean {np.mean(found['report']):.4f}, best {max(found['report']):.4f}"
        )


if __name__ == "__main__":
    main()
