from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from qnas_plugin import registry
from qnas_plugin.errors import CheckpointError, UsageError
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.latency.parts_alone import isolate
from qnas_plugin.latency.rows import Decomposition
from qnas_plugin.space import Precision
from qnas_plugin.supernets import Elastic
from qnas_plugin.supernets._cnn import CnnSupernet
from qnas_plugin.supernets._cnn_checkpoint import ofa_name
from qnas_plugin.supernets._cnn_layers import ElasticConv, divisible

MODEL_TYPE = {"resnet50": "resnet", "mobilenet_v3": "mobilenet_v2"}


def published(family: str, folder: Path) -> CnnSupernet:
    """The network at its full size, with random weights."""
    (folder / "config.json").write_text(json.dumps({"model_type": MODEL_TYPE[family]}))
    loaded: CnnSupernet = registry.load("supernets", family).load(
        str(folder), label_names=[str(i) for i in range(1000)]
    )
    return loaded


def ofa_state(family: str, supernet: CnnSupernet) -> dict[str, torch.Tensor]:
    """The weights under the names of OFA's elastic networks (``once-for-all``, ``ofa_resnets.py``, ``ofa_mbv3.py``)."""
    elastic = family == "resnet50"
    renamed = {}
    for name, tensor in supernet.model.state_dict().items():
        head, _, tail = name.rpartition(".")
        head = head.replace(".se.", ".depth_conv.se.fc.")
        if family == "mobilenet_v3":
            number, _, rest = head.removeprefix("blocks.").partition(".")
            if head.startswith("blocks."):
                head = f"blocks.{number}.mobile_inverted_conv.{rest}"
                elastic = number != "0"
            else:
                elastic = False
        if head.startswith("input_stem.1."):
            head = head.replace("input_stem.1.", "input_stem.1.conv.")
        if tail.endswith("_matrix"):
            pass  # a parameter of the elastic convolution, which wraps the plain one
        elif head == "classifier":
            head += ".linear" + (".linear" if elastic else "")
        elif elastic and head.endswith((".conv", ".bn")):
            head += "." + head.rpartition(".")[2]
        renamed[f"{head}.{tail}"] = tensor
    return renamed


def test_resnet50_has_the_published_space(tmp_path: Path) -> None:
    supernet = published("resnet50", tmp_path)
    space = supernet.space
    shaping = [variable for variable in space.variables if variable.kind == "architecture"]
    convs = [layer for layer in supernet.plan.layers if layer.group != "classifier"]
    assert len(convs) == len({layer.group for layer in convs}) == 61
    # Published: 5 depths, 18 expansions, 6 widths of 3 choices, and for each convolution 2 formats times 2 schemes.
    genotypes = 3 ** (5 + 18 + 6) * 4**61
    assert math.log10(genotypes) == pytest.approx(50.56, abs=0.005)
    # Here the stem is deep or not, FP32 has no scheme, and the classifier is one group more.
    assert sum(len(variable.choices) == 3 for variable in shaping) == 28
    assert space.genotypes * 3 * 4**61 == genotypes * 2 * 3**61 * 2


def test_mobilenet_v3_has_the_published_space(tmp_path: Path) -> None:
    supernet = published("mobilenet_v3", tmp_path)
    shaping = [variable for variable in supernet.space.variables if variable.kind == "architecture"]
    assert [len(variable.choices) for variable in shaping] == [3] * 45
    assert math.log10(3**45) == pytest.approx(21.47, abs=0.005)
    assert {v.choices for v in shaping} == {(2, 3, 4), (3, 5, 7), (3, 4, 6)}


def conv(inputs: int, outputs: int, kernel: int) -> int:
    """Parameters of a convolution and its BatchNorm."""
    return inputs * outputs * kernel**2 + 2 * outputs


def parameters(supernet: CnnSupernet) -> int:
    """Of the largest subnet, without the matrices that smaller kernels come from."""
    named = supernet.model.named_parameters()
    return sum(parameter.numel() for name, parameter in named if not name.endswith("_matrix"))


def test_resnet50_has_the_published_widths(tmp_path: Path) -> None:
    expected = conv(3, 32, 3) + conv(32, 32, 3) + conv(32, 64, 3) + 2048 * 1000 + 1000
    inputs = 64
    for outputs, inner, depth in ((256, 88, 4), (512, 176, 4), (1024, 360, 6), (2048, 720, 4)):
        expected += conv(inputs, outputs, 1)
        for _ in range(depth):
            expected += conv(inputs, inner, 1) + conv(inner, inner, 3) + conv(inner, outputs, 1)
            inputs = outputs
    assert parameters(published("resnet50", tmp_path)) == expected


def test_mobilenet_v3_has_the_published_widths(tmp_path: Path) -> None:
    expected = conv(3, 16, 3) + conv(1, 16, 3) + conv(16, 16, 1) + conv(160, 960, 1) + 960 * 1280 + 1280 * 1000 + 1000
    inputs = 16
    for outputs, squeezed in ((24, False), (40, True), (80, False), (112, True), (160, True)):
        for _ in range(4):
            inner = 6 * inputs
            expected += conv(inputs, inner, 1) + conv(1, inner, 7) + conv(inner, outputs, 1)
            if squeezed:
                middle = divisible(inner // 4)
                expected += 2 * inner * middle + middle + inner
            inputs = outputs
    assert parameters(published("mobilenet_v3", tmp_path)) == expected


@pytest.mark.parametrize("family", MODEL_TYPE)
def test_masks_of_skipped_blocks_drop_their_variables(family: str, request: pytest.FixtureRequest) -> None:
    supernet = registry.load("supernets", family).load(str(request.getfixturevalue(f"{family}_checkpoint")))
    smallest = supernet.space.corner("smallest", Precision.INT8)
    cut = supernet.cut(smallest)
    assert set(cut.skipped) == set(supernet.plan.optional)
    for layer in supernet.plan.layers:
        skipped = any(layer.path.startswith(f"{path}.") for path in cut.skipped)
        assert skipped == (f"precision.{layer.group}" not in smallest) == (layer.path not in cut.widths)
    assert not any(name.startswith(f"{path.replace('blocks', 'block')}.") for path in cut.skipped for name in smallest)


@pytest.mark.parametrize("family", MODEL_TYPE)
def test_parts_have_a_row_where_a_tensor_changes_between_int8_and_fp32(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    supernet: CnnSupernet = registry.load("supernets", family).load(
        str(request.getfixturevalue(f"{family}_checkpoint"))
    )
    space, decomposition = supernet.space, Decomposition(supernet.space, supernet.parts)
    changes = np.array([key.kind.endswith(".boundary") for key in decomposition.keys])
    groups = {layer.path: layer.group for layer in supernet.plan.layers}
    for genes in space.sample(10, np.random.default_rng(0)):
        candidate = space.decode(genes)
        formats = [candidate.get(f"precision.{groups[path]}") for path in supernet.plan.stream]
        expected = sum(
            None not in (a, b) and (a == Precision.FP32) != (b == Precision.FP32) for a, b in pairwise(formats)
        )
        assert decomposition.counts(genes[None])[0, changes].sum() == expected
    key = next(key for key, change in zip(decomposition.keys, changes.tolist(), strict=True) if change)
    inputs = supernet.example(RuntimeSetting())
    (alone,) = isolate(supernet.graph(inputs), supernet, decomposition, inputs, tmp_path, [key])
    assert [node.op_type for node in alone.model.graph.node] == ["QuantizeLinear", "DequantizeLinear"]
    onnxruntime.InferenceSession(alone.model.SerializeToString()).run(None, dict(alone.inputs))
    for key in decomposition.keys:
        if "beside" in dict(key.values):  # the other reader of what is pooled
            (alone,) = isolate(supernet.graph(inputs), supernet, decomposition, inputs, tmp_path, [key])
            assert [n.op_type for n in alone.model.graph.node] == ["MaxPool", "QuantizeLinear", "DequantizeLinear"]
            onnxruntime.InferenceSession(alone.model.SerializeToString()).run(None, dict(alone.inputs))
            break
    assert ("beside" in dict(key.values)) == (family == "resnet50")


@pytest.mark.parametrize("family", MODEL_TYPE)
def test_load_reads_the_layout_of_once_for_all(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    supernet = registry.load("supernets", family).load(str(checkpoint))
    state = ofa_state(family, supernet)
    assert "blocks.1.conv1.conv.conv.weight" in state or "blocks.1.mobile_inverted_conv.depth_conv.bn.bn.bias" in state
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    torch.save({"state_dict": state}, tmp_path / "published.pth")
    loaded = registry.load("supernets", family).load(str(tmp_path))
    assert loaded.pretrained
    assert loaded.fingerprint == supernet.fingerprint
    relabelled = registry.load("supernets", family).load(str(tmp_path), label_names=["a", "b"])
    assert relabelled.label_names == ("a", "b")
    del state[next(name for name in state if "bn" in name)]
    torch.save(state, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match="is missing"):
        registry.load("supernets", family).load(str(tmp_path))
    (tmp_path / "published.pth").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        registry.load("supernets", family).load(str(tmp_path))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("module.input_stem.0.conv.conv.weight", "input_stem.0.conv.weight"),
        ("input_stem.1.conv.conv.conv.weight", "input_stem.1.conv.weight"),
        ("input_stem.1.conv.bn.bn.running_var", "input_stem.1.bn.running_var"),
        ("blocks.3.downsample.conv.conv.weight", "blocks.3.downsample.conv.weight"),
        ("blocks.0.mobile_inverted_conv.depth_conv.conv.weight", "blocks.0.depth_conv.conv.weight"),
        ("blocks.7.conv.depth_conv.conv.7to5_matrix", "blocks.7.depth_conv.conv.7to5_matrix"),
        ("blocks.7.conv.depth_conv.se.fc.reduce.bias", "blocks.7.se.reduce.bias"),
        ("feature_mix_layer.conv.weight", "feature_mix_layer.conv.weight"),
        ("classifier.linear.linear.weight", "classifier.weight"),
    ],
)
def test_ofa_name_is_ours(theirs: str, ours: str) -> None:
    assert ofa_name(theirs) == ours


def test_weight_of_a_smaller_kernel_is_the_transformed_centre() -> None:
    """Written out by loops: the centre of the next larger kernel, as a vector, times the matrix."""
    conv = ElasticConv(2, 2, (3, 5, 7), depthwise=True)
    with torch.no_grad():
        conv.get_parameter("7to5_matrix").normal_()
        conv.get_parameter("5to3_matrix").normal_()
    five = np.empty((2, 5, 5))
    three = np.empty((2, 3, 3))
    for channel in range(2):
        centre = conv.weight[channel, 0].detach().numpy()[1:6, 1:6].ravel()
        five[channel] = (conv.get_parameter("7to5_matrix").detach().numpy() @ centre).reshape(5, 5)
        three[channel] = (conv.get_parameter("5to3_matrix").detach().numpy() @ five[channel, 1:4, 1:4].ravel()).reshape(
            3, 3
        )
    np.testing.assert_allclose(conv.weight_of(5)[:, 0].detach().numpy(), five, atol=1e-5)
    np.testing.assert_allclose(conv.weight_of(3)[:, 0].detach().numpy(), three, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4, 7, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_training_pads_small_images_as_inference_does(size: int, stride: int) -> None:
    conv = ElasticConv(6, 6, (3, 5, 7), stride, depthwise=True)
    images = torch.randn(2, 6, size, size)
    for kernel in conv.kernels:
        conv.kernel = kernel
        torch.testing.assert_close(conv.train()(images), conv.eval()(images))


def test_divisible_keeps_nine_tenths() -> None:
    assert [divisible(n) for n in (3, 11, 12, 41.6, 64, 166.4)] == [8, 16, 16, 40, 64, 168]


def test_load_refuses_a_configuration_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "resnet", "depths": [4, 4]}')
    with pytest.raises(CheckpointError, match="is no configuration of 'resnet50'"):
        registry.load("supernets", "resnet50").load(str(tmp_path))


def test_load_refuses_another_elastic_dimension(resnet50_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="'resnet50' has no elastic kernel; it has: depth, expand, width"):
        registry.load("supernets", "resnet50").load(str(resnet50_checkpoint), elastic=Elastic(kernel=(3, 5)))
