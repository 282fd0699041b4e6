"""Vision transformers for image classification (ViT, DeiT, DINOv2): elastic depth, heads and feed-forward widths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from qnas_plugin.data import Inputs
from qnas_plugin.errors import CheckpointError, UsageError
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.supernets import Elastic, Tiny
from qnas_plugin.supernets._encoder import EncoderSupernet, Layout
from qnas_plugin.supernets._encoder_checkpoint import load_encoder, scaled


def example(config: Any, setting: RuntimeSetting) -> Inputs:
    """Noise ``(batch, channels, size, size)``."""
    return noise("vit", config, setting)


def noise(family: str, config: Any, setting: RuntimeSetting) -> Inputs:
    """Noise of the size that a model of a family takes.

    Raises:
        UsageError: The setting has another resolution.
    """
    size = config.image_size
    if setting.resolution not in (None, size):
        raise UsageError(f"this '{family}' takes images of {size} pixels, got --resolution {setting.resolution}")
    shape = (setting.batch_size, config.num_channels, size, size)
    return {"pixel_values": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}


def layout(model: str, intermediate: str = "intermediate.dense", output: str = "output.dense") -> Layout:
    """Where a class whose encoder has this name keeps its parts, which differ in the feed-forward part alone."""
    return Layout(
        family="vit",
        layers=f"{model}.encoder.layer",
        attention="attention.attention",
        linears={
            "query": ("attention.attention.query",),
            "key": ("attention.attention.key",),
            "value": ("attention.attention.value",),
            "attention_output": ("attention.output.dense",),
            "intermediate": (intermediate,),
            "output": (output,),
        },
        others={
            "classifier": ("classifier",),
            "embeddings": (f"{model}.embeddings.patch_embeddings.projection",),
        },
        shape={"channels": "num_channels", "model": "model_type", "patch": "patch_size"},
        example=example,
    )


def default_elastic(layers: int, heads: int, ffn: int) -> Elastic:
    """The space for ViT-base (12, 12, 3072): depth 10 to 12, heads 6, 8, 10, 12, FFN 1024, 2048, 3072.

    Other sizes get the same fractions.
    """
    return Elastic(
        depth=tuple(range(max(min(2, layers), round(layers * 5 / 6)), layers + 1)),
        heads=scaled(heads, (1 / 2, 2 / 3, 5 / 6, 1)),
        ffn=scaled(ffn, (1 / 3, 2 / 3, 1), multiple=8),
    )


def load(
    checkpoint: str,
    *,
    label_names: Sequence[str] | None = None,
    elastic: Elastic | None = None,
    precisions: Precisions | None = None,
) -> EncoderSupernet:
    """See ``qnas_plugin.supernets``."""
    from transformers import DeiTForImageClassification, Dinov2ForImageClassification, ViTForImageClassification

    layouts = {
        "vit": (ViTForImageClassification, layout("vit")),
        "deit": (DeiTForImageClassification, layout("deit")),
        "dinov2": (Dinov2ForImageClassification, layout("dinov2", "mlp.fc1", "mlp.fc2")),
    }
    supernet = load_encoder(layouts, checkpoint, label_names, default_elastic, elastic, precisions)
    if supernet.model.config.model_type == "dinov2":
        _fix_positions(supernet.model, image_size(checkpoint) or supernet.model.config.image_size)
    return supernet


def image_size(checkpoint: str) -> int | None:
    """The size of the images that a checkpoint's image processor gives; None without one."""
    from qnas_plugin.tasks.image_classification import processor

    try:
        loaded = processor(checkpoint).image_processor
    except CheckpointError:
        return None
    cropped = getattr(loaded, "do_center_crop", False)
    size = dict((loaded.crop_size if cropped else loaded.size) or {})
    return size.get("height", size.get("shortest_edge"))


@torch.no_grad()
def _fix_positions(model: Any, size: int) -> None:
    """Makes the position embeddings of a DINOv2 model those of one image size.

    The class of Transformers 4.57 stretches those of its training (37x37 patches) in every run and, when it is traced,
    even to their own size. Done once here, with the same result, it is no part of the graph.
    """
    config, embeddings = model.config, model.dinov2.embeddings
    blank = torch.zeros(1, (size // config.patch_size) ** 2 + 1, config.hidden_size)
    embeddings.position_embeddings = nn.Parameter(embeddings.interpolate_pos_encoding(blank, size, size).clone())
    embeddings.interpolate_pos_encoding = MethodType(_positions, embeddings)
    config.image_size = size


def _positions(embeddings: Any, *_: Any) -> torch.Tensor:
    positions: torch.Tensor = embeddings.position_embeddings
    return positions


def tiny(folder: Path) -> Tiny:
    """See ``qnas_plugin.supernets``; a ViT of 4 layers, width 32, 4 heads, for scikit-learn's digits."""
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

    from qnas_plugin.supernets import _tiny
    from qnas_plugin.tasks._tiny import write_image_processor

    config = ViTConfig(**_tiny.SIZES, image_size=8, patch_size=4, num_channels=1, **_tiny.classes(10))
    _tiny.write_encoder(folder, ViTForImageClassification, config)
    write_image_processor(folder)
    return Tiny(folder, _tiny.pixels(), _tiny.ENCODER, _tiny.REFUSED, AutoModelForImageClassification)
