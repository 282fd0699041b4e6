"""ResNet-50 of Once-for-All for image classification: elastic depth, widths and bottlenecks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import ResNetConfig
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.space import Condition, Variable
from qnas_plugin.supernets import Elastic, Part, Tiny
from qnas_plugin.supernets._cnn import Channels, Classifier, CnnSupernet, Layer, Plan
from qnas_plugin.supernets._cnn_checkpoint import load_cnn
from qnas_plugin.supernets._cnn_layers import ElasticConv, Unit, divisible

CONFIG = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [4, 4, 6, 4],
    "expand_ratio": 0.35,
    "image_size": 224,
    "stem_stride": 2,
}
"""The published network; ``config.json`` may have other sizes. ``depths`` and ``expand_ratio`` are the largest."""

ELASTIC = Elastic(depth=(0, 1, 2), expand=(0.2, 0.25, 0.35), width=(0.65, 0.8, 1.0))
"""OFA's space (Cai et al. 2020); ``depth`` counts the optional blocks of a stage that are there."""


PRECISIONS = ("int8", "int8-asym", "fp32")
"""SimQ-NAS chooses for each convolution INT8 or FP32, and symmetric or asymmetric weights, which FP32 does not need."""


class Residual(Unit):
    """A unit beside an identity; skipped, it is the identity."""

    skipped = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input if self.skipped else input + super().forward(input)


class Downsample(Unit):
    """Halves the resolution by averaging, then changes the channels."""

    def __init__(self, conv: ElasticConv, stride: int) -> None:
        super().__init__(conv)
        self.pool = nn.AvgPool2d(stride, stride, ceil_mode=True) if stride > 1 else None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input if self.pool is None else self.pool(input))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside an identity or a `Downsample`; skipped, it is the identity."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.conv1 = Unit(ElasticConv(inputs, inner, (1,)), nn.functional.relu)
        self.conv2 = Unit(ElasticConv(inner, inner, (3,), stride), nn.functional.relu)
        self.conv3 = Unit(ElasticConv(inner, outputs, (1,)))
        self.downsample = Downsample(ElasticConv(inputs, outputs, (1,)), stride) if first else None
        self.skipped = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.skipped:
            return input
        shortcut = input if self.downsample is None else self.downsample(input)
        return nn.functional.relu(self.conv3(self.conv2(self.conv1(input))) + shortcut)


class ResNet(nn.Module):
    """ResNet-50D: a stem of three 3x3 convolutions, four stages of bottlenecks, a linear classifier."""

    def __init__(self, stem: Sequence[Unit], blocks: Sequence[Bottleneck], classifier: Classifier) -> None:
        super().__init__()
        self.input_stem = nn.ModuleList(stem)
        self.blocks = nn.ModuleList(blocks)
        self.classifier = classifier

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutputWithNoAttention:
        x = pixel_values
        for unit in self.input_stem:
            x = unit(x)
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return ImageClassifierOutputWithNoAttention(logits=self.classifier(x.mean((2, 3))))


def build(config: Any, elastic: Elastic) -> tuple[ResNet, Plan]:
    """The network of a configuration and how the variables shape it."""
    variables: list[Variable] = [
        # OFA has 0 to 2 here too; its 0 and 1 are the same network.
        Variable("stem.depth", tuple(sorted({0, elastic.depth[-1]}))),
        Variable("stem.inner", elastic.width),
        Variable("stem.width", elastic.width),
    ]

    def widths(size: int, name: str) -> Channels:
        return Channels(np.array([divisible(size * width) for width in elastic.width]), {"width": name})

    pixels = Channels.fixed(config.num_channels)
    stream = widths(config.embedding_size, "stem.width")
    stem = Channels(np.array([divisible(count // 2) for count in stream.table.tolist()]), {"width": "stem.inner"})
    deep = Condition("stem.depth", (elastic.depth[-1],))
    layers = [
        Layer("input_stem.0.conv", "stem.0", "stem.0", pixels, stem, precisions=PRECISIONS),
        Layer("input_stem.1.conv", "stem.1", "stem.1", stem, stem, when=deep, precisions=PRECISIONS),
        Layer("input_stem.2.conv", "stem.2", "stem.2", stem, stream, precisions=PRECISIONS),
    ]
    relu = nn.functional.relu
    units = [
        Unit(ElasticConv(pixels.largest, stem.largest, (3,), config.stem_stride), relu),
        Residual(ElasticConv(stem.largest, stem.largest, (3,)), relu),
        Unit(ElasticConv(stem.largest, stream.largest, (3,)), relu),
    ]
    optional = {"input_stem.1": deep}
    blocks: list[Bottleneck] = []
    cores: list[Part] = []
    for stage, (size, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        variables.append(Variable(f"stage.{stage}.depth", elastic.depth))
        variables.append(Variable(f"stage.{stage}.width", elastic.width))
        outputs = widths(size, f"stage.{stage}.width")
        for position in range(depth):
            path, name = f"blocks.{len(blocks)}", f"block.{len(blocks)}"
            extra = position - (depth - elastic.depth[-1])
            when = (
                Condition(f"stage.{stage}.depth", tuple(d for d in elastic.depth if d > extra)) if extra >= 0 else None
            )
            if when is not None:
                optional[path] = when
            variables.append(Variable(f"{name}.expand", elastic.expand, when=when))
            table = [divisible(round(o * e)) for o, e in product(outputs.table.tolist(), elastic.expand)]
            inner, second = (
                Channels(
                    np.array(table).reshape(len(elastic.width), len(elastic.expand)),
                    {"width": f"stage.{stage}.width", "expand": f"{name}.expand"},
                )
                for _ in range(2)
            )
            kind = f"stage.{stage}" + (".first" if position == 0 else "")
            ends = [("conv1", stream, inner), ("conv2", inner, second), ("conv3", second, outputs)]
            ends += [("downsample", stream, outputs)] if position == 0 else []
            for role, source, target in ends:
                ids = f"{path}.{role}.conv", f"{name}.{role}", f"{kind}.{role}"
                layers.append(Layer(*ids, source, target, name, when=when, precisions=PRECISIONS))
            cores.append(
                Part(f"{kind}.core", {"width": f"stage.{stage}.width", "expand": f"{name}.expand"}, (path,), name)
            )
            stride = 2 if position == 0 and stage > 0 else 1
            blocks.append(Bottleneck(stream.largest, inner.largest, outputs.largest, stride, first=position == 0))
            stream = outputs
    layers.append(Layer("classifier", "classifier", "classifier", stream, Channels.fixed(config.num_labels)))
    model = ResNet(units, blocks, Classifier(stream.largest, config.num_labels))
    main = tuple(layer.path for layer in layers if not layer.kind.endswith(".downsample"))
    pooled = {"blocks.0.conv1.conv": "blocks.0.downsample.conv"}
    return model, Plan(tuple(variables), tuple(layers), optional, tuple(cores), main, pooled)


def largest(config: Any) -> Elastic:
    """OFA's choices, as far as the network has so many blocks and so wide ones."""
    optional = min(ELASTIC.depth[-1], min(config.depths) - 1)
    expand = tuple(e for e in ELASTIC.expand if e < config.expand_ratio)
    return Elastic(depth=tuple(range(optional + 1)), expand=(*expand, config.expand_ratio), width=ELASTIC.width)


def load(
    checkpoint: str,
    *,
    label_names: Sequence[str] | None = None,
    elastic: Elastic | None = None,
    precisions: Precisions | None = None,
) -> CnnSupernet:
    """See ``qnas_plugin.supernets``; ``checkpoint`` is a folder."""
    return load_cnn("resnet50", ResNetConfig, CONFIG, largest, build, checkpoint, label_names, elastic, precisions)


def tiny(folder: Path) -> Tiny:
    """See ``qnas_plugin.supernets``; 2, 2, 3 and 2 blocks and up to 48 channels, for scikit-learn's digits."""
    from qnas_plugin.supernets import _tiny

    config = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [32, 32, 48, 48], "depths": [2, 2, 3, 2]}
    _tiny.write_cnn(folder, load, config)
    return Tiny(folder, _tiny.pixels(), refused=(Elastic(width=(0.5, 0.8)), Elastic(heads=(1, 4))))
