"""What a network's cut makes of each layer, as arrays over genotypes: found out once, by asking for few cuts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from qnas_plugin.build.graph import Cut, Graph, module_path
from qnas_plugin.errors import MaterializeError
from qnas_plugin.space import Genes, SearchSpace
from qnas_plugin.supernets import Network

Floats = npt.NDArray[np.float64]

CHECKED = 20
"""Random networks on which it is checked that what was found out holds."""

Form = tuple[str, str]
"""What a size is proportional to: a layer's path, and ``in``, ``out`` or ``weight``."""


@dataclass(frozen=True)
class _Table:
    """Values of a thing for each combination of the variables that it depends on.

    Args:
        variables: Their positions.
        values: ``(combinations, k)``, the last variable's choices fastest.
    """

    variables: tuple[int, ...]
    values: Floats

    def __call__(self, space: SearchSpace, genes: Genes) -> Floats:
        """``(m, n)`` genes to ``(m, k)``."""
        code = np.zeros(len(genes), dtype=np.int64)
        for i in self.variables:
            code = code * space.sizes[i] + genes[:, i]
        return self.values[code]


class Widths:
    """Numbers of inputs, outputs and weights of all layers of a network, and which blocks it has.

    A layer that a candidate lacks has zeros.

    Args:
        network: Whose ``cut`` says what a candidate keeps.
        graph: Of the whole.

    Raises:
        MaterializeError: What a cut keeps of a layer depends on its variables in a way that no single change shows.
    """

    def __init__(self, network: Network, graph: Graph) -> None:
        self.space, self._network, self._graph = network.space, network, graph
        self.largest = self.space.encode(self.space.corners["largest-fp32"])
        parents = {variable.when.variable for variable in self.space.variables if variable.when is not None}
        keep = [v.kind == "precision" or v.name in parents for v in self.space.variables]
        self.narrow: Genes = np.where(keep, self.largest, 0)
        """The narrowest network that has all blocks."""
        whole = self._things(self.largest)
        depends: dict[str, set[int]] = {name: set() for name in whole}
        for i, variable in enumerate(self.space.variables):
            if variable.kind == "precision":
                continue
            for start in (self.largest, self.narrow):
                seen = self._things(start)
                for choice in range(len(variable.choices)):
                    genes = start.copy()
                    genes[i] = choice
                    other = self._things(genes)
                    for name in seen.keys() | other.keys():
                        if seen.get(name) != other.get(name):
                            depends.setdefault(name, set()).add(i)
        cuts: dict[tuple[int, ...], list[dict[str, tuple[float, ...]]]] = {}
        self._tables: dict[str, _Table] = {}
        for name, found in depends.items():
            variables = tuple(sorted(found))
            if variables not in cuts:
                cuts[variables] = []
                for choices in itertools.product(*(range(self.space.sizes[i]) for i in variables)):
                    genes = self.largest.copy()
                    genes[[*variables]] = choices
                    cuts[variables].append(self._things(genes))
            values = [things.get(name, (0.0, 0.0, 0.0)) for things in cuts[variables]]
            self._tables[name] = _Table(variables, np.array(values))
        self._check()

    @property
    def layers(self) -> list[str]:
        """The paths of layers and norms that a cut has something to say of."""
        return [name for name in self._tables if not name.startswith(_BLOCK)]

    @property
    def blocks(self) -> list[str]:
        """The paths of blocks that a candidate may lack."""
        return [name.removeprefix(_BLOCK) for name in self._tables if name.startswith(_BLOCK)]

    @property
    def of_blocks(self) -> list[int]:
        """The positions of the variables that decide which blocks are there."""
        tables = [self._tables[_BLOCK + block] for block in self.blocks]
        return sorted({i for table in tables for i in table.variables})

    def block_of(self, node: onnx.NodeProto) -> str:
        """The innermost block that a node is in; empty where it is in none."""
        path = f"{module_path(node)}."
        return max((block for block in self.blocks if path.startswith(f"{block}.")), key=len, default="")

    def has(self, block: str, genes: Genes) -> Floats:
        """1 where a block is there and 0 where not, ``(m,)``; the block without a name always is."""
        return 1 - self._tables[_BLOCK + block](self.space, genes)[:, 0] if block else np.ones(len(genes))

    def size(self, form: Form, genes: Genes) -> Floats:
        """How large something is in each genotype, ``(m,)``."""
        path, kind = form
        return self._tables[path](self.space, genes)[:, ("in", "out", "weight").index(kind)]

    def _things(self, genes: Genes) -> dict[str, tuple[float, ...]]:
        """Inputs, outputs and weights of each layer, and the blocks that are there, of one genotype ``(n,)``."""
        cut = self._network.cut(self.space.decode(genes))
        things = {path: (*map(float, width), self._weights(path, cut)) for path, width in cut.widths.items()}
        return things | {_BLOCK + block: (1.0, 0.0, 0.0) for block in cut.skipped}

    def _weights(self, path: str, cut: Cut) -> float:
        weights, (inputs, outputs) = self._graph.weights, cut.widths[path]
        name = f"{path}.weight.{cut.kernels.get(path)}"
        whole = weights[name if name in weights else f"{path}.weight"].shape
        if len(whole) == 1:
            return min(whole[0], outputs)
        sizes = (outputs, inputs) if len(whole) == 4 else (inputs, outputs)
        return float(np.prod([*np.minimum(whole[:2], sizes), *whole[2:]]))

    def _check(self) -> None:
        for genes in self.space.sample(CHECKED, np.random.default_rng(0)):
            things = self._things(genes)
            for name, table in self._tables.items():
                found = tuple(table(self.space, genes[None])[0].tolist())
                if found != things.get(name, (0.0, 0.0, 0.0)):
                    raise MaterializeError(
                        f"the width of '{name}' is {things.get(name)} in a network and {found} by its variables alone"
                    )


_BLOCK = "block "
