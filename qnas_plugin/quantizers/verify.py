"""Whether a precision policy landed in a graph, whatever quantizer emitted it."""

from __future__ import annotations

import onnx

from qnas_plugin.build.tidy import FP32_OUTPUT, WEIGHT_INPUT
from qnas_plugin.errors import QuantizationError
from qnas_plugin.quantizers import Groups, Policy, dynamic, smooth
from qnas_plugin.quantizers._settings import at_run_time, type_of, weights_of
from qnas_plugin.quantizers.formats import FORMATS
from qnas_plugin.quantizers.groups import check_policy


def verify(model: onnx.ModelProto, groups: Groups, policy: Policy) -> None:
    """Checks that each INT8 group runs on stored 8-bit weights and 8-bit activations, and each other one on FP32.

    Args:
        model: An emitted model.
        groups: The groups of the FP32 model that it was emitted from.
        policy: What should have become of them.

    Raises:
        QuantizationError: The policy names other groups, or some group is not in the graph as it should be.
    """
    check_policy(groups, policy)
    nodes = {node.name: node for node in model.graph.node}
    made_by = {output: node for node in model.graph.node for output in node.output}
    stored = {initializer.name: initializer.data_type for initializer in model.graph.initializer}
    axes = {initializer.name: len(initializer.dims) for initializer in model.graph.initializer}

    def dequantized(name: str) -> str | None:
        node = made_by.get(name)
        return node.input[0] if node is not None and node.op_type == "DequantizeLinear" else None

    def landed(name: str, precision: str) -> bool:
        format = FORMATS[precision]
        node = nodes.get(f"{name}_quant" if format.quantized else name)
        if node is None:
            return False
        if node.op_type not in WEIGHT_INPUT:
            return format.dynamic and dynamic.landed(node, made_by, stored)
        if at_run_time(node, format):
            return False
        weight = node.input[WEIGHT_INPUT[node.op_type]]
        activation = None if node.op_type == "Gather" else dequantized(node.input[0])
        if format.quantized:
            numbers = weights_of(node, format)
            if numbers is None or stored.get(dequantized(weight) or "") != type_of(numbers):
                return False
            if format.alpha is not None and not smooth.landed(node, made_by, stored):
                return False
            per_channel = numbers.axis == "channel"
            return axes[made_by[weight].input[1]] == per_channel and (node.op_type == "Gather" or activation in made_by)
        if stored.get(weight) != onnx.TensorProto.FLOAT:
            return False
        if activation is None:
            return True
        # An INT8 Conv or table hands its rounded output to whatever comes next.
        source = made_by.get(made_by[activation].input[0]) if activation in made_by else None
        return source is not None and source.name.endswith("_quant") and source.op_type not in FP32_OUTPUT

    failed = [group for group, names in groups.items() if not all(landed(name, policy[group]) for name in names)]
    if failed:
        raise QuantizationError(
            "the precision policy did not land in the graph; wrong groups: "
            + ", ".join(f"{group} (should be {policy[group]})" for group in failed)
        )
