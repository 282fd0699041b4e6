"""What every registered supernet promises, on tiny random models of the real classes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
)

from qnas_plugin import registry
from qnas_plugin.build.export import export_module
from qnas_plugin.build.graph import Graph
from qnas_plugin.build.slice import materialize
from qnas_plugin.data import Batch, Inputs
from qnas_plugin.errors import CheckpointError, UsageError
from qnas_plugin.latency.parts_alone import build, isolate
from qnas_plugin.latency.rows import Decomposition, join
from qnas_plugin.space import Candidate, Precision
from qnas_plugin.supernets import Elastic, Supernet, check_labels, check_trained
from qnas_plugin.supernets._beit3_model import Beit3ForImageClassification, Beit3ForVisualQuestionAnswering
from qnas_plugin.supernets._cnn_layers import ElasticConv, ElasticNorm
from tests.sessions import session
from tests.supernets import tiny_cnn

PIXELS = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
INPUTS = {
    "bert": {
        "input_ids": np.random.default_rng(0).integers(5, 20, (3, 9)),
        "attention_mask": np.array([[1] * 9, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7]),
        "token_type_ids": np.zeros((3, 9), dtype=np.int64),
    },
    "beit3": {
        "pixel_values": PIXELS.repeat(3, axis=1),
        "input_ids": np.random.default_rng(0).integers(4, 20, (3, 7)),
        "attention_mask": np.array([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4]),
    },
    **{f: {"pixel_values": PIXELS} for f in ("beit3_images", "mobilenet_v3", "resnet50", "tiny_cnn", "vit")},
}
LABELS = {"beit3": 4, "beit3_images": 10, "bert": 2, "mobilenet_v3": 10, "resnet50": 10, "tiny_cnn": 10, "vit": 10}
ENCODER = Elastic((2, 3, 4), (1, 2, 4), (16, 32, 48))
ELASTIC = {
    "beit3": ENCODER,
    "beit3_images": ENCODER,
    "bert": ENCODER,
    "mobilenet_v3": Elastic(depth=(1, 2)),
    "resnet50": Elastic(),
    "tiny_cnn": Elastic(),
    "vit": ENCODER,
}
WRONG = {
    "beit3": Elastic(heads=(2, 3)),
    "beit3_images": Elastic(heads=(2, 3)),
    "bert": Elastic(heads=(2, 3)),
    "mobilenet_v3": Elastic(kernel=(7, 3)),
    "resnet50": Elastic(width=(0.5, 0.8)),
    "tiny_cnn": Elastic(expand=(2, 1, 4)),
    "vit": Elastic(heads=(2, 3)),
}
PLAIN = {
    "beit3": Beit3ForVisualQuestionAnswering,
    "beit3_images": Beit3ForImageClassification,
    "bert": AutoModelForSequenceClassification,
    "vit": AutoModelForImageClassification,
}
"""Families whose classes have Hugging Face's ``from_pretrained``."""


def module(family: str) -> Any:
    """The one of the guide is not installed; what is, is found by its name."""
    return tiny_cnn if family == "tiny_cnn" else registry.load("supernets", family.removesuffix("_images"))


@pytest.fixture(scope="module", params=[*registry.names("supernets"), "beit3_images", "tiny_cnn"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(family: str, request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{family}_checkpoint")
    return path


@pytest.fixture
def supernet(family: str, checkpoint: Path) -> Supernet:
    loaded: Supernet = module(family).load(str(checkpoint), elastic=ELASTIC[family])
    return loaded


@pytest.fixture(scope="module")
def graph(family: str, checkpoint: Path) -> Graph:
    """Of a supernet in its first state."""
    supernet = module(family).load(str(checkpoint), elastic=ELASTIC[family])
    return supernet.graph({name: array[:1] for name, array in INPUTS[family].items()})


def run(supernet: Supernet, family: str) -> np.ndarray:
    with torch.no_grad():
        output = supernet.model(**{name: torch.as_tensor(array) for name, array in INPUTS[family].items()})
    return np.asarray(output.logits)


def logits(model: bytes, inputs: Inputs) -> np.ndarray:
    opened = session(model)
    return np.asarray(opened.run(["logits"], {node.name: inputs[node.name] for node in opened.get_inputs()})[0])


def sampled(supernet: Supernet, count: int) -> list[Candidate]:
    return [supernet.space.decode(genes) for genes in supernet.space.sample(count, np.random.default_rng(1))]


def hard_pruned(supernet: Supernet, candidate: Candidate) -> torch.nn.Module:
    """The subnet as a model of its own, every layer cut to size: the plain way, with nothing shared."""
    supernet.activate(candidate)
    model = copy.deepcopy(supernet.model)
    supernet.activate(None)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and hasattr(module, "width"):
            inputs, outputs = module.width
            linear = torch.nn.Linear(inputs, outputs, bias=module.bias is not None)
            linear.weight.data = module.weight.data[:outputs, :inputs].clone()
            if module.bias is not None:
                linear.bias.data = module.bias.data[:outputs].clone()
            model.set_submodule(name, linear)
        elif isinstance(module, torch.nn.LayerNorm) and hasattr(module, "width"):
            norm = torch.nn.LayerNorm(module.width[1], module.eps)
            norm.load_state_dict({key: value[: module.width[1]] for key, value in module.state_dict().items()})
            model.set_submodule(name, norm)
        elif isinstance(module, ElasticConv):
            inputs, outputs = module.width
            groups = outputs if module.groups > 1 else 1
            padding, bias = module.kernel // 2, module.bias is not None
            conv = torch.nn.Conv2d(inputs, outputs, module.kernel, module.stride, padding, groups=groups, bias=bias)
            conv.weight.data = module.weight_of(module.kernel).data[:outputs, :inputs].clone()
            if module.bias is not None:
                conv.bias.data = module.bias.data[:outputs].clone()
            model.set_submodule(name, conv)
        elif isinstance(module, ElasticNorm):
            norm = torch.nn.BatchNorm2d(module.width)
            norm.load_state_dict(
                {key: value[: module.width] if value.ndim else value for key, value in module.state_dict().items()}
            )
            model.set_submodule(name, norm)
    return model.eval()


def test_model_computes_what_hugging_face_does_when_whole(supernet: Supernet, family: str, checkpoint: Path) -> None:
    if family not in PLAIN:
        pytest.skip("a class of our own")
    plain = PLAIN[family].from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = plain(**{name: torch.as_tensor(array) for name, array in INPUTS[family].items()}).logits.numpy()
    np.testing.assert_allclose(run(supernet, family), expected, atol=1e-5)


def test_activate_computes_the_hard_pruned_subnet(supernet: Supernet, family: str) -> None:
    for candidate in sampled(supernet, 5):
        pruned = hard_pruned(supernet, candidate)
        with torch.no_grad():
            expected = pruned(**{name: torch.as_tensor(array) for name, array in INPUTS[family].items()}).logits
        supernet.activate(candidate)
        np.testing.assert_allclose(run(supernet, family), expected.numpy(), atol=1e-5)


def test_activate_restores_the_whole_supernet_when_none(supernet: Supernet, family: str) -> None:
    before = run(supernet, family)
    supernet.activate(sampled(supernet, 1)[0])
    assert not np.allclose(run(supernet, family), before)
    supernet.activate(None)
    np.testing.assert_array_equal(run(supernet, family), before)


def test_order_keeps_the_function_and_sorts_units(supernet: Supernet, family: str) -> None:
    before = run(supernet, family)
    smallest = supernet.space.corners["smallest-fp32"]
    supernet.activate(smallest)
    small_before = run(supernet, family)
    supernet.activate(None)
    supernet.order([Batch(INPUTS[family], np.arange(3))])
    np.testing.assert_allclose(run(supernet, family), before, atol=1e-5)
    supernet.activate(smallest)
    assert not np.allclose(run(supernet, family), small_before, atol=1e-5)


def test_materialize_matches_torch_for_random_subnets(supernet: Supernet, family: str, graph: Graph) -> None:
    for candidate in sampled(supernet, 6):
        cut = supernet.cut(candidate)
        got = logits(materialize(graph, cut).SerializeToString(), INPUTS[family])
        supernet.activate(candidate)
        np.testing.assert_allclose(got, run(supernet, family), atol=1e-5)
        supernet.activate(None)


def test_materialize_matches_the_plain_export_of_the_subnet(supernet: Supernet, family: str, graph: Graph) -> None:
    candidate = sampled(supernet, 3)[2]
    plain = export_module(hard_pruned(supernet, candidate), INPUTS[family])
    sliced = materialize(graph, supernet.cut(candidate))
    np.testing.assert_allclose(
        logits(sliced.SerializeToString(), INPUTS[family]), logits(plain.SerializeToString(), INPUTS[family]), atol=1e-5
    )
    assert sliced.ByteSize() < 1.05 * plain.ByteSize()


def test_export_does_not_depend_on_the_order_of_its_inputs(supernet: Supernet, family: str) -> None:
    """Tokenizers give token_type_ids before attention_mask, the model's signature has them the other way round."""
    if len(INPUTS[family]) == 1:
        pytest.skip("one input has no order")
    cut = supernet.cut(supernet.space.corner("largest", Precision.FP32))
    turned = dict(reversed(INPUTS[family].items()))
    got = logits(materialize(supernet.graph(turned), cut).SerializeToString(), INPUTS[family])
    np.testing.assert_allclose(got, run(supernet, family), atol=1e-5)


def test_materialize_is_deterministic(supernet: Supernet, family: str, graph: Graph) -> None:
    cut = supernet.cut(sampled(supernet, 1)[0])
    inputs = {name: array[:1] for name, array in INPUTS[family].items()}
    files = [materialize(g, cut).SerializeToString(deterministic=True) for g in (graph, supernet.graph(inputs))]
    assert files[0] == files[1]


def test_groups_name_nodes_of_every_subnet(supernet: Supernet, family: str, graph: Graph) -> None:
    assert list(graph.groups) == [v.group for v in supernet.space.variables if v.kind == "precision"]
    for candidate in sampled(supernet, 4):
        nodes = {node.name for node in materialize(graph, supernet.cut(candidate)).graph.node}
        for group, names in graph.groups.items():
            assert (group in supernet.space.policy(candidate)) == all(name in nodes for name in names), group


def test_emit_lands_each_group_of_random_candidates(supernet: Supernet, family: str, graph: Graph) -> None:
    for candidate in sampled(supernet, 3):
        build(graph, supernet, candidate)  # raises where a group has not landed


def test_parts_are_rows_of_a_table_and_own_each_node_once(
    supernet: Supernet, family: str, tmp_path: Path, graph: Graph
) -> None:
    """The rows of the largest FP32 network, timed alone, hold its nodes: each once, constants apart."""
    space = supernet.space
    largest = space.corner("largest", Precision.FP32)
    decomposition = Decomposition(space, join(supernet.parts, "linear"))
    active = decomposition.counts(space.encode(largest)[None])[0]
    there = [part for part in supernet.parts if part.reader is None]  # all is FP32, so that no tensor changes
    assert active.sum() == sum(all(name in largest for name in part.variables.values()) for part in there)
    inputs = {name: array[:1] for name, array in INPUTS[family].items()}
    only = [key for key, count in zip(decomposition.keys, active.tolist(), strict=True) if count]
    found = {alone.key: alone.model for alone in isolate(graph, supernet, decomposition, inputs, tmp_path, only)}
    whole = materialize(graph, supernet.cut(largest)).graph
    owned = sum(
        count * sum(node.op_type != "Constant" for node in found[key].graph.node)
        for key, count in zip(decomposition.keys, active.tolist(), strict=True)
        if key in found
    )
    assert owned == sum(node.op_type != "Constant" for node in whole.node)


def test_save_round_trips_and_hugging_face_reads_it(
    supernet: Supernet, family: str, tmp_path: Path, checkpoint: Path
) -> None:
    supernet.order([Batch(INPUTS[family], np.arange(3))])
    supernet.activate(supernet.space.corners["smallest-fp32"])
    supernet.save(tmp_path)
    supernet.activate(None)
    loaded = module(family).load(str(tmp_path))
    assert loaded.fingerprint == supernet.fingerprint
    assert loaded.space == supernet.space
    np.testing.assert_array_equal(run(loaded, family), run(supernet, family))
    if family not in PLAIN:
        return
    plain = PLAIN[family].from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = plain(**{name: torch.as_tensor(array) for name, array in INPUTS[family].items()}).logits.numpy()
    np.testing.assert_allclose(run(supernet, family), expected, atol=1e-5)


def test_load_fails_clearly(family: str, checkpoint: Path, tmp_path: Path) -> None:
    load = module(family).load
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load(str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="must be ascending"):
        load(str(checkpoint), elastic=WRONG[family])
    with pytest.raises(UsageError, match="no elastic (kernel|heads)"):
        load(str(checkpoint), elastic=Elastic(heads=(1, 4)) if family not in PLAIN else Elastic(kernel=(3, 5)))
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


def changed_checkpoint(checkpoint: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> str:
    """A copy whose weights were changed."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def body_tensor(checkpoint: Path) -> str:
    """The name of a weight in the middle of the network."""
    names = sorted(name for name, tensor in load_file(checkpoint / "model.safetensors").items() if tensor.ndim >= 2)
    return [name for name in names if not name.startswith(("classifier", "head", "pooler"))][len(names) // 2]


@pytest.mark.parametrize("labels", [False, True], ids=["as it is", "with new classes"])
@pytest.mark.parametrize("damage", ["missing", "renamed", "unexpected", "reshaped", "empty", "layers"])
def test_load_names_tensors_that_do_not_fit(
    damage: str, labels: bool, family: str, checkpoint: Path, tmp_path: Path
) -> None:
    """Whether or not a new head is allowed: the rest of the network never gets random weights."""
    name = body_tensor(checkpoint)
    layer = ".".join(name.split(".")[: next(i for i, part in enumerate(name.split(".")) if part.isdigit()) + 1])

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if damage == "unexpected":
            tensors[f"{layer}.more.weight"] = torch.zeros(1)
        elif damage == "reshaped":
            tensors[name] = tensors[name][:1].clone()
        elif damage == "empty":
            tensors.clear()
        elif damage == "layers":
            for own in [own for own in tensors if own.startswith(f"{layer}.")]:
                del tensors[own]
        else:
            tensor = tensors.pop(name)
            if damage == "renamed":
                tensors[f"{name}_of_another_name"] = tensor

    folder = changed_checkpoint(checkpoint, tmp_path / "copy", change)
    given = [f"{i}" for i in range(LABELS[family] + 1)] if labels else None
    with pytest.raises(CheckpointError, match=r"missing|has no tensor|shape") as error:
        module(family).load(folder, label_names=given)
    named = {"unexpected": f"{layer}.more.weight", "empty": "is missing", "layers": layer}.get(damage, name)
    assert named in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_load_tells_which_tensors_of_a_head_are_new(family: str, checkpoint: Path) -> None:
    assert module(family).load(str(checkpoint)).new_head == ()
    new = module(family).load(str(checkpoint), label_names=[f"{i}" for i in range(LABELS[family] + 1)])
    shapes = {name: tensor.shape for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    assert new.new_head
    assert {name for name, tensor in new.model.state_dict().items() if shapes.get(name) != tensor.shape} == {
        *new.new_head
    }
    with pytest.raises(CheckpointError, match="has no trained head"):
        check_trained(new, str(checkpoint))


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


def test_load_gives_random_weights_when_there_are_none(family: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    first, second = (module(family).load(str(tmp_path)) for _ in range(2))
    assert not first.pretrained
    assert first.fingerprint == second.fingerprint


def test_check_labels_names_both_sides_when_they_differ(supernet: Supernet, family: str) -> None:
    check_labels(supernet, supernet.label_names, "data")
    with pytest.raises(CheckpointError, match=f"has {LABELS[family]} classes .* data has 3"):
        check_labels(supernet, ("a", "b", "c"), "data")
    with pytest.raises(CheckpointError, match="same order"):
        check_labels(supernet, supernet.label_names[::-1], "data")
