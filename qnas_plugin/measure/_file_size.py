"""The bytes of a candidate's file: what each layer adds in each format, read off a few files made without data.

A file consists of elements: nodes and initializers. One is there because of the layer whose weight it is, or of any of
the layers that read a rounded tensor; so it has *causes*, precision groups in some format, of which one is enough. What
stands in the FP32 network has no causes, and goes where its layers are quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from qnas_plugin.build.graph import Graph, module_path
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.build.slice import subnet
from qnas_plugin.build.tidy import FP32_OUTPUT
from qnas_plugin.measure._widths import Floats, Form, Widths
from qnas_plugin.quantizers.without_data import uncalibrated
from qnas_plugin.space import Genes
from qnas_plugin.supernets import Network

Only = tuple[tuple[int, tuple[int, ...]], ...]
"""Positions of variables, and the choices that they must have."""

Cause = tuple[str, str, Only]
"""A precision group, a format of it, and what else must be."""

_SUFFIX = "_quant"
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class _Element:
    """A node or an initializer of a file.

    Args:
        fixed: Bytes, without values.
        values: Bytes of its values.
        count: How many values; 0 of a node.
        readers: The nodes that read it; a node itself.
    """

    fixed: int
    values: int
    count: int
    readers: tuple[str, ...]


class FileSize:
    """Genotypes ``(m, n)`` to megabytes ``(m,)``.

    Args:
        network: Whose candidates are emitted.
        graph: Of the whole.
        widths: Of the network.
        formats: The formats that each precision group can have.
        quantizer: The name of what quantizes.

    Raises:
        CandidateError: The network cannot be emitted in a format.
    """

    def __init__(
        self, network: Network, graph: Graph, widths: Widths, formats: Mapping[str, Sequence[str]], quantizer: str
    ) -> None:
        self._space, self._widths, self._network = network.space, widths, network
        self._graph, self._formats, self._quantizer = graph, formats, quantizer
        self._cells: dict[_When, dict[Form | None, float]] = {}
        whole, narrow = (_Emitted(network, graph, genes, quantizer) for genes in (widths.largest, widths.narrow))
        base = whole.outline("fp32")
        block = {_key(node): widths.block_of(node) for node in base.model.graph.node}
        before, less = _elements(base), _elements(narrow.outline("fp32"))
        rest = sum(map(len, base.parts())) - sum(element.fixed + element.values for element in before.values())
        self._add(_When(), {None: rest})
        for name, element in before.items():
            blocks = {block[reader] for reader in element.readers}
            own = blocks.pop() if len(blocks) == 1 else ""
            self._add(_When(own), self._bytes(name, element, less.get(name), ()))
        others = [
            (
                i,
                choice,
                _Emitted(network, graph, np.where(np.arange(len(self._space)) == i, choice, widths.narrow), quantizer),
            )
            for i in widths.of_blocks
            for choice in range(int(self._space.sizes[i]))
            if choice != widths.narrow[i]
        ]
        bytes_of: dict[tuple[str, int, int], dict[Form | None, float]] = {}
        seen: dict[tuple[str, int, int], dict[tuple[str, str], set[tuple[int, int]]]] = {}
        for format in dict.fromkeys(name for names in formats.values() for name in names if name != "fp32"):
            wide = {(name, sign): element for name, sign, element, _ in whole.changes(format)}
            for i, choice, emitted in [(-1, -1, narrow), *others]:
                for name, sign, element, groups in emitted.changes(format):
                    key = name, sign, element.fixed + element.values
                    if key not in seen:
                        largest = wide.get((name, sign), element)
                        bytes_of[key], seen[key] = self._bytes(name, largest, element, groups, sign), {}
                    for group in groups:
                        seen[key].setdefault((group, format), set()).add((i, choice))
        for key, causes in seen.items():
            found = frozenset((*cause, self._only(cause[0], there, others)) for cause, there in causes.items())
            self._add(_When("", found), bytes_of[key])

    def __call__(self, genes: Genes) -> Floats:
        there = {cause: self._there(genes, cause) for cause in {c for when in self._cells for c in when.causes}}
        sizes: dict[Form, Floats] = {}
        total = np.zeros(len(genes))
        for when, parts in self._cells.items():
            own = np.full(len(genes), parts.get(None, 0.0))
            for form, bytes_ in parts.items():
                if form is not None:
                    if form not in sizes:
                        sizes[form] = self._widths.size(form, genes)
                    own = own + bytes_ * sizes[form]
            own *= self._widths.has(when.block, genes)
            if when.causes:
                own *= np.logical_or.reduce([there[cause] for cause in when.causes])
            total += own
        return total / 1e6

    def _there(self, genes: Genes, cause: Cause) -> npt.NDArray[np.bool_]:
        group, format, only = cause
        found = self._space.at(genes, group, format)
        for i, choices in only:
            found = found & np.isin(genes[:, i], choices)
        return found

    def _only(self, group: str, there: set[tuple[int, int]], others: Sequence[tuple[int, int, _Emitted]]) -> Only:
        """With which choices of variables an element was there for a group, of those with which the group was.

        Args:
            group: Of the network.
            there: Positions of variables and choices with which it was; -1 stands for none that differs.
            others: Networks in which one variable differs.
        """
        usual = {i: int(self._widths.narrow[i]) for i, _, _ in others}
        missing = {(i, choice) for i, choice, emitted in others if group in emitted.groups} - there
        if (-1, -1) not in there:  # it is there because of what differs
            usual = {i: choice for i, choice in usual.items() if i in {j for j, _ in there}}
            missing |= set(usual.items())
        choices = {i: tuple(c for c in range(int(self._space.sizes[i])) if (i, c) not in missing) for i in usual}
        return tuple((i, own) for i, own in choices.items() if len(own) < self._space.sizes[i])

    def _add(self, when: _When, parts: Mapping[Form | None, float]) -> None:
        cell = self._cells.setdefault(when, {})
        for form, bytes_ in parts.items():
            cell[form] = cell.get(form, 0.0) + bytes_

    def _bytes(
        self, name: str, element: _Element, narrow: _Element | None, groups: Iterable[str], sign: int = 1
    ) -> dict[Form | None, float]:
        """What an element takes: fixed bytes, and bytes for each value of what its number of values is that of."""
        form = self._form(name, element, narrow, groups)
        if form is None or not element.count:
            return {None: float(sign * (element.fixed + element.values))}
        return {None: float(sign * element.fixed), form: sign * element.values / element.count}

    def _form(self, name: str, element: _Element, narrow: _Element | None, groups: Iterable[str]) -> Form | None:
        """What the number of an element's values is that of; None where it is always the same."""
        if element.count <= 1 or (narrow is not None and narrow.count == element.count):
            return None
        own = [path for path in self._widths.layers if name.startswith(f"{path}.")]
        paths = dict.fromkeys([*own, *(module for group in groups for module in self._modules(group))])
        ends = np.array([self._widths.largest, self._widths.narrow])
        for path in paths:
            for kind in ("weight", "out", "in"):
                counts = self._widths.size((path, kind), ends).tolist() if path in self._widths.layers else []
                if counts == [element.count, narrow.count if narrow is not None else counts[1]]:
                    return path, kind
        return None

    def _modules(self, group: str) -> list[str]:
        nodes = set(self._graph.groups[group])
        return [module_path(node) for node in self._graph.model.graph.node if node.name in nodes]


@dataclass(frozen=True)
class _When:
    """When an element is in a file.

    Args:
        block: The block that it is in.
        causes: One of these must be there, if there are any.
    """

    block: str = ""
    causes: frozenset[Cause] = frozenset()


class _Emitted:
    """A subnet that is emitted in one format after another.

    Args:
        network: Of the subnet.
        graph: Of the whole.
        genes: Of the subnet, ``(n,)``; its precisions don't matter.
    """

    def __init__(self, network: Network, graph: Graph, genes: Genes, quantizer: str) -> None:
        candidate = network.space.decode(genes)
        policy, self._formats = network.space.policy(candidate), network.space.formats
        self.groups = {group: names for group, names in graph.groups.items() if group in policy}
        self._calibrated = uncalibrated(subnet(graph, network.cut(candidate)), self.groups, quantizer)

    def outline(self, format: str) -> Outline:
        """Its file with all groups in a format that can have it, the others in FP32."""
        return self._calibrated.outline(self._policy(format))

    def changes(self, format: str) -> Iterator[tuple[str, int, _Element, list[str]]]:
        """The elements that a format takes from the FP32 file, -1, and adds to it, 1, and the groups they are of."""
        base, emitted = self.outline("fp32"), self.outline(format)
        before, after = _elements(base), _elements(emitted)
        layers = _Layers(base.model.graph, emitted.model.graph, self._policy(format), self.groups)
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name), after.get(name)
            if old is not None and new is not None and (old.fixed, old.values) == (new.fixed, new.values):
                continue
            groups = layers.of([*(old.readers if old else ()), *(new.readers if new else ())])
            for element, sign in ((old, -1), (new, 1)):
                if element is not None:
                    yield name, sign, element, groups

    def _policy(self, format: str) -> dict[str, str]:
        return {group: format if format in self._formats[group] else "fp32" for group in self.groups}


class _Layers:
    """Which precision groups the elements of a quantized graph are there for."""

    def __init__(
        self,
        base: onnx.GraphProto,
        graph: onnx.GraphProto,
        policy: Mapping[str, str],
        groups: Mapping[str, Sequence[str]],
    ) -> None:
        self._group = {
            own: group
            for group, names in groups.items()
            if policy[group] != "fp32"
            for name in names
            for own in (name, f"{name}{_SUFFIX}")
        }
        self._nodes = {_key(node): node for node in graph.node}
        self._old = {name for node in base.node for name in node.output} | {value.name for value in base.input}
        self._kept = {_key(node) for node in base.node}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def of(self, nodes: Iterable[str]) -> list[str]:
        """The groups of the layers that an element of these nodes belongs to; all, where none is near."""
        names = [*nodes]
        for find in (self._of_node, self._beside):
            if found := dict.fromkeys(group for name in names for group in find(name)):
                return [*found]
        return [*dict.fromkeys(self._group.values())]

    def _beside(self, name: str) -> Iterator[str]:
        """The groups of layers that make what a node reads, or that belong to new nodes which read what it gives."""
        node = self._nodes.get(name)
        for read in node.input if node is not None else ():
            maker = self._makers.get(read)
            if maker is not None and maker.name in self._group:
                yield self._group[maker.name]
        for given in node.output if node is not None and name not in self._kept else ():
            for reader in self._readers.get(given, ()):
                if _key(reader) not in self._kept:
                    yield from self._of_node(_key(reader))

    def _of_node(self, name: str) -> Iterator[str]:
        if name in self._group:
            yield self._group[name]
            return
        node = self._nodes.get(name)
        if node is None:
            return
        behind = [] if name in self._kept else list(self._follow(node, set()))
        yield from behind
        if not behind or node.op_type in _ROUNDING:
            yield from self._precede(node, set())
        if name in self._kept:  # what it reads has another name
            for maker in (self._makers[read] for read in node.input if read in self._makers):
                if maker.name not in self._group and _key(maker) not in self._kept:
                    yield from self._of_node(_key(maker))

    def _follow(self, node: onnx.NodeProto, seen: set[str]) -> Iterator[str]:
        """The groups of layers that read what a node gives, over tensors that the FP32 network lacks."""
        for name in node.output:
            if name in seen or (name in self._old and node.op_type not in _ROUNDING):
                continue
            seen.add(name)
            for reader in self._readers.get(name, ()):
                if reader.name in self._group:
                    yield self._group[reader.name]
                elif _key(reader) not in self._kept:
                    yield from self._follow(reader, seen)

    def _precede(self, node: onnx.NodeProto, seen: set[str]) -> Iterator[str]:
        """The groups of layers that make what a node reads: over new tensors, or as the output of a Conv or table."""
        for name in node.input:
            maker = self._makers.get(name)
            if maker is None or name in seen:
                continue
            seen.add(name)
            if maker.name in self._group:
                if name not in self._old or maker.op_type not in FP32_OUTPUT:
                    yield self._group[maker.name]
            elif name not in self._old or (maker.op_type in _ROUNDING and _key(maker) not in self._kept):
                yield from self._precede(maker, seen)


def _key(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _elements(outline: Outline) -> dict[str, _Element]:
    """Nodes and initializers by name, with the bytes that they take in a file."""
    graph = outline.model.graph
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(_key(node))
    found = {}
    for node in graph.node:
        size = node.ByteSize()
        found[_key(node)] = _Element(_inside(size), 0, 0, (_key(node),))
    for initializer in graph.initializer:
        shape = onnx.TensorProto(name=initializer.name, data_type=initializer.data_type, dims=initializer.dims)
        if initializer.name in outline.weights:
            values = outline.weights[initializer.name].nbytes
            fixed = _inside(shape.ByteSize() + _inside(values)) - values
        else:
            values = initializer.ByteSize() - shape.ByteSize()
            fixed = _inside(shape.ByteSize() + values) - values
        count = int(np.prod(initializer.dims))
        found[f"{initializer.name} "] = _Element(fixed, values, count, tuple(readers.get(initializer.name, ())))
    return found


def _inside(size: int) -> int:
    """The bytes of a message of this size as a field of another one."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size
