"""The layers of precision groups in a graph: checked, and the tensors of theirs that have ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx

from qnas_plugin.build.shared_model import Outline
from qnas_plugin.build.tidy import FP32_OUTPUT, WEIGHT_INPUT
from qnas_plugin.errors import QuantizationError
from qnas_plugin.quantizers import Groups, Policy


def nodes_of(model: onnx.ModelProto, groups: Groups) -> list[onnx.NodeProto]:
    """The nodes of all groups in the order of the graph, checked.

    Raises:
        QuantizationError: One cannot be quantized, or the groups don't fit the model.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < 13:
        raise QuantizationError(f"the model has ONNX opset {opset}; export it with 13 or later (scales per channel)")
    listed = Counter(name for names in groups.values() for name in names)
    twice = [name for name, count in listed.items() if count > 1]
    if twice:
        raise QuantizationError(f"node '{twice[0]}' is in two precision groups; put it in one")
    nodes = [node for node in model.graph.node if node.name in listed]
    present = Counter(node.name for node in nodes)
    wrong = [name for name in listed if present[name] != 1]
    if wrong:
        raise QuantizationError(f"node '{wrong[0]}' stands {present[wrong[0]]} times in the graph; name single nodes")
    ranks = {i.name: len(i.dims) for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    aliases = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    for node in nodes:
        if node.op_type not in WEIGHT_INPUT:
            raise QuantizationError(f"node '{node.name}' is a {node.op_type}; allowed: {', '.join(WEIGHT_INPUT)}")
        if ranks.get(node.input[WEIGHT_INPUT[node.op_type]], 0) < 2:
            raise QuantizationError(f"node '{node.name}' has no stored FP32 weight; leave it out of the groups")
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias and ranks.get(aliases.get(bias, bias)) != 1:
            raise QuantizationError(f"node '{node.name}' has no stored FP32 bias vector; leave it out of the groups")
        if any(
            attribute.name == "beta" and attribute.f != 1 for attribute in node.attribute
        ):  # Neural Compressor 3.7.1 loses it
            raise QuantizationError(f"Gemm '{node.name}' scales its bias by beta; store the bias multiplied instead")
    return nodes


def activations(nodes: Sequence[onnx.NodeProto]) -> dict[str, None]:
    """The tensors with a range, each once: what MatMul, Gemm and Conv read, and what Conv and Gather write."""
    read = {node.input[0]: None for node in nodes if node.op_type != "Gather"}
    return read | {node.output[0]: None for node in nodes if node.op_type not in FP32_OUTPUT}


def table_ranges(model: Outline, nodes: Sequence[onnx.NodeProto]) -> dict[str, tuple[float, float]]:
    """The range of what each table gives: any row may be asked for later, and equal scales cost no second rounding."""
    tables = {node.output[0]: model.weights[node.input[0]] for node in nodes if node.op_type == "Gather"}
    return {name: (float(values.min()), float(values.max())) for name, values in tables.items()}


def check_policy(groups: Groups, policy: Policy) -> None:
    """Checks that a policy names the groups of a model.

    Raises:
        QuantizationError: One is missing or unknown.
    """
    missing = [group for group in groups if group not in policy]
    unknown = [group for group in policy if group not in groups]
    if missing or unknown:
        what = f"has no precision for '{missing[0]}'" if missing else f"names an unknown group '{unknown[0]}'"
        raise QuantizationError(f"the policy {what}; the groups of this model are {', '.join(groups) or 'none'}")
