from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import (
    BitImageProcessor,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from qnas_plugin.build.slice import materialize
from qnas_plugin.errors import CheckpointError
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.supernets import Elastic, vit
from qnas_plugin.supernets._encoder import EncoderSupernet

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 2,
    "num_channels": 1,
    "num_labels": 3,
    "initializer_range": 0.2,
}


def deit() -> PreTrainedModel:
    return DeiTForImageClassification(DeiTConfig(**SIZES, intermediate_size=48, image_size=8))


def dinov2() -> PreTrainedModel:
    """Trained at 12 pixels, with layer scales that do something."""
    return Dinov2ForImageClassification(Dinov2Config(**SIZES, mlp_ratio=2, image_size=12, layerscale_value=0.7))


@pytest.mark.parametrize("make", [deit, dinov2])
def test_load_takes_other_vision_transformers(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = make().eval()
    plain.save_pretrained(tmp_path)
    crop = {"height": 8, "width": 8}
    BitImageProcessor(size={"shortest_edge": 9}, crop_size=crop).save_pretrained(tmp_path)
    ffn = 48 if plain.config.model_type == "deit" else 64
    supernet = vit.load(str(tmp_path), elastic=Elastic((2, 3), (1, 2, 4), (16, ffn)))
    inputs = supernet.example(RuntimeSetting(batch_size=2))
    assert inputs["pixel_values"].shape == (2, 1, 8, 8)
    pixels = torch.as_tensor(inputs["pixel_values"])
    with torch.no_grad():
        expected = plain(pixels).logits.numpy()
        np.testing.assert_allclose(supernet.model(pixels).logits.numpy(), expected, atol=1e-5)
    graph = supernet.graph(inputs)
    assert not any(node.op_type == "Resize" for node in graph.model.graph.node)
    for genes in supernet.space.sample(4, np.random.default_rng(0)):
        candidate = supernet.space.decode(genes)
        cut = supernet.cut(candidate)
        session = onnxruntime.InferenceSession(materialize(graph, cut).SerializeToString())
        (got,) = session.run(["logits"], dict(inputs))
        np.testing.assert_allclose(got, supernet.outputs(candidate, inputs)["logits"], atol=1e-5)
    supernet.save(tmp_path / "saved")
    again = vit.load(str(tmp_path / "saved"))
    assert again.fingerprint == supernet.fingerprint
    reloaded = type(plain).from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        np.testing.assert_allclose(reloaded(pixels).logits.numpy(), expected, atol=1e-5)


def test_load_refuses_a_dinov2_with_gated_layers(tmp_path: Path) -> None:
    Dinov2ForImageClassification(Dinov2Config(**SIZES, image_size=8, use_swiglu_ffn=True)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="of a kind that 'vit' does not have"):
        vit.load(str(tmp_path))


def test_space_has_the_published_size_for_vit_base() -> None:
    config = ViTConfig(hidden_size=12, num_attention_heads=12, intermediate_size=3072, image_size=16)
    supernet = EncoderSupernet(
        ViTForImageClassification(config), vit.layout("vit"), vit.default_elastic(12, 12, 3072), pretrained=False
    )
    # Published are 72 linear layers, the final norm and the head; the norm has nothing to quantize, the patch embedding
    # has. So there are 74 groups in both.
    assert len(supernet.groups) == 74
    assert math.log10(supernet.space.genotypes) == pytest.approx(35.70, abs=0.01)
