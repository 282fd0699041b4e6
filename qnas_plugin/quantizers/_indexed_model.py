"""Neural Compressor's view of a model, with look-ups that take the same time in a graph of any size.

Neural Compressor 3.7.1 goes through all initializers or nodes in each of several look-ups for each layer, compares
nodes field by field to remove one, and sorts without regard to what branches of an If or a Loop read.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import onnx

from qnas_plugin.errors import QuantizationError
from qnas_plugin.quantizers._importing import importing

with importing():
    from neural_compressor.adaptor.ox_utils import operators, quantizer
    from neural_compressor.model.onnx_model import ONNXModel


class Named:
    """Nodes or initializers of a graph, found by their names.

    Args:
        items: They stay where they are; those that are added here are added there.
    """

    def __init__(self, items: Any) -> None:
        self._items = items
        self._first: dict[str, Any] = {}
        self._index(items)

    def find(self, name: str) -> Any:
        """The first of this name; None where there is none."""
        found = self._first.get(name)
        if found is None or found.name == name:
            return found
        return next((item for item in self._items if item.name == name), None)  # it was renamed since

    def add(self, **fields: Any) -> Any:
        item = self._items.add(**fields)
        self._index([item])
        return item

    def append(self, item: Any) -> None:
        self.extend([item])

    def extend(self, items: Iterable[Any]) -> None:
        before = len(self._items)
        self._items.extend(items)
        self._index(self._items[before:])

    def remove_all(self, drop: Collection[int]) -> None:
        """Removes the items at these positions; the others stay the same objects."""
        for i in sorted(drop, reverse=True):
            self._first.pop(self._items[i].name, None)
            del self._items[i]

    def _index(self, items: Iterable[Any]) -> None:
        for item in items:
            self._first.setdefault(item.name, item)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


class NewNodes(list[onnx.NodeProto]):
    """Nodes that are to be added, found by their names; one that is there already is not added again.

    Neural Compressor 3.7.1 makes as many nodes of one name as layers share a weight, less one.
    """

    def __init__(self, nodes: Iterable[onnx.NodeProto]) -> None:
        super().__init__()
        self._first: dict[str, onnx.NodeProto] = {}
        self.extend(nodes)

    def find(self, name: str) -> onnx.NodeProto | None:
        """The node of this name; None where there is none."""
        return self._first.get(name)

    def append(self, node: onnx.NodeProto) -> None:
        if self._first.setdefault(node.name, node) is node or self._first[node.name] != node:
            super().append(node)

    def extend(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            self.append(node)


def _find_by_name(name: str, items: Any) -> Any:
    """Stands in for Neural Compressor's function of this name, which goes through all items."""
    return items.find(name) if isinstance(items, Named | NewNodes) else _slow(name, items)


_slow = quantizer.find_by_name
quantizer.find_by_name = _find_by_name
for _module in pkgutil.iter_modules(operators.__path__, f"{operators.__name__}."):
    if hasattr(importlib.import_module(_module.name), "find_by_name"):
        importlib.import_module(_module.name).find_by_name = _find_by_name  # type: ignore[attr-defined]


class IndexedModel(ONNXModel):  # type: ignore[misc]
    """A model for one run of the quantizer; without values, which it would serialise to add up their sizes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes, self._initializers = Named(model.graph.node), Named(model.graph.initializer)
        self._names = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
        super().__init__(model)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def check_is_large_model(self) -> None:
        self._is_large_model = False

    def nodes(self) -> Named:
        return self._nodes

    def initializer(self) -> Named:
        return self._initializers

    def input(self) -> list[str]:
        return self._names[0]

    def output(self) -> list[str]:
        return self._names[1]

    def get_initializer(self, name: str) -> onnx.TensorProto | None:
        found: onnx.TensorProto | None = self._initializers.find(name)
        return found

    def get_initializer_share_num(self, name: str) -> int:
        if self.get_initializer(name) is None:
            return 0
        return sum(name in node.input for node in self._readers.get(name, ()))

    def add_initializer(self, tensor: onnx.TensorProto) -> None:
        if self.get_initializer(tensor.name) is None:
            self._initializers.append(tensor)

    def remove_initializer(self, tensor: onnx.TensorProto) -> None:
        self.remove_initializers([tensor])

    def remove_initializers(self, init_to_remove: Iterable[onnx.TensorProto]) -> None:
        names = {tensor.name for tensor in init_to_remove}
        if names:
            self._initializers.remove_all([i for i, tensor in enumerate(self._initializers) if tensor.name in names])

    def remove_nodes(self, nodes_to_remove: Iterable[onnx.NodeProto]) -> None:
        outputs = {tuple(node.output) for node in nodes_to_remove}
        if outputs:
            self._nodes.remove_all([i for i, node in enumerate(self._nodes) if tuple(node.output) in outputs])

    def topological_sort(self, enable_subgraph: bool = False) -> None:
        """Sorts as the original does where no node has graphs in it.

        Raises:
            QuantizationError: There is no order.
        """
        graph = self.model.graph
        needs = [_reads(node) for node in graph.node]
        makers = {output: i for i, node in enumerate(graph.node) for output in node.output if output.strip()}
        readers: dict[str, list[int]] = {}
        for i, names in enumerate(needs):
            for name in names:
                readers.setdefault(name, []).append(i)
        inputs = {value.name for value in graph.input}
        queue = deque(i for value in graph.input for i in readers.get(value.name, ()))
        queue.extend(i for i, names in enumerate(needs) if not any(name in makers or name in inputs for name in names))
        queued, waiting, done = Counter(queue), dict[int, None](), dict[int, None]()
        before = -1
        while queue:
            i = queue.popleft()
            queued[i] -= 1
            found: list[int] = []
            if all(makers[name] in done for name in needs[i] if name in makers):
                done[i] = None
                found = [j for name in graph.node[i].output for j in readers.get(name, ()) if j not in done]
                found = [j for j in found if not queued[j]]
            else:
                waiting[i] = None
            if not queue and not found and len(done) > before:  # else those that wait would wait for ever
                found, before = [j for j in waiting if j not in done], len(done)
                waiting.clear()
            queue.extend(found)
            queued.update(found)
        if len(done) < len(graph.node):
            raise QuantizationError("the nodes of the quantized graph have no order")
        ordered = [graph.node[i] for i in done]
        graph.ClearField("node")
        graph.node.extend(ordered)


def _reads(node: onnx.NodeProto) -> list[str]:
    """What a node reads, also in the graphs in it; a name for each time."""
    names = [name for name in node.input if name.strip()]
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            names += [name for inner in graph.node for name in _reads(inner)]
            names += [output.name for output in graph.output]
    return names
