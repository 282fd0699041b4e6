"""What tensors of a model are over some data: their extremes, to which the graph itself reduces them, or histograms.

A tensor that is fetched is copied and keeps its memory until the run ends; its extremes are three numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from qnas_plugin.build.shared_model import Outline
from qnas_plugin.data import Batch
from qnas_plugin.errors import QuantizationError, door

Ranges = Mapping[str, tuple[float, float]]
"""Tensor name to the smallest and largest of its values over the calibration data, or of those that are kept."""

_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSum")
_SUMS_OVERFLOW = 1e30


def extremes(model: Outline, tensors: Sequence[str], batches: Sequence[Batch], *, threads: int) -> Ranges:
    """The smallest and largest value of each FP32 tensor that has some; NaN where one of its values is.

    Args:
        model: The model.
        tensors: Names of tensors in it.
        batches: The data.
        threads: Threads of the run; the result does not depend on them.

    Raises:
        QuantizationError: The data lack an input, or the model cannot be run on them.
    """
    if not tensors:
        return {}
    watch = Watch(model.model, tensors)
    try:
        return watch.ranges(list(run(Outline(watch.model, model.weights), watch.outputs, batches, threads)))
    except QuantizationError:  # ONNX Runtime 1.31 does not reduce a tensor without values
        return _fetched(model, tensors, batches, threads)


def _fetched(model: Outline, tensors: Sequence[str], batches: Sequence[Batch], threads: int) -> Ranges:
    """What `extremes` gives, from whole tensors."""
    found: dict[str, tuple[float, float]] = {}
    for values in run(model, list(tensors), batches, threads):
        for name, value in zip(tensors, values, strict=True):
            if value.size:
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = float(np.minimum(low, value.min())), float(np.maximum(high, value.max()))  # keeps NaN
    return found


class Histogram(Protocol):
    """What gives the range of a tensor without its outliers."""

    def collect(self, values: npt.NDArray[Any]) -> None:
        """Adds values, which must be finite."""
        ...

    def range(self) -> tuple[float, float]:
        """The smallest and the largest that is kept."""
        ...


def clipped(model: Outline, histograms: Mapping[str, Histogram], batches: Sequence[Batch], *, threads: int) -> Ranges:
    """The range of each tensor that has values, without its outliers, from an empty histogram of each.

    Values must be finite; it takes several times as long as ``extremes``.

    Raises:
        QuantizationError: The data lack an input.
    """
    if not histograms:
        return {}
    filled = set()
    for values in run(model, list(histograms), batches, threads):
        for name, value in zip(histograms, values, strict=True):
            if value.size:
                histograms[name].collect(value)
                filled.add(name)
    return {name: histogram.range() for name, histogram in histograms.items() if name in filled}


def run(
    model: Outline, outputs: Sequence[str], batches: Sequence[Batch], threads: int
) -> Iterator[Sequence[npt.NDArray[Any]]]:
    """What tensors of a model are on each batch.

    Raises:
        QuantizationError: The data lack an input, or the model cannot be run on them.
    """
    # Without optimization, as Neural Compressor's ``fit`` does it, to the last bit.
    with model.running(threads=threads, outputs=outputs, optimized=False) as session:
        names = [value.name for value in session.get_inputs()]
        optional = [value.name for value in session.get_overridable_initializers()]
        for batch in batches:
            missing = [name for name in names if name not in batch.inputs]
            if missing:
                raise QuantizationError(
                    f"the calibration data has no '{missing[0]}'; the model needs {', '.join(names)}"
                )
            given = names + [name for name in optional if name in batch.inputs]
            with door(QuantizationError, "the model cannot be run on the calibration data"):
                values = session.run(list(outputs), {name: batch.inputs[name] for name in given})
            yield values


@dataclass(frozen=True, eq=False)
class Watch:
    """A graph that also computes the extremes of some of its FP32 tensors.

    Args:
        graph: The model that is watched, not changed.
        tensors: Names of tensors in it.
    """

    graph: onnx.ModelProto
    tensors: Sequence[str]

    @property
    def outputs(self) -> list[str]:
        """What a run has to fetch."""
        return [
            f"{operator}/{name}" for name in dict.fromkeys(map(self._source, self.tensors)) for operator in _REDUCTIONS
        ]

    @property
    def model(self) -> onnx.ModelProto:
        """A copy that computes it; each tensor is reduced as soon as it is there, so that its memory is free again."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.graph)
        del copy.graph.node[:]
        left = dict.fromkeys(map(self._source, self.tensors))

        def watch(names: Sequence[str]) -> None:
            for name in names:
                if name in left:
                    del left[name]
                    copy.graph.node.extend(
                        helper.make_node(operator, [name], [f"{operator}/{name}"], keepdims=0)
                        for operator in _REDUCTIONS
                    )

        watch([value.name for value in self.graph.graph.input])
        for node in self.graph.graph.node:
            copy.graph.node.append(node)
            watch(node.output)
        return copy

    def ranges(self, runs: Sequence[Sequence[npt.NDArray[Any]]]) -> Ranges:
        """The ranges over some runs, each what ``outputs`` names."""
        values = np.array(runs, dtype=np.float32).reshape(len(runs), -1, len(_REDUCTIONS))
        low, high, sums = values[..., 0].min(axis=0), values[..., 1].max(axis=0), values[..., 2]
        # ReduceMin and ReduceMax of ONNX Runtime 1.31 pass over NaN. Sums of huge values of both signs are NaN too.
        lost = np.isnan(sums).any(axis=0) & ~((low < -_SUMS_OVERFLOW) & (high > _SUMS_OVERFLOW))
        low[lost] = high[lost] = np.nan
        places = {name: i for i, name in enumerate(dict.fromkeys(map(self._source, self.tensors)))}
        found = {}
        for name in self.tensors:
            i = places[self._source(name)]
            pair = np.array([low[i], high[i]])
            pair = np.maximum(pair, np.float32(0)) if name in self._rectified else pair  # keeps NaN
            if not pair[0] > pair[1]:  # else it has no values
                found[name] = float(pair[0]), float(pair[1])
        return found

    def _source(self, name: str) -> str:
        """The tensor that is reduced in place of this one: a Relu and an extreme can change places."""
        return self._rectified.get(name, name)

    @cached_property
    def _rectified(self) -> dict[str, str]:
        return {node.output[0]: node.input[0] for node in self.graph.graph.node if node.op_type == "Relu"}
