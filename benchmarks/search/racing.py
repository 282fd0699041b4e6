"""Whether it pays to stop evaluating a candidate that is dominated already, on records.

    python -m benchmarks.search.racing [--spaces digits minilm] [--confidence 0.95]

Recorded candidates come one after another, as trials of a search: those that cover the space, and those near predicted
fronts, which are the ones that LINAS proposes. Each is evaluated on a quarter of the examples of the search split, then
on half, then on three quarters, and stopped where the most accurate of the trials that are no slower and no larger got
significantly more of these examples right: McNemar's exact test, one-sided, its level divided by the number of looks.
What counts is the share of the examples that is saved, and how many candidates were stopped that are not dominated on
all examples.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from benchmarks.search.replay import Replay
from benchmarks.search.spaces import SPACES

LOOKS = (0.25, 0.5, 0.75)
TRIALS = 250
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Race:
    """What stopping early did to a stream of trials.

    Args:
        saved: Share of all examples that were not evaluated.
        stopped: How many candidates were stopped.
        wrongly: How many of them no trial dominates on all examples.
    """

    saved: float
    stopped: int
    wrongly: int


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--streams", type=int, default=20)
    options = parser.parse_args()
    print("| space | candidates | examples saved | stopped of 250 | wrongly |")
    print("|---|---|---|---|---|")
    for name in options.spaces:
        replay = Replay(SPACES[name])
        costs = np.column_stack([exact(replay.genes) for exact in replay.problem.exact.values()])
        covering = replay.covering
        for what, rows in (("covering", np.arange(covering)), ("near fronts", np.arange(covering, len(costs)))):
            if len(rows) < TRIALS:
                continue
            races = []
            for seed in range(options.streams):
                rng = np.random.default_rng(seed)
                chosen = rng.permutation(rows)[:TRIALS]
                right = replay.right[chosen][:, rng.permutation(replay.right.shape[1])]
                races.append(race(right, costs[chosen], 1 - options.confidence))
            saved, stopped, wrongly = (
                np.mean([getattr(one, part) for one in races]) for part in ("saved", "stopped", "wrongly")
            )
            print(f"| {name} | {what} | {saved:.1%} | {stopped:.1f} | {wrongly:.2f} |")


def race(right: npt.NDArray[np.bool_], costs: Floats, level: float) -> Race:
    """Races trials in order.

    Args:
        right: Which examples each trial gets right, ``(m, examples)``.
        costs: What else is minimised and known at once, ``(m, k)``.
        level: Probability of stopping a candidate that is as good as those it is compared with.
    """
    count = right.shape[1]
    known: list[int] = []
    saved, stopped, wrongly = 0.0, 0, 0
    for i, cost in enumerate(costs):
        rivals = [j for j in known if (costs[j] <= cost).all()]
        rival = max(rivals, key=lambda j: int(right[j].sum()), default=None)
        for look in LOOKS if rival is not None else ():
            first = slice(int(look * count))
            better = (right[rival, first] & ~right[i, first]).sum()
            worse = (~right[rival, first] & right[i, first]).sum()
            if binom.sf(better - 1, better + worse, 0.5) < level / len(LOOKS):
                saved, stopped = saved + 1 - look, stopped + 1
                wrongly += int(right[rival].sum() < right[i].sum())
                break
        else:
            known.append(i)
    return Race(saved / len(costs), stopped, wrongly)


if __name__ == "__main__":
    main()
