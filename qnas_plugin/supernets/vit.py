"""Vision transformers for image classification (ViT, DeiT): elastic depth, heads and feed-forward widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qnas_plugin.errors import UsageError
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.precision import Precisions
from qnas_plugin.supernets import Elastic
from qnas_plugin.supernets._encoder import EncoderSupernet, Layout, load_encoder, scaled
from qnas_plugin.tasks import Inputs


def example(config: Any, setting: RuntimeSetting) -> Inputs:
    """Noise ``(batch, channels, size, size)``."""
    size = config.image_size
    if setting.resolution not in (None, size):
        raise UsageError(f"this 'vit' takes images of {size} pixels, got --resolution {setting.resolution}")
    shape = (setting.batch_size, config.num_channels, size, size)
    return {"pixel_values": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}


LAYOUT = Layout(
    family="vit",
    layers="vit.encoder.layer",
    attention="attention.attention",
    linears={
        "query": "attention.attention.query",
        "key": "attention.attention.key",
        "value": "attention.attention.value",
        "attention_output": "attention.output.dense",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
    },
    others={
        "classifier": ("classifier",),
        "embeddings": ("vit.embeddings.patch_embeddings.projection",),
    },
    shape={"channels": "num_channels", "patch": "patch_size"},
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
    from transformers import ViTForImageClassification

    return load_encoder(
        ViTForImageClassification, ("vit",), LAYOUT, checkpoint, label_names, default_elastic, elastic, precisions
    )
