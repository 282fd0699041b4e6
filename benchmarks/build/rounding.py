"""What INT8 loses in a text recogniser, weights and activations apart, and whether learned rounding gains it back.

    PYTHONPATH=examples/onnx_models python benchmarks/build/rounding.py

It needs ``rapidocr-onnxruntime`` on the path. AdaRound (Nagel et al. 2020): each weight of a convolution is rounded
down plus a rectified sigmoid of a variable, which is learned so that the layer's output on calibration data changes
least, and which a regulariser drives to 0 or 1. With x what the layer reads, patch by patch, a change d of a
channel's weights changes its output by d'E[xx']d on average, so all that data tells is in that matrix. Differs: the
output is that before the activation; x is that of the FP32 model; a channel that nearest rounding suits better keeps
it.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ocr
import onnx
import torch
from onnx import helper
from torch.nn import functional

from qnas_plugin import registry
from qnas_plugin.build.observe import run
from qnas_plugin.build.shared_model import Outline
from qnas_plugin.data import Batch, SplitSizes
from qnas_plugin.evaluate.bench import write
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.hardware import RuntimeSetting, describe
from qnas_plugin.hardware.machine import detect
from qnas_plugin.measure.metrics import Scores, standard_error
from qnas_plugin.quantizers.formats import CHANNELS
from qnas_plugin.quantizers.neural_compressor import Quantized, quantize_weight
from qnas_plugin.quantizers.quantize import calibrate
from qnas_plugin.supernets.onnx_file import onnx_model

HELD = 256
"""Examples that are kept for calibration, whether used or not, so that the others stay the same."""

LOW, HIGH = -0.1, 1.1
"""What the sigmoid is stretched to before it is cut to [0, 1]."""

LARGEST = 127


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1200, help="images in all")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000, help="for each layer")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ocr.LINES = options.lines
    lab = load()
    batches = [*lab.processor.batches(lab.dataset.calibration.inputs[: options.calibration], 8)]
    graph = lab.network.graph(batches[0].inputs)
    model = Outline(graph.model, graph.weights)
    known = calibrate(model, graph.groups, batches, algorithms=[CHANNELS])
    layers = {name for names in graph.groups.values() for name in names}
    convs = [node for node in model.model.graph.node if node.name in layers and node.op_type == "Conv"]

    def emitted(precision: str, quantized: Quantized) -> Outline:
        return replace(known, quantized=dict(quantized)).outline(dict.fromkeys(graph.groups, precision))

    print(f"{detect()}\n\n{len(lab.dataset.search)} examples, {len(convs)} of {len(layers)} layers are convolutions\n")
    print("| model | accuracy | points | error | gain over int8 | error | gain over int8-corrected | error |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    found: dict[str, Scores] = {}
    show(lab, "fp32", model, found)
    show(lab, "int8", emitted("int8", {}), found)
    show(lab, "int8-corrected", emitted("int8-corrected", {}), found)
    show(lab, "INT8 weights of convolutions, all else FP32", rounded_weights(model, convs), found)
    show(lab, "INT8, weights of convolutions FP32", rounded_activations(emitted("int8", {}), model, convs), found)
    codes = learned(model, convs, batches, options.steps)
    show(lab, "INT8, rounding of convolutions learned", emitted("int8", codes), found)


def load() -> Lab:
    """The recogniser with its data."""
    task, path = registry.load("tasks", "arrays"), str(ocr.RECOGNISER)
    sizes = SplitSizes(calibration=HELD, search=ocr.LINES, selection=0, report=1)
    dataset = replace(task.load("ocr:lines", sizes=sizes), metric="ocr:characters")
    return Lab(onnx_model.load(path), dataset, task.processor(path), describe(detect(), "here"), RuntimeSetting())


def show(lab: Lab, name: str, model: Outline, found: dict[str, Scores]) -> None:
    """Prints the accuracy of a model against the first three."""
    with tempfile.TemporaryDirectory(prefix="qnas-bench-") as folder:
        write(Path(folder) / "model.onnx", model)
        own = found[name] = lab.scores(Path(folder) / "model.onnx", "search").scores
    cells = [name, f"{own.mean():.4f}"]
    for other in list(found)[:3]:
        change = 100 * (own - found[other])
        cells += [f"{change.mean():+.2f}", f"{standard_error(change):.2f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


def rounded_weights(model: Outline, convs: Sequence[onnx.NodeProto]) -> Outline:
    """The FP32 model with what the INT8 weights of convolutions stand for."""
    made = {}
    for node in convs:
        name = node.input[1]
        found = quantize_weight(name, model.weights[name], onnx.TensorProto.INT8, "sym", 0, {})
        scales = np.asarray(found.scales, np.float32).reshape(-1, *[1] * (model.weights[name].ndim - 1))
        made[name] = found.quantized_data * scales
    return Outline(model.model, {**model.weights, **made})


def rounded_activations(quantized: Outline, model: Outline, convs: Sequence[onnx.NodeProto]) -> Outline:
    """An INT8 model with the FP32 weights of convolutions."""
    changed, weights = onnx.ModelProto(), dict(quantized.weights)
    changed.CopyFrom(quantized.model)
    names = {f"{node.name}_quant": node.input[1] for node in convs}
    for node in changed.graph.node:
        if node.name in names:
            weight = names[node.name]
            node.input[1] = f"{weight}/exact"
            if node.input[1] not in weights:
                weights[node.input[1]] = model.weights[weight]
                changed.graph.initializer.add(name=node.input[1], data_type=1, dims=model.weights[weight].shape)
    return Outline(changed, weights)


def learned(model: Outline, convs: Sequence[onnx.NodeProto], batches: Sequence[Batch], steps: int) -> Quantized:
    """The weights of convolutions with learned codes; prints how much they gain on the calibration data."""
    tensors = list(dict.fromkeys(node.input[0] for node in convs))
    sums: dict[str, torch.Tensor] = {}
    for values in run(model, tensors, batches, 1):
        read = dict(zip(tensors, values, strict=True))
        for node in convs:
            own = patches(node, model.weights[node.input[1]].shape, torch.from_numpy(read[node.input[0]]))
            sums[node.name] = sums.get(node.name, 0) + (own @ own.transpose(1, 2)).double() / own.shape[2]
    kept: Quantized = {}
    left = []
    for node in convs:
        weight = model.weights[node.input[1]]
        nearest = quantize_weight(node.input[1], weight, onnx.TensorProto.INT8, "sym", 0, kept)
        changed = copy.copy(nearest)
        moments = sums[node.name] / len(batches)
        shape = len(moments), len(weight) // len(moments), -1
        scales = np.repeat(np.asarray(nearest.scales, np.float64), weight[0].size)
        numbers = (np.array(array, np.float64) for array in (weight, scales, nearest.quantized_data))
        exact, scale, usual = (torch.from_numpy(array).view(shape) for array in numbers)
        codes = rounded(exact, scale, usual, moments, steps)
        before, after = (change_of_output(each * scale - exact, moments).sum() for each in (usual, codes))
        left.append(float(after / before))
        changed.quantized_data = codes.numpy().astype(np.int8).reshape(weight.shape)
        kept[next(key for key, value in kept.items() if value is nearest)] = changed
    print(f"error of outputs against nearest rounding, mean of the layers: {np.mean(left):.3f}", flush=True)
    return kept


def patches(node: onnx.NodeProto, kernel: Sequence[int], read: torch.Tensor) -> torch.Tensor:
    """What each position of a convolution's output is computed from, ``(groups, numbers, positions)``."""
    own: Mapping[str, list[int]] = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    top, left, bottom, right = own.get("pads", [0, 0, 0, 0])
    parts = functional.unfold(
        functional.pad(read, (left, right, top, bottom)),
        tuple(kernel[2:]),
        dilation=tuple(own.get("dilations", (1, 1))),
        stride=tuple(own.get("strides", (1, 1))),
    )
    groups = read.shape[1] // kernel[1]
    return parts.view(len(parts), groups, -1, parts.shape[2]).permute(1, 2, 0, 3).flatten(2)


def change_of_output(change: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """The mean square ``(groups, channels, 1)`` of what changed weights ``(groups, channels, numbers)`` change."""
    return ((change @ moments) * change).sum(-1, keepdim=True)


def rounded(
    weight: torch.Tensor, scale: torch.Tensor, nearest: torch.Tensor, moments: torch.Tensor, steps: int
) -> torch.Tensor:
    """Codes of weights ``(groups, channels, numbers)`` that change outputs less than the nearest ones do."""

    def lost(codes: torch.Tensor) -> torch.Tensor:
        return change_of_output(codes * scale - weight, moments)

    down = torch.floor(weight / scale).clamp(-LARGEST, LARGEST)
    share = (weight / scale - down).clamp(0.001, 0.999)
    logits = -torch.log((HIGH - LOW) / (share - LOW) - 1)
    logits.requires_grad_()
    usual, first = lost(nearest).clamp_min(1e-20), steps // 5
    optimizer = torch.optim.Adam([logits], lr=1e-2)
    for step in range(steps):
        up = ((HIGH - LOW) * torch.sigmoid(logits) + LOW).clamp(0, 1)
        loss = (lost(down + up) / usual).sum()
        if step >= first:
            beta = 11 + 9 * math.cos(math.pi * (step - first) / (steps - first))
            loss = loss + (1 - (2 * up - 1).abs() ** beta).mean(-1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes = (down + (logits.detach() > 0)).clamp(-LARGEST, LARGEST)
    return torch.where(lost(codes) < lost(nearest), codes, nearest)


if __name__ == "__main__":
    main()
