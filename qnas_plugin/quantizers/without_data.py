"""Quantized models without calibration data, for what does not depend on values: how fast one is, and how large."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from qnas_plugin.build.observe import Ranges
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.quantizers import DEFAULT, Groups, channels
from qnas_plugin.quantizers.formats import FORMATS
from qnas_plugin.quantizers.quantize import Calibrated

RANGE = (-4.0, 4.0)
"""That of every activation."""


def uncalibrated(model: onnx.ModelProto | Outline, groups: Groups, quantizer: str = DEFAULT) -> Calibrated:
    """A model of which every activation has the same range and every channel is alike: it emits all formats."""
    outline = Outline.of(model)
    found = ranges(outline)
    clipped = {str(format.ranges): found for format in FORMATS.values()}
    alike = dict(channels.alike(outline.model, RANGE))
    return Calibrated(outline, groups, found, clipped, channels=alike, quantizer=quantizer)


def ranges(model: onnx.ModelProto | Outline) -> Ranges:
    """A range for each tensor, without data: the same for all, except that what a table gives has the table's.

    What a model takes does not depend on them, except that ONNX Runtime looks up INT8 rows only where the table and
    its output have one scale; otherwise it converts the whole table in every run.
    """
    outline = Outline.of(model)
    stored = {initializer.name: initializer for initializer in outline.model.graph.initializer}
    found = {name: RANGE for node in outline.model.graph.node for name in (*node.input, *node.output)}
    for node in outline.model.graph.node:
        if node.op_type == "Gather" and node.input[0] in stored:
            name = node.input[0]
            table = outline.weights[name] if name in outline.weights else numpy_helper.to_array(stored[name])
            found[node.output[0]] = float(table.min()), float(table.max())
    return found
