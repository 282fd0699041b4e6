"""Candidates as sums of parts: which rows of a latency table a network consists of, and how often each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from qnas_plugin.additive import Term
from qnas_plugin.quantizers.formats import format_of
from qnas_plugin.space import Features, Genes, SearchSpace, Value
from qnas_plugin.supernets import Part

Granularity = Literal["linear", "shared-input", "half-block", "block"]

GRANULARITIES: Mapping[Granularity, int] = {"linear": 99, "shared-input": 3, "half-block": 2, "block": 1}
"""What is one row: the number of levels down to which the parts of a block stay apart.

``shared-input`` joins the linear layers that read one tensor, and so share its quantization; ``half-block`` the
attention and the feed-forward part of a layer, each with all its linear layers.
"""


@dataclass(frozen=True)
class Key:
    """What one row is about.

    Args:
        kind: Of the part.
        values: Label and value of each of its variables.
    """

    kind: str
    values: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.kind, *(f"{label}={value}" for label, value in self.values)])


def join(parts: Iterable[Part], granularity: Granularity) -> tuple[Part, ...]:
    """The parts at a granularity: those of one block that are not told apart become one."""
    depth = GRANULARITIES[granularity]
    joined: dict[tuple[object, ...], Part] = {}
    for i, part in enumerate(parts):
        if len(part.levels) < depth:
            joined[i,] = part
            continue
        variables = {part.kind if label == "precision" else label: name for label, name in part.variables.items()}
        place = (part.block, *part.levels[:depth])
        if place in joined:
            before = joined[place]
            joined[place] = replace(
                before, variables={**before.variables, **variables}, paths=before.paths + part.paths
            )
        else:
            joined[place] = replace(part, kind=part.levels[depth - 1], variables=variables)
    return tuple(joined.values())


@dataclass(frozen=True)
class Decomposition:
    """A search space seen as the rows of a latency table.

    Args:
        space: Of the supernet.
        parts: At the granularity of the table.
    """

    space: SearchSpace
    parts: tuple[Part, ...]

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """All rows that some candidate needs, in the order of their text."""
        return tuple(sorted({key for part in self.parts for key in self._keys(part)}, key=str))

    @cached_property
    def index(self) -> Mapping[Key, int]:
        """The position of each key."""
        return {key: i for i, key in enumerate(self.keys)}

    def counts(self, genes: Genes) -> Features:
        """How often each candidate has each row: genotypes ``(m, n)`` to ``(m, number of keys)``."""
        active = self.space.active(genes)
        counts = np.zeros((len(genes), len(self.keys)))
        for part, columns in self._columns:
            variables = [self.space.index[name] for name in part.variables.values()]
            code = np.zeros(len(genes), dtype=np.int64)
            for i in variables:
                code = code * self.space.sizes[i] + genes[:, i]
            column = columns[code]
            there = np.flatnonzero(active[:, variables].all(axis=1) & (column >= 0))
            counts[there, column[there]] += 1
        return counts

    def terms(self, ms: npt.NDArray[np.float64]) -> tuple[Term, ...]:
        """What each part adds, for milliseconds ``(number of keys,)`` of the rows."""
        found = []
        for part, columns in self._columns:
            names = tuple(part.variables.values())
            values = np.where(columns >= 0, ms[columns], 0.0)
            sizes = [self.space.sizes[self.space.index[name]] for name in names]
            found.append(Term(names, values.reshape(*sizes, 1)))
        return tuple(found)

    def example(self, key: Key) -> tuple[Part, Genes]:
        """A part that is this row in some candidate, and such a candidate's genotype ``(n,)``.

        The rest of that candidate is the largest network in FP32.
        """
        part = next(part for part in self.parts if key in self._keys(part))
        genes = self.space.encode(self.space.corners["largest-fp32"])
        for (_, value), name in zip(key.values, part.variables.values(), strict=True):
            variable = self.space.index[name]
            genes[variable] = self.space.variables[variable].choices.index(value)
        return part, genes

    def key(self, part: Part, genes: Genes) -> Key:
        """The row that a part is in a genotype ``(n,)`` in which it exists."""
        variables = [(label, self.space.index[name]) for label, name in part.variables.items()]
        return Key(part.kind, tuple((label, self.space.variables[i].choices[genes[i]]) for label, i in variables))

    @cached_property
    def _columns(self) -> Sequence[tuple[Part, npt.NDArray[np.int64]]]:
        """Each part's row for each combination of its variables, the last one's choices fastest; -1 is none."""
        return [(part, np.array([self.index.get(key, -1) for key in self._every(part)])) for part in self.parts]

    def _keys(self, part: Part) -> list[Key]:
        """The rows that a part can be."""
        return [key for key in self._every(part) if part.reader is None or _changes(key)]

    def _every(self, part: Part) -> list[Key]:
        choices = [self.space.variables[self.space.index[name]].choices for name in part.variables.values()]
        return [
            Key(part.kind, tuple(zip(part.variables, values, strict=True))) for values in itertools.product(*choices)
        ]


def _changes(key: Key) -> bool:
    """Whether a tensor is written in another precision than it is read in."""
    writes, reads = (format_of(str(value)).quantized for _, value in key.values[-2:])
    return writes != reads
