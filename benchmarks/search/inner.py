"""How long the inner search takes, and how near it comes to the best of an additive model.

    python -m benchmarks.search.inner

On the space of BERT-base (12 layers, 99 variables): 20,000 predictions of a ridge that was trained on 100 candidates.
The best is what a sweep of 64 mixes of the objectives finds at each depth, exact for such a model.
"""

from __future__ import annotations

import time

import numpy as np

from qnas_plugin.objectives import hypervolume
from qnas_plugin.search import linas
from tests.search.test_linas import ridge_of_bert_base, weight_sweep

SEEDS = 5


def main() -> None:
    """Prints seconds and shares, with and without networks in the start whose variables were set one by one."""
    model, genes = ridge_of_bert_base(np.random.default_rng(0))
    best = model(weight_sweep(model, 64))[0]
    with_seeds = linas.one_by_one
    for name, seeds in (("as it is", with_seeds), ("without one_by_one", lambda model, genes, rng: genes[:0])):
        linas.one_by_one = seeds
        shares, seconds = [], []
        for seed in range(SEEDS):
            began = time.perf_counter()
            found = linas.inner_search(model, genes, np.random.default_rng(seed))
            seconds.append(time.perf_counter() - began)
            points = model(found)[0]
            reference = np.concatenate([points, best]).max(axis=0)
            shares.append(hypervolume(points, reference) / hypervolume(best, reference))
        print(f"{name}: {np.median(seconds):.2f} s, share of the best {min(shares):.3f} to {max(shares):.3f}")


if __name__ == "__main__":
    main()
