"""BEiT-3 for image classification and visual question answering: elastic depth, heads and feed-forward widths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qnas_plugin.data import Inputs
from qnas_plugin.errors import UsageError
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.supernets import Elastic, Tiny, vit
from qnas_plugin.supernets._beit3_checkpoint import fill, published
from qnas_plugin.supernets._beit3_model import (
    FIRST_POSITION,
    Beit3Config,
    Beit3ForImageClassification,
    Beit3ForVisualQuestionAnswering,
)
from qnas_plugin.supernets._encoder import EncoderSupernet, Layout
from qnas_plugin.supernets._encoder_checkpoint import load_encoder, scaled

FAMILY = "beit3"


def example(config: Any, setting: RuntimeSetting) -> Inputs:
    """Noise ``(batch, channels, size, size)``."""
    return vit.noise(FAMILY, config, setting)


def question_example(config: Any, setting: RuntimeSetting) -> Inputs:
    """Noise, random tokens and a full mask ``(batch, sequence length)``."""
    length, longest = setting.sequence_length, config.max_position_embeddings - FIRST_POSITION
    if length is None or length > longest:
        got = "none" if length is None else str(length)
        raise UsageError(f"this 'beit3' needs a sequence length of 1 to {longest}, got {got}; give --seq-len")
    shape = (setting.batch_size, length)
    return {
        **example(config, setting),
        "input_ids": np.random.default_rng(0).integers(0, config.vocab_size, shape),
        "attention_mask": np.ones(shape, dtype=np.int64),
    }


def layout(*, words: bool) -> Layout:
    """Where the class for images, or the one for questions, keeps its parts."""

    def experts(path: str) -> tuple[str, ...]:
        return tuple(path.replace("*", expert) for expert in ("AB" if words else "A"))

    linears = {
        "query": experts("self_attn.q_proj.*"),
        "key": experts("self_attn.k_proj.*"),
        "value": experts("self_attn.v_proj.*"),
        "attention_output": experts("self_attn.out_proj.*"),
        "intermediate": experts("ffn.*.fc1"),
        "output": experts("ffn.*.fc2"),
    }
    norms = {
        "attention_output": experts("self_attn.inner_attn_ln.*"),
        "output": experts("ffn.*.ffn_layernorm"),
    }
    patches = "beit3.vision_embed.proj"
    others: dict[str, tuple[str, ...]] = {"classifier": ("head",), "embeddings": (patches,)}
    if words:
        others = {
            "pooler": ("pooler.dense",),
            "classifier": ("head.0", "head.3"),
            "embeddings": (patches, "beit3.text_embed"),
        }
    return Layout(
        family=FAMILY,
        layers="beit3.encoder.layers",
        attention="self_attn",
        linears=linears,
        others=others,
        shape={"channels": "num_channels", "patch": "patch_size"},
        example=question_example if words else example,
        norms=norms,
    )


def default_elastic(layers: int, heads: int, ffn: int) -> Elastic:
    """The space of InstaTune and SimQ-NAS for the base model (12, 12, 3072).

    Depth 11 and 12, heads 6, 8, 10, 12, FFN 2048, 2560, 3072; other sizes get the same fractions.
    """
    return Elastic(
        depth=tuple(range(max(min(2, layers), layers - max(1, round(layers / 12))), layers + 1)),
        heads=scaled(heads, (1 / 2, 2 / 3, 5 / 6, 1)),
        ffn=scaled(ffn, (2 / 3, 5 / 6, 1), multiple=8),
    )


def load(
    checkpoint: str,
    *,
    label_names: Sequence[str] | None = None,
    elastic: Elastic | None = None,
    precisions: Precisions | None = None,
) -> EncoderSupernet:
    """See ``qnas_plugin.supernets``.

    ``checkpoint`` is a folder with a ``config.json`` that names one of the two classes as its architecture, and weights
    of ours or one file ``*.pth`` as Microsoft publishes them.
    """
    layouts = {
        model.__name__: (model, layout(words=model is Beit3ForVisualQuestionAnswering))
        for model in (Beit3ForImageClassification, Beit3ForVisualQuestionAnswering)
    }
    supernet = load_encoder(
        layouts, checkpoint, label_names, default_elastic, elastic, precisions, config_class=Beit3Config
    )
    if not supernet.pretrained and (file := published(Path(checkpoint))):
        supernet.new_head = fill(supernet.model, file, new_head=label_names is not None)
        supernet.pretrained = True
    return supernet


def tiny(folder: Path) -> Tiny:
    """See ``qnas_plugin.supernets``; 4 layers, width 32, 4 heads, for questions about 8x8 images."""
    from qnas_plugin.supernets import _tiny
    from qnas_plugin.tasks._tiny import write_image_processor, write_question_tokenizer

    words = write_question_tokenizer(folder)
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_channels": 3}
    sizes |= {"vocab_size": words, "max_position_embeddings": 32}
    config = Beit3Config(**_tiny.SIZES, **sizes, **_tiny.classes(4))
    _tiny.write_encoder(folder, Beit3ForVisualQuestionAnswering, config, norms=True)
    write_image_processor(folder, channels=3)
    inputs = {**_tiny.pixels(channels=3), **_tiny.tokens(4, 7, (7, 5, 3))}
    return Tiny(folder, inputs, _tiny.ENCODER, _tiny.REFUSED, Beit3ForVisualQuestionAnswering)


def tiny_images(folder: Path) -> Tiny:
    """The same for the classes of scikit-learn's digits."""
    from qnas_plugin.supernets import _tiny
    from qnas_plugin.tasks._tiny import write_image_processor

    config = Beit3Config(**_tiny.SIZES, image_size=8, patch_size=4, num_channels=1, **_tiny.classes(10))
    _tiny.write_encoder(folder, Beit3ForImageClassification, config, norms=True)
    write_image_processor(folder)
    return Tiny(folder, _tiny.pixels(), _tiny.ENCODER, _tiny.REFUSED, Beit3ForImageClassification)
