"""Vision transformers for image classification (ViT, DeiT): elastic depth, heads and feed-forward widths."""

from __future__ import annotations

from collections.abc import Sequence

from qnas_plugin.supernets import Elastic
from qnas_plugin.supernets._encoder import EncoderSupernet, Layout, load_encoder, scaled

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
    checkpoint: str, *, label_names: Sequence[str] | None = None, elastic: Elastic | None = None
) -> EncoderSupernet:
    """See ``qnas_plugin.supernets``."""
    from transformers import ViTForImageClassification

    return load_encoder(ViTForImageClassification, ("vit",), LAYOUT, checkpoint, label_names, default_elastic, elastic)
