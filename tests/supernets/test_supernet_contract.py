"""Every registered supernet keeps its contract; that of another package is tested in ``tests/test_testing.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from qnas_plugin import registry
from qnas_plugin.errors import CheckpointError, UsageError
from qnas_plugin.supernets import Elastic, Tiny, beit3, check_trained
from qnas_plugin.testing.supernets import SupernetContract


class TestSupernets(SupernetContract):
    names = registry.names("supernets")


class TestBeit3ForImages(SupernetContract):
    names = ("beit3",)

    @classmethod
    def make(cls, name: str, folder: Path) -> Tiny:
        return beit3.tiny_images(folder)


@pytest.fixture(params=["bert", "resnet50"])
def given(request: pytest.FixtureRequest) -> tuple[Any, Path]:
    """A family of each loader, and its checkpoint."""
    return registry.load("supernets", request.param), request.getfixturevalue(f"{request.param}_checkpoint")


def test_load_says_what_is_wrong_with_a_checkpoint(given: tuple[Any, Path], tmp_path: Path) -> None:
    load = given[0].load
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load(str(tmp_path / "missing"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="'gpt2' model"):
        load(str(tmp_path))
    for text, message in (
        ("{", "cannot read .*supernet.json as JSON"),
        ('{"schema_version": 99, "supernet": "x", "elastic": {}}', "version 99"),
    ):
        (tmp_path / "supernet.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            load(str(tmp_path))


def test_load_says_what_is_wrong_with_choices(given: tuple[Any, Path]) -> None:
    family, checkpoint = given
    unordered, unknown = (
        (Elastic(heads=(2, 3)), Elastic(kernel=(3, 5)))
        if family.__name__.endswith("bert")
        else (Elastic(width=(0.5, 0.8)), Elastic(heads=(1, 4)))
    )
    with pytest.raises(UsageError, match="must be ascending"):
        family.load(str(checkpoint), elastic=unordered)
    with pytest.raises(UsageError, match="no elastic (kernel|heads)"):
        family.load(str(checkpoint), elastic=unknown)


def test_load_takes_a_checkpoint_of_the_body_alone(tmp_path: Path) -> None:
    """As published pretrained models are: other heads are left out, the own one is new, and nothing else."""
    config = BertConfig(vocab_size=20, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48)
    for number, (kind, lacks) in enumerate({BertModel: 2, BertForMaskedLM: 4, BertForPreTraining: 2}.items()):
        kind(config).save_pretrained(tmp_path / str(number))
        loaded = registry.load("supernets", "bert").load(str(tmp_path / str(number)))
        assert len(loaded.new_head) == lacks
        assert all("classifier" in name or "pooler" in name for name in loaded.new_head)
        with pytest.raises(CheckpointError, match=r"no trained head .*classifier\.weight.* qnas train"):
            check_trained(loaded, "it")
