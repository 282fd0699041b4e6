"""BERT encoders for sequence classification (BERT, MiniLM): elastic depth, heads and feed-forward widths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qnas_plugin.data import Inputs
from qnas_plugin.errors import UsageError
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.supernets import Elastic, Tiny
from qnas_plugin.supernets._encoder import EncoderSupernet, Layout
from qnas_plugin.supernets._encoder_checkpoint import load_encoder, scaled


def example(config: Any, setting: RuntimeSetting) -> Inputs:
    """Random tokens and a full mask, each ``(batch, sequence length)``."""
    length, longest = setting.sequence_length, config.max_position_embeddings
    if length is None or length > longest:
        got = "none" if length is None else str(length)
        raise UsageError(f"the supernet 'bert' needs a sequence length of 1 to {longest}, got {got}; give --seq-len")
    shape = (setting.batch_size, length)
    return {
        "input_ids": np.random.default_rng(0).integers(0, config.vocab_size, shape),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
        "attention_mask": np.ones(shape, dtype=np.int64),
    }


LAYOUT = Layout(
    family="bert",
    layers="bert.encoder.layer",
    attention="attention.self",
    linears={
        "query": ("attention.self.query",),
        "key": ("attention.self.key",),
        "value": ("attention.self.value",),
        "attention_output": ("attention.output.dense",),
        "intermediate": ("intermediate.dense",),
        "output": ("output.dense",),
    },
    others={
        "pooler": ("bert.pooler.dense",),
        "classifier": ("classifier",),
        "embeddings": (
            "bert.embeddings.word_embeddings",
            "bert.embeddings.position_embeddings",
            "bert.embeddings.token_type_embeddings",
        ),
    },
    shape={},
    example=example,
)


def default_elastic(layers: int, heads: int, ffn: int) -> Elastic:
    """The space of SimQ-NAS for BERT-base (12, 12, 3072): depth 6 to 12, heads 6, 8, 10, 12, FFN 1024, 2048, 3072.

    Other sizes get the same fractions.
    """
    return Elastic(
        depth=tuple(range(max(min(2, layers), layers // 2), layers + 1)),
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
    from transformers import BertForSequenceClassification

    layouts = {"bert": (BertForSequenceClassification, LAYOUT)}
    return load_encoder(layouts, checkpoint, label_names, default_elastic, elastic, precisions)


def tiny(folder: Path) -> Tiny:
    """See ``qnas_plugin.supernets``; a BERT of 4 layers, width 32, 4 heads, with a word tokenizer."""
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    from qnas_plugin.supernets import _tiny
    from qnas_plugin.tasks._tiny import write_tokenizer

    words = write_tokenizer(folder)
    config = BertConfig(vocab_size=words, **_tiny.SIZES, max_position_embeddings=64, **_tiny.classes(2))
    _tiny.write_encoder(folder, BertForSequenceClassification, config)
    inputs = {**_tiny.tokens(5, 9, (9, 6, 2)), "token_type_ids": np.zeros((3, 9), dtype=np.int64)}
    return Tiny(folder, inputs, _tiny.ENCODER, _tiny.REFUSED, AutoModelForSequenceClassification)
