"""How well predictors rank recorded candidates, against how many they learned from.

    python -m benchmarks.search.ranking [--spaces digits minilm]

Prints a table a space, of the package's predictors and those that the ablations try: Kendall's tau with the features
that searches use and with one-hot features alone. A constant has a tau of 0; the last columns are errors relative to
the constant's, and why MAPE is not used.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.search.ablations import GaussianProcess, MeanOfThree, Trees
from benchmarks.search.replay import Replay
from benchmarks.search.spaces import SPACES
from qnas_plugin import predictors, registry
from qnas_plugin.predictors._curve import curve

SIZES = (10, 25, 50, 100, 250, 500)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=SPACES)
    options = parser.parse_args()
    for name in options.spaces:
        replay = Replay(SPACES[name])
        y = replay.accuracies["search"]
        creators = {name: registry.load("predictors", name).create for name in registry.names("predictors")}
        creators |= {"Gaussian process": GaussianProcess, "trees": Trees, "mean of ridge, SVR and trees": MeanOfThree}
        with_sums, one_hot = (
            {(point.rows, point.name): point for point in curve(creators, X, y, SIZES, np.random.default_rng(0))}
            for X in (predictors.features(replay.space, replay.genes), replay.space.features(replay.genes))
        )
        print(f"**{name}**, {len(y)} candidates, accuracy {y.mean():.4f} (sd {y.std():.4f})\n")
        print("| learned from | predictor | tau | one-hot only | error / constant's | MAPE | constant's MAPE |")
        print("|---|---|---|---|---|---|---|")
        for key, point in with_sums.items():
            print(
                f"| {point.rows} | {point.name} | {point.tau:.3f} | {one_hot[key].tau:.3f} | "
                f"{point.error / point.constant:.2f} | {point.mape:.2%} | {point.constant / y.mean():.2%} |"
            )
        print()


if __name__ == "__main__":
    main()
