"""A small residual network for grey images: the supernet that docs/add_a_supernet.md makes, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import ResNetConfig
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.space import Condition, Variable
from qnas_plugin.supernets import Elastic, Part, Tiny, _tiny
from qnas_plugin.supernets._cnn import Channels, Classifier, CnnSupernet, Layer, Plan
from qnas_plugin.supernets._cnn_checkpoint import load_cnn
from qnas_plugin.supernets._cnn_layers import ElasticConv, Unit, divisible

CONFIG = {"embedding_size": 16, "depths": [3], "image_size": 8}


class Block(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.grow = Unit(ElasticConv(channels, inner, (3,)), nn.functional.relu)
        self.shrink = Unit(ElasticConv(inner, channels, (1,)))
        self.skipped = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input if self.skipped else nn.functional.relu(input + self.shrink(self.grow(input)))


class TinyCnn(nn.Module):
    """A stem, some blocks and a classifier."""

    def __init__(self, stem: Unit, blocks: Sequence[Block], classifier: Classifier) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.classifier = classifier

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutputWithNoAttention:
        x = self.stem(pixel_values)
        for block in self.blocks:
            x = block(x)
        return ImageClassifierOutputWithNoAttention(logits=self.classifier(x.mean((2, 3))))


def build(config: Any, elastic: Elastic) -> tuple[TinyCnn, Plan]:
    """The network of a configuration and how the variables shape it."""
    variables = [Variable("depth", elastic.depth)]
    pixels, stream = Channels.fixed(config.num_channels), Channels.fixed(config.embedding_size)
    layers = [Layer("stem.conv", "stem", "stem", pixels, stream)]
    optional, blocks, cores = {}, [], []
    for i in range(config.depths[0]):
        path = f"blocks.{i}"
        kept = tuple(depth for depth in elastic.depth if depth > i)
        when = optional[path] = Condition("depth", kept)
        variables.append(Variable(f"{path}.expand", elastic.expand, when=when))
        counts = [divisible(stream.largest * expand) for expand in elastic.expand]
        inner = Channels(np.array(counts), {"expand": f"{path}.expand"})
        layers.append(Layer(f"{path}.grow.conv", f"{path}.grow", "grow", stream, inner, path, when=when))
        layers.append(Layer(f"{path}.shrink.conv", f"{path}.shrink", "shrink", inner, stream, path, when=when))
        cores.append(Part("core", {"expand": f"{path}.expand"}, (path,), path))
        blocks.append(Block(stream.largest, inner.largest))
    classes = Channels.fixed(config.num_labels)
    layers.append(Layer("classifier", "classifier", "classifier", stream, classes))
    stem = Unit(ElasticConv(pixels.largest, stream.largest, (3,)), nn.functional.relu)
    model = TinyCnn(stem, blocks, Classifier(stream.largest, config.num_labels))
    return model, Plan(tuple(variables), tuple(layers), optional, tuple(cores))


def largest(config: Any) -> Elastic:
    """The choices of a configuration; each dimension ends with the network's own size."""
    return Elastic(depth=tuple(range(1, config.depths[0] + 1)), expand=(1, 2, 4))


def load(
    checkpoint: str,
    *,
    label_names: Sequence[str] | None = None,
    elastic: Elastic | None = None,
    precisions: Precisions | None = None,
) -> CnnSupernet:
    """See ``qnas_plugin.supernets``; ``checkpoint`` is a folder."""
    return load_cnn("tiny_cnn", ResNetConfig, CONFIG, largest, build, checkpoint, label_names, elastic, precisions)


def tiny(folder: Path) -> Tiny:
    """See ``qnas_plugin.supernets``; the network as it is, with random weights."""
    _tiny.write_cnn(folder, load, {"model_type": "resnet"})
    return Tiny(folder, _tiny.pixels(), refused=(Elastic(expand=(2, 1, 4)), Elastic(heads=(1, 4))))
