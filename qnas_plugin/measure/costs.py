"""What follows from a candidate alone, as functions of genotypes: the size of its file, and the work of one run.

``size_mb`` is that of what is written, within half a percent. ``gmacs`` are 10^9 multiply-accumulates of one run on
inputs of a given shape, those of attention and of grouped convolutions included. ``gbitops`` are as many times the bits
of a weight times the bits of what it multiplies: 1,024 for each in FP32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx

from qnas_plugin.build.graph import Graph, module_path
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.build.slice import subnet
from qnas_plugin.data import Inputs
from qnas_plugin.errors import MaterializeError
from qnas_plugin.measure._file_size import FileSize
from qnas_plugin.measure._widths import Floats, Form, Widths
from qnas_plugin.quantizers import DEFAULT
from qnas_plugin.quantizers.formats import FLOAT_BITS, format_of
from qnas_plugin.runtimes import onnxruntime as runtime
from qnas_plugin.space import Genes
from qnas_plugin.supernets import Network

Cost = Callable[[Genes], npt.NDArray[np.float64]]
"""Canonical genotypes ``(m, n)`` to the values ``(m,)`` of a metric."""


@dataclass(frozen=True)
class _Product:
    """A MatMul, Gemm or Conv.

    Args:
        macs: Of one run in the largest network.
        form: What they are proportional to; None where they are always the same.
        block: The block that it is in.
        group: Its precision group; None where it stays FP32.
    """

    macs: float
    form: Form | None
    block: str
    group: str | None


@dataclass(frozen=True, eq=False)
class Costs:
    """The exact metrics of a network's candidates.

    Args:
        network: What is searched.
        graph: Of the whole.
        inputs: Of one run.
        quantizer: The name of what quantizes.

    Raises:
        MaterializeError: A size depends on the variables in a way that is not seen; of single metrics, when they are
            first asked for.
    """

    network: Network
    graph: Graph
    inputs: Inputs
    quantizer: str = DEFAULT

    @property
    def functions(self) -> Mapping[str, Cost]:
        """Each metric by name."""
        return {"size_mb": self.size_mb, "gmacs": self.gmacs, "gbitops": self.gbitops}

    def size_mb(self, genes: Genes) -> npt.NDArray[np.float64]:
        """Megabytes (10^6 bytes) of the file."""
        return self._size(genes)

    def gmacs(self, genes: Genes) -> npt.NDArray[np.float64]:
        """10^9 multiply-accumulates of one run."""
        return sum((macs for _, macs in self._work(genes)), np.zeros(len(genes))) / 1e9

    def gbitops(self, genes: Genes) -> npt.NDArray[np.float64]:
        """10^9 multiply-accumulates of one run, each times the bits of both its factors."""
        space, total = self.network.space, np.zeros(len(genes))
        for product, macs in self._work(genes):
            bits = np.full(len(genes), float(FLOAT_BITS**2))
            for name in space.formats[product.group] if product.group is not None else ():
                format = format_of(name)
                there = space.at(genes, str(product.group), name)
                bits[there] = format.weight_bits * format.activation_bits
            total += macs * bits
        return total / 1e9

    def _work(self, genes: Genes) -> Iterator[tuple[_Product, Floats]]:
        """Each product with its multiply-accumulates in each genotype ``(m,)``."""
        for product in self._products:
            share = np.ones(len(genes))
            if product.form is not None:
                share = self._widths.size(product.form, genes)
                share = share / self._widths.size(product.form, self._widths.largest[None])
            yield product, product.macs * share * self._widths.has(product.block, genes)

    @cached_property
    def _widths(self) -> Widths:
        return Widths(self.network, self.graph)

    @cached_property
    def _size(self) -> FileSize:
        return FileSize(self.network, self.graph, self._widths, self.network.space.formats, self.quantizer)

    @cached_property
    def _products(self) -> list[_Product]:
        widths = self._widths
        largest, narrow = (self._macs(genes) for genes in (widths.largest, widths.narrow))
        groups = {name: group for group, names in self.graph.groups.items() for name in names}
        return [
            _Product(macs, self._form(node, macs, narrow[name][1]), widths.block_of(node), groups.get(name))
            for name, (node, macs) in largest.items()
        ]

    def _form(self, node: onnx.NodeProto, macs: float, narrow: float) -> Form | None:
        """What the work of a node is proportional to: its own weights, or the width of a layer beside it."""
        if macs == narrow:
            return None
        widths, path = self._widths, module_path(node)
        ends = np.array([widths.largest, widths.narrow])
        block = widths.block_of(node)
        near = sorted(widths.layers, key=lambda other: -_shared(other, path))
        for other in near:
            if block and not other.startswith(f"{block}."):
                continue
            for kind in ("weight", "out", "in"):
                wide, thin = widths.size((other, kind), ends).tolist()
                if math.isclose(wide * narrow, thin * macs, rel_tol=1e-9):
                    return other, kind
        raise MaterializeError(f"what the work of '{node.name}' depends on is not seen: no layer is as much wider")

    def _macs(self, genes: Genes) -> dict[str, tuple[onnx.NodeProto, float]]:
        """The products of a subnet's FP32 graph by name, with their multiply-accumulates."""
        network = self.network
        return macs(subnet(self.graph, network.cut(network.space.decode(genes))), self.inputs)


def macs(model: Outline, inputs: Inputs) -> dict[str, tuple[onnx.NodeProto, float]]:
    """Each MatMul, Gemm and Conv of an FP32 model by name, with its multiply-accumulates in one run on these inputs."""
    graph = model.model.graph
    nodes = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    stored = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
    given = {name: np.shape(array) for name, array in inputs.items()}
    asked = {name for node in nodes for name in (*node.input[:2], node.output[0])}
    names = sorted(asked - stored.keys() - given.keys())
    with model.running(threads=0, outputs=names, optimized=False) as session:
        values = session.run(names, runtime.feed(session, inputs)) if names else []
    shapes = {**stored, **given, **{name: np.shape(value) for name, value in zip(names, values, strict=True)}}
    found = {}
    for node in nodes:
        read, settings = shapes[node.input[0]], {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "Conv":
            depth = math.prod(shapes[node.input[1]][1:])
        else:
            depth = read[0] if node.op_type == "Gemm" and settings.get("transA") else read[-1]
        found[node.name or node.output[0]] = node, float(math.prod(shapes[node.output[0]]) * depth)
    return found


def _shared(first: str, second: str) -> int:
    """How many parts of two paths are the same from the beginning; one more where all are."""
    pairs = zip([*first.split("."), ""], [*second.split("."), ""], strict=False)
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])
