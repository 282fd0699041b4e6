"""Additive quantities: sums over parts of a network, each set by a few variables, whatever they measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qnas_plugin.space import Genes, SearchSpace

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Term:
    """What one part of a network adds to each of several sums.

    Args:
        variables: Names of those that set it; it adds something only where all of them exist.
        values: ``(choices of the first variable, ..., of the last, sums)``.
    """

    variables: tuple[str, ...]
    values: Floats


def total(space: SearchSpace, terms: tuple[Term, ...], genes: Genes) -> Floats:
    """The sums of candidates: canonical genotypes ``(m, n)`` to ``(m, sums)``."""
    active = space.active(genes)
    found = np.zeros((len(genes), terms[0].values.shape[-1]))
    for term in terms:
        columns = [space.index[name] for name in term.variables]
        there = active[:, columns].all(axis=1)
        found += np.where(there[:, None], term.values[tuple(genes[:, columns].T)], 0.0)
    return found
