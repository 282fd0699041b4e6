"""MobileNetV3 of Once-for-All for image classification: elastic depth, expansion and depthwise kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import MobileNetV2Config
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.space import Condition, Variable
from qnas_plugin.supernets import Elastic, Part, Tiny
from qnas_plugin.supernets._cnn import Channels, Classifier, CnnSupernet, Layer, Plan
from qnas_plugin.supernets._cnn_checkpoint import load_cnn
from qnas_plugin.supernets._cnn_layers import Activation, ElasticConv, Unit, divisible

CONFIG = {
    "widths": [16, 16, 24, 40, 80, 112, 160, 960, 1280],
    "depths": [4, 4, 4, 4, 4],
    "strides": [2, 2, 2, 1, 2],
    "expand_ratio": 6,
    "kernel_size": 7,
    "image_size": 224,
    "stem_stride": 2,
}
"""The published network; ``config.json`` may have other sizes.

``widths`` are those of the stem, the first block, the stages, the last convolution and the layer before the classifier.
The configuration's class is that of MobileNetV2, the nearest that Transformers 4.57 has.
"""

ELASTIC = Elastic(depth=(2, 3, 4), kernel=(3, 5, 7), expand=(3, 4, 6))
"""OFA's space (Cai et al. 2020)."""

HARD_SWISH = (False, False, True, True, True)
SQUEEZE_EXCITE = (False, True, False, True, True)
"""What the blocks of each stage have: h-swish instead of ReLU, and a squeeze-and-excite part."""


class SqueezeExcite(nn.Module):
    """Scales channels by what two small layers make of their means."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce = ElasticConv(channels, inner, (1,), bias=True)
        self.expand = ElasticConv(inner, channels, (1,), bias=True)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        inner = nn.functional.relu(self.reduce(input.mean((2, 3), keepdim=True)))
        scale: torch.Tensor = nn.functional.hardsigmoid(self.expand(inner))
        return input * scale


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excite, 1x1 projection; skipped, it is the identity.

    Args:
        inverted_bottleneck: The expansion; None in the first block.
        depth_conv: The depthwise convolution.
        se: The squeeze-and-excite part, if any.
        point_linear: The projection.
        shortcut: Whether the input is added.
    """

    def __init__(
        self,
        inverted_bottleneck: Unit | None,
        depth_conv: Unit,
        se: SqueezeExcite | None,
        point_linear: Unit,
        *,
        shortcut: bool,
    ) -> None:
        super().__init__()
        self.inverted_bottleneck = inverted_bottleneck
        self.depth_conv = depth_conv
        self.se = se
        self.point_linear = point_linear
        self.shortcut = shortcut
        self.skipped = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.skipped:
            return input
        x = input if self.inverted_bottleneck is None else self.inverted_bottleneck(input)
        x = self.depth_conv(x)
        x = self.point_linear(x if self.se is None else self.se(x))
        return torch.add(input, x) if self.shortcut else x


class MobileNetV3(nn.Module):
    """A stem, a first block, five stages of inverted residuals, and the head that works on the pooled image."""

    def __init__(
        self,
        first_conv: Unit,
        blocks: Sequence[InvertedResidual],
        final_expand_layer: Unit,
        feature_mix_layer: Unit,
        classifier: Classifier,
    ) -> None:
        super().__init__()
        self.first_conv = first_conv
        self.blocks = nn.ModuleList(blocks)
        self.final_expand_layer = final_expand_layer
        self.feature_mix_layer = feature_mix_layer
        self.classifier = classifier

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutputWithNoAttention:
        x = self.first_conv(pixel_values)
        for block in self.blocks:
            x = block(x)
        x = self.final_expand_layer(x).mean((2, 3), keepdim=True)
        return ImageClassifierOutputWithNoAttention(logits=self.classifier(self.feature_mix_layer(x).flatten(1)))


def build(config: Any, elastic: Elastic) -> tuple[MobileNetV3, Plan]:
    """The network of a configuration and how the variables shape it."""
    swish = nn.functional.hardswish
    variables: list[Variable] = []
    layers: list[Layer] = []
    cores: list[Part] = []
    optional: dict[str, Condition] = {}
    blocks: list[InvertedResidual] = []
    pixels = Channels.fixed(config.num_channels)
    stem, first, *stages, last, features = (Channels.fixed(width) for width in config.widths)
    layers.append(Layer("first_conv.conv", "first_conv", "first_conv", pixels, stem))

    def add(
        kind: str, source: Channels, inner: Channels, target: Channels, stride: int, act: Activation, *, se: bool
    ) -> None:
        """A block and its layers; all but the first one have an expansion and elastic kernels."""
        path, name = f"blocks.{len(blocks)}", f"block.{len(blocks)}"
        elastic_block = inner is not source
        when, kernels = optional.get(path), elastic.kernel if elastic_block else (3,)
        kernel = f"{name}.kernel" if elastic_block else None

        def layer(
            role: str, inputs: Channels, outputs: Channels, path_in_block: str, kernel: str | None = None
        ) -> None:
            ids = f"{path}.{path_in_block}", f"{name}.{role}", f"{kind}.{role}"
            layers.append(Layer(*ids, inputs, outputs, name, kernel, when))

        if elastic_block:
            layer("inverted_bottleneck", source, inner, "inverted_bottleneck.conv")
            cores.append(Part(f"{kind}.core", {"expand": f"{name}.expand", "kernel": f"{name}.kernel"}, (path,), name))
        layer("depth_conv", inner, inner, "depth_conv.conv", kernel)
        squeezed = Channels(
            np.array([divisible(count // 4) for count in inner.table.ravel().tolist()]).reshape(inner.table.shape),
            inner.variables,
        )
        if se:
            layer("squeeze_excite", inner, squeezed, "se.reduce")
            layer("squeeze_excite", squeezed, inner, "se.expand")
        layer("point_linear", inner, target, "point_linear.conv")
        blocks.append(
            InvertedResidual(
                Unit(ElasticConv(source.largest, inner.largest, (1,)), act) if elastic_block else None,
                Unit(ElasticConv(inner.largest, inner.largest, kernels, stride, depthwise=True), act),
                SqueezeExcite(inner.largest, squeezed.largest) if se else None,
                Unit(ElasticConv(inner.largest, target.largest, (1,))),
                shortcut=stride == 1 and source.largest == target.largest,
            )
        )

    add("first", stem, stem, first, 1, nn.functional.relu, se=False)
    stream = first
    for stage, (target, depth, stride) in enumerate(zip(stages, config.depths, config.strides, strict=True)):
        variables.append(Variable(f"stage.{stage}.depth", elastic.depth))
        for position in range(depth):
            path, name = f"blocks.{len(blocks)}", f"block.{len(blocks)}"
            kept = tuple(d for d in elastic.depth if d > position)
            if len(kept) < len(elastic.depth):
                optional[path] = Condition(f"stage.{stage}.depth", kept)
            variables.append(Variable(f"{name}.kernel", elastic.kernel, when=optional.get(path)))
            variables.append(Variable(f"{name}.expand", elastic.expand, when=optional.get(path)))
            counts = [divisible(round(stream.largest * e)) for e in elastic.expand]
            inner = Channels(np.array(counts), {"expand": f"{name}.expand"})
            kind = f"stage.{stage}" + (".first" if position == 0 else "")
            act = swish if HARD_SWISH[stage] else nn.functional.relu
            add(kind, stream, inner, target, stride if position == 0 else 1, act, se=SQUEEZE_EXCITE[stage])
            stream = target
    classes = Channels.fixed(config.num_labels)
    layers.append(Layer("final_expand_layer.conv", "final_expand_layer", "final_expand_layer", stream, last))
    layers.append(Layer("feature_mix_layer.conv", "feature_mix_layer", "feature_mix_layer", last, features))
    layers.append(Layer("classifier", "classifier", "classifier", features, classes))
    model = MobileNetV3(
        Unit(ElasticConv(pixels.largest, stem.largest, (3,), config.stem_stride), swish),
        blocks,
        Unit(ElasticConv(stream.largest, last.largest, (1,)), swish),
        Unit(ElasticConv(last.largest, features.largest, (1,)), swish, norm=False),
        Classifier(features.largest, config.num_labels),
    )
    main = tuple(layer.path for layer in layers if not layer.kind.endswith(".squeeze_excite"))
    return model, Plan(tuple(variables), tuple(layers), optional, tuple(cores), main)


def largest(config: Any) -> Elastic:
    """OFA's choices, as far as the network has so many blocks, so wide ones, and so large kernels."""

    def up_to(choices: Sequence[int], size: int) -> tuple[int, ...]:
        return (*(choice for choice in choices if choice < size), size)

    return Elastic(
        depth=up_to(ELASTIC.depth, min(config.depths)),
        kernel=up_to(ELASTIC.kernel, config.kernel_size),
        expand=(*(e for e in ELASTIC.expand if e < config.expand_ratio), config.expand_ratio),
    )


def load(
    checkpoint: str,
    *,
    label_names: Sequence[str] | None = None,
    elastic: Elastic | None = None,
    precisions: Precisions | None = None,
) -> CnnSupernet:
    """See ``qnas_plugin.supernets``; ``checkpoint`` is a folder."""
    return load_cnn(
        "mobilenet_v3", MobileNetV2Config, CONFIG, largest, build, checkpoint, label_names, elastic, precisions
    )


def tiny(folder: Path) -> Tiny:
    """See ``qnas_plugin.supernets``; 5 stages of up to 2 blocks and 16 channels, for scikit-learn's digits."""
    from qnas_plugin.supernets import _tiny

    config = {"model_type": "mobilenet_v2", "widths": [8, 8, 8, 8, 16, 16, 16, 32, 48], "depths": [2, 2, 2, 2, 2]}
    _tiny.write_cnn(folder, load, config)
    refused = (Elastic(kernel=(7, 3)), Elastic(heads=(1, 4)))
    return Tiny(folder, _tiny.pixels(), Elastic(depth=(1, 2)), refused)
