from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qnas_plugin import registry
from qnas_plugin.data import Batch, SplitSizes
from qnas_plugin.errors import CheckpointError, DataError, UsageError
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.measure.metrics import METRICS
from qnas_plugin.space import Precision
from qnas_plugin.supernets import Elastic, beit3
from qnas_plugin.supernets._beit3_model import Beit3Config, Beit3ForImageClassification, Beit3ForVisualQuestionAnswering
from qnas_plugin.supernets._encoder import EncoderSupernet
from qnas_plugin.training.instatune import Settings, accuracy, train
from tests.sessions import HERE

ELASTIC = Elastic((2, 3, 4), (1, 2, 4), (16, 32, 48))
SETTING = RuntimeSetting(batch_size=3, sequence_length=6)
VISION = "beit3.encoder.layers.0.self_attn.q_proj.A.weight"


def logits(model: nn.Module, inputs: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model.eval()(**{name: torch.as_tensor(array) for name, array in inputs.items()}).logits)


@pytest.fixture
def published(beit3_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model in the layout of Microsoft's files, with a tensor that only pretraining uses."""
    state = Beit3ForVisualQuestionAnswering.from_pretrained(beit3_checkpoint).state_dict()
    state["beit3.vision_embed.mask_token"] = torch.zeros(1, 1, 32)
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save({"model": state}, folder / "beit3_tiny.pth")
    shutil.copy(beit3_checkpoint / "config.json", folder)
    return folder


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("model", "words", "others"),
    [(Beit3ForImageClassification, False, 2), (Beit3ForVisualQuestionAnswering, True, 3)],
)
def test_space_has_the_published_size_for_the_base_model(model: Any, words: bool, others: int) -> None:
    config = Beit3Config(hidden_size=12, vocab_size=10, image_size=16, max_position_embeddings=8)
    elastic = beit3.default_elastic(12, 12, 3072)
    supernet = EncoderSupernet(model(config), beit3.layout(words=words), elastic, pretrained=False)
    assert elastic == Elastic((11, 12), (6, 8, 10, 12), (2048, 2560, 3072))
    # DyNAS-T counts 10^34.93 with the 72 linear layers; ours are these and what stands outside the layers.
    assert len(supernet.groups) == 72 + others
    assert math.log10(supernet.space.genotypes) == pytest.approx(34.93 + others * math.log10(2), abs=0.01)


def test_names_are_those_of_published_checkpoints() -> None:
    config = Beit3Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=5, intermediate_size=16)
    names = set(Beit3ForVisualQuestionAnswering(config).state_dict())
    experts = ["self_attn_layer_norm", "final_layer_norm"]
    experts += [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj", "inner_attn_ln")]
    modules = [f"beit3.encoder.layers.0.{name}.{expert}" for name in experts for expert in "AB"]
    modules += [f"beit3.encoder.layers.0.ffn.{e}.{name}" for name in ("fc1", "fc2", "ffn_layernorm") for e in "AB"]
    modules += ["beit3.vision_embed.proj", "pooler.norm", "pooler.dense", "head.0", "head.1", "head.3"]
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    tables = ["text_embed", "encoder.embed_positions.A", "encoder.embed_positions.B"]
    assert names == expected | {f"beit3.{table}.weight" for table in tables} | {"beit3.vision_embed.cls_token"}


def test_padding_changes_no_answer(beit3_checkpoint: Path) -> None:
    model = beit3.load(str(beit3_checkpoint)).model
    inputs = dict(beit3.question_example(model.config, SETTING))
    padded = inputs | {
        "input_ids": np.pad(inputs["input_ids"], ((0, 0), (0, 3)), constant_values=7),
        "attention_mask": np.pad(inputs["attention_mask"], ((0, 0), (0, 3))),
    }
    np.testing.assert_allclose(logits(model, padded), logits(model, inputs), atol=1e-5)
    other = inputs | {"input_ids": np.roll(inputs["input_ids"], 1, axis=1)}
    assert not np.allclose(logits(model, other), logits(model, inputs), atol=1e-3)


def test_load_reads_the_published_layout(beit3_checkpoint: Path, published: Path) -> None:
    supernet = beit3.load(str(published))
    own = beit3.load(str(beit3_checkpoint))
    assert supernet.pretrained
    assert supernet.fingerprint == own.fingerprint
    fine = beit3.load(str(published), label_names=("a", "b", "c", "d", "e"))
    assert fine.label_names == ("a", "b", "c", "d", "e")
    torch.testing.assert_close(fine.model.state_dict()[VISION], own.model.state_dict()[VISION])


def test_load_takes_the_experts_of_images_alone(beit3_checkpoint: Path, published: Path) -> None:
    change(published, architectures=["Beit3ForImageClassification"])
    with pytest.raises(CheckpointError, match=r"tensor 'fc_norm\.weight' of shape \(32,\) is missing"):
        beit3.load(str(published))
    supernet = beit3.load(str(published), label_names=("a", "b"))
    state = Beit3ForVisualQuestionAnswering.from_pretrained(beit3_checkpoint).state_dict()
    for name, tensor in supernet.model.state_dict().items():
        assert ".B." not in name
        if name.startswith("beit3."):
            torch.testing.assert_close(tensor, state[name], msg=name)


def test_load_stretches_positions_to_the_size_of_the_images(beit3_checkpoint: Path, published: Path) -> None:
    change(published, image_size=16)
    table = "beit3.encoder.embed_positions.A.weight"
    before = Beit3ForVisualQuestionAnswering.from_pretrained(beit3_checkpoint).state_dict()[table]
    after = beit3.load(str(published)).model.state_dict()[table]
    assert after.shape == (2 + 1 + 16, 32)
    torch.testing.assert_close(after[:3], before[:3])
    corners = after[3:].view(4, 4, 32)[::3, ::3].reshape(4, 32)  # nearest to the four patches before
    assert torch.nn.functional.cosine_similarity(corners, before[3:]).min() > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 5}, r"layers\.4\..* is missing, .* more; check config\.json"),
        ({"num_hidden_layers": 3}, r"has no tensor 'beit3\.encoder\.layers\.3"),
        ({"intermediate_size": 64}, r"has the shape \(48, 32\)"),
        ({"architectures": None}, "the supernet 'beit3' takes Beit3ForImageClassification"),
    ],
)
def test_load_says_what_does_not_fit(published: Path, changes: dict[str, Any], message: str) -> None:
    change(published, **changes)
    with pytest.raises(CheckpointError, match=message):
        beit3.load(str(published))


def test_load_refuses_damaged_or_several_files(published: Path) -> None:
    (published / "beit3_tiny.pth").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        beit3.load(str(published))
    (published / "second.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has 2 \.pth files"):
        beit3.load(str(published))


def test_example_says_what_a_setting_lacks(beit3_checkpoint: Path) -> None:
    supernet = beit3.load(str(beit3_checkpoint))
    assert {name: array.shape for name, array in supernet.example(SETTING).items()} == {
        "pixel_values": (3, 3, 8, 8),
        "input_ids": (3, 6),
        "attention_mask": (3, 6),
    }
    for length, got in ((None, "none"), (31, "31")):
        with pytest.raises(UsageError, match=f"a sequence length of 1 to 30, got {got}"):
            supernet.example(RuntimeSetting(sequence_length=length))
    with pytest.raises(UsageError, match="this 'beit3' takes images of 8 pixels"):
        supernet.example(RuntimeSetting(sequence_length=6, resolution=9))
    with pytest.raises(DataError, match="give --task visual_question_answering"):
        supernet.model(torch.zeros(1, 3, 8, 8))


def test_order_sorts_each_expert_by_its_own_units_and_heads_together(beit3_checkpoint: Path) -> None:
    supernet = beit3.load(str(beit3_checkpoint), elastic=ELASTIC)
    before = {name: tensor.clone() for name, tensor in supernet.model.state_dict().items()}
    model = supernet.model
    supernet.order([Batch(supernet.example(SETTING), np.arange(3))])
    layer = "beit3.encoder.layers.0"
    after = model.state_dict()

    def moved(name: str, unit: int) -> list[int]:
        """Where each unit of a weight's outputs came from."""
        rows, olds = (state[f"{layer}.{name}.bias"].view(-1, unit) for state in (after, before))
        return [int((olds - row).abs().sum(1).argmin()) for row in rows]

    heads = {name: moved(f"self_attn.{name}", 8) for name in ("inner_attn_ln.A", "inner_attn_ln.B")}
    assert heads["inner_attn_ln.A"] == heads["inner_attn_ln.B"]
    units = {name: moved(f"ffn.{name}", 1) for name in ("A.ffn_layernorm", "B.ffn_layernorm")}
    assert units["A.ffn_layernorm"] != units["B.ffn_layernorm"]
    for found in (*heads.values(), *units.values()):
        assert sorted(found) == list(range(len(found)))
        assert found != sorted(found)


def test_a_trained_supernet_is_searched_with_questions(beit3_checkpoint: Path, questions: Path, tmp_path: Path) -> None:
    """The whole way: a plain teacher, a supernet that learns from it, and a candidate measured in INT8."""
    task = registry.load("tasks", "visual_question_answering")
    dataset = task.load(str(questions), sizes=SplitSizes(calibration=16, search=30))
    processor = task.processor(str(beit3_checkpoint))
    teacher, supernet = (
        beit3.load(str(beit3_checkpoint), label_names=dataset.label_names, elastic=ELASTIC) for _ in range(2)
    )
    plain = Settings(epochs=14, batch_size=16, learning_rate=2e-3, subnets="none")
    train(teacher, dataset, processor, plain, tmp_path / "plain")
    train(
        supernet,
        dataset,
        processor,
        Settings(epochs=14, batch_size=16, learning_rate=2e-3, subnets="sandwich"),
        tmp_path / "sandwich",
        teacher=teacher.model,
    )
    smallest = supernet.space.corners["smallest-fp32"]
    for candidate in (None, smallest):
        assert accuracy(supernet, candidate, dataset.report, processor, metric=METRICS["accuracy"]) > 0.8
    lab = Lab(supernet, dataset, processor, HERE, RuntimeSetting(sequence_length=8))
    lab.check(supernet.space.corner("smallest", Precision.FP32))
    evaluation = lab.evaluate(supernet.space.corner("largest", Precision.INT8), tmp_path)
    assert evaluation.metrics["accuracy"] > 0.8
