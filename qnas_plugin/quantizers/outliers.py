"""Tensors whose range a few values blow up, so that nearly all the others become one number as INT8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.build.observe import Ranges
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.data import Batch
from qnas_plugin.quantizers import Groups

_STEPS = 255
_FEW = 1e-5
"""Share of the values that the calibration named percentile leaves out."""


@dataclass(frozen=True)
class Outlier:
    """A tensor that 256 steps cannot hold.

    Args:
        tensor: Its name.
        layer: The first layer that reads it as INT8.
        low: Smallest value over the calibration data.
        high: Largest value.
        typical: Mean of the sizes of a batch of values, without zeros.
        few: Whether so few values are far outside that a percentile leaves them out.
    """

    tensor: str
    layer: str
    low: float
    high: float
    typical: float
    few: bool

    def __str__(self) -> str:
        text = (
            f"'{self.tensor}' ranges from {self.low:.3g} to {self.high:.3g} and its usual values are about "
            f"{self.typical:.2g}, less than a step of INT8; keep its layer FP32 with --keep-fp32 '{self.layer}'"
        )
        return f"{text} or clip what it reads with --precision int8-percentile" if self.few else text


def find(model: Outline, groups: Groups, ranges: Ranges, batch: Batch, *, threads: int = 1) -> list[Outlier]:
    """The tensors that INT8 layers read of which a typical value is less than a step of their range.

    Args:
        model: The FP32 model.
        groups: All that may be quantized in it.
        ranges: Of the tensors, over all calibration data.
        batch: What typical values are taken from.
        threads: Threads of the run.
    """
    layers = {name for names in groups.values() for name in names}
    readers: dict[str, str] = {}
    for node in model.model.graph.node:
        if node.name in layers and node.op_type != "Gather":
            readers.setdefault(node.input[0], node.name)
    names = [name for name in readers if name in ranges]
    if not names:
        return []
    with model.running(threads=threads, outputs=names, optimized=False) as session:
        inputs = {value.name: batch.inputs[value.name] for value in session.get_inputs()}
        values = session.run(names, inputs)
    found = (_judge(name, readers[name], *ranges[name], array) for name, array in zip(names, values, strict=True))
    return [outlier for outlier in found if outlier is not None]


def _judge(name: str, layer: str, low: float, high: float, values: npt.NDArray[Any]) -> Outlier | None:
    sizes = np.abs(values[values != 0], dtype=np.float64)
    step = (max(high, 0.0) - min(low, 0.0)) / _STEPS
    usual = sizes[sizes < step * _STEPS / 2]  # what makes the range is not typical
    if not usual.size or usual.mean() >= step:
        return None
    few = (sizes > _STEPS * usual.mean()).sum() < _FEW * values.size
    return Outlier(name, layer, low, high, float(usual.mean()), bool(few))
