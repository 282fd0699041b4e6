from __future__ import annotations

import math
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from qnas_plugin.errors import UsageError
from qnas_plugin.supernets import Elastic, bert, vit
from qnas_plugin.supernets._encoder import EncoderSupernet, kept_layers


def test_kept_layers_are_nested_and_keep_both_ends() -> None:
    for layers in (2, 3, 6, 12):
        for depth in range(2, layers + 1):
            kept = kept_layers(layers, depth)
            assert len(kept) == depth
            assert {0, layers - 1} <= set(kept)
            assert set(kept) <= set(kept_layers(layers, min(layers, depth + 1)))


def test_kept_layers_thin_out_evenly() -> None:
    assert kept_layers(6, 4) == (0, 1, 3, 5)
    assert kept_layers(12, 6) == (0, 3, 5, 7, 9, 11)


def test_default_elastic_is_the_published_space_for_base_models() -> None:
    elastic = bert.default_elastic(12, 12, 3072)
    assert elastic.depth == tuple(range(6, 13))
    assert elastic.heads == (6, 8, 10, 12)
    assert elastic.ffn == (1024, 2048, 3072)
    assert vit.default_elastic(12, 12, 3072).depth == (10, 11, 12)
    minilm = bert.default_elastic(6, 12, 1536)
    assert (minilm.depth, minilm.heads, minilm.ffn) == ((3, 4, 5, 6), (6, 8, 10, 12), (512, 1024, 1536))


def test_space_has_the_published_size_for_bert_base() -> None:
    config = BertConfig(vocab_size=10, hidden_size=12, num_attention_heads=12, intermediate_size=3072)
    model = BertForSequenceClassification(config)
    supernet = EncoderSupernet(model, bert.LAYOUT, bert.default_elastic(12, 12, 3072), pretrained=False)
    precisions = [v for v in supernet.space.variables if v.kind == "precision"]
    assert len(precisions) == 74 + 1
    # DyNAS-T counts 10^36.07 genotypes with 74 groups; the embeddings are one binary group more.
    assert math.log10(supernet.space.genotypes) == pytest.approx(36.07 + math.log10(2), abs=0.01)


def test_load_refuses_one_layer(bert_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="smallest depth is 2"):
        bert.load(str(bert_checkpoint), elastic=Elastic(depth=(1, 4)))
