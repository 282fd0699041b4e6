"""Random models of the real classes, small enough for tests: what `tiny` of the families is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qnas_plugin.supernets import Elastic
from qnas_plugin.tasks._tiny import write_image_processor

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
"""Of every random encoder."""

ENCODER = Elastic((2, 3, 4), (1, 2, 4), (16, 32, 48))
"""Choices of such an encoder."""

REFUSED = (Elastic(heads=(2, 3)), Elastic(kernel=(3, 5)))
"""Choices that do not end with its own size, and a dimension that it lacks."""


def pixels(channels: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """Three images of 8x8 pixels, the same in each channel."""
    images = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    return {"pixel_values": images.repeat(channels, axis=1)}


def tokens(first: int, length: int, real: tuple[int, int, int]) -> dict[str, np.ndarray[Any, Any]]:
    """Three texts of the words from ``first`` to 19, padded after their first ``real`` words."""
    return {
        "input_ids": np.random.default_rng(0).integers(first, 20, (3, length)),
        "attention_mask": np.array([[1] * n + [0] * (length - n) for n in real]),
    }


def classes(count: int) -> dict[str, Any]:
    """Fields of a configuration."""
    return {"id2label": {i: str(i) for i in range(count)}, "label2id": {str(i): i for i in range(count)}}


def write_encoder(folder: Path, make: Callable[[Any], Any], config: Any, *, norms: bool = False) -> None:
    """A model of a class of Transformers, with LayerNorms that do nothing or, with ``norms``, random ones."""
    torch.manual_seed(0)
    model = make(config)
    for module in model.modules():
        if norms and isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    model.save_pretrained(folder)


def write_cnn(folder: Path, load: Callable[[str], Any], config: Mapping[str, Any]) -> None:
    """A convolutional supernet for the 8x8 grey images of scikit-learn's digits, with statistics of its own."""
    common = {"num_channels": 1, "image_size": 8, "id2label": {str(i): str(i) for i in range(10)}, "stem_stride": 1}
    (folder / "config.json").write_text(json.dumps({**config, **common}), encoding="utf-8")
    from safetensors.torch import save_file

    model = load(str(folder)).model
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("_matrix"):
            torch.nn.init.normal_(parameter, std=0.3)
    save_file(model.state_dict(), folder / "model.safetensors")
    write_image_processor(folder, mean=0.3, deviation=0.38)
