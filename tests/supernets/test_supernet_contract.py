"""What every registered supernet promises, on tiny random models of the real classes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from qnas_plugin import registry
from qnas_plugin.errors import CheckpointError, UsageError
from qnas_plugin.materialize import export, export_module, materialize
from qnas_plugin.space import Candidate, Precision
from qnas_plugin.supernets import Elastic, Supernet, check_labels
from qnas_plugin.tasks import Batch, Inputs

INPUTS = {
    "bert": {
        "input_ids": np.random.default_rng(0).integers(5, 20, (3, 9)),
        "attention_mask": np.array([[1] * 9, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7]),
        "token_type_ids": np.zeros((3, 9), dtype=np.int64),
    },
    "vit": {"pixel_values": np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)},
}
LABELS = {"bert": 2, "vit": 10}


@pytest.fixture(params=registry.names("supernets"))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def checkpoint(family: str, request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{family}_checkpoint")
    return path


@pytest.fixture
def supernet(family: str, checkpoint: Path) -> Supernet:
    loaded: Supernet = registry.load("supernets", family).load(
        str(checkpoint), elastic=Elastic((2, 3, 4), (1, 2, 4), (16, 32, 48))
    )
    return loaded


def run(supernet: Supernet, family: str) -> np.ndarray:
    with torch.no_grad():
        output = supernet.model(**{name: torch.as_tensor(array) for name, array in INPUTS[family].items()})
    return np.asarray(output.logits)


def logits(model: bytes, inputs: Inputs) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {node.name: inputs[node.name] for node in session.get_inputs()})[0])


def sampled(supernet: Supernet, count: int) -> list[Candidate]:
    return [supernet.space.decode(genes) for genes in supernet.space.sample(count, np.random.default_rng(1))]


def hard_pruned(supernet: Supernet, candidate: Candidate) -> torch.nn.Module:
    """The subnet as a model of its own, every layer cut to size: the plain way, with nothing shared."""
    cut = supernet.cut(candidate)
    supernet.activate(cut)
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
    return model.eval()


def test_model_computes_what_hugging_face_does_when_whole(supernet: Supernet, family: str, checkpoint: Path) -> None:
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    plain_class = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    plain = plain_class.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = plain(**{name: torch.as_tensor(array) for name, array in INPUTS[family].items()}).logits.numpy()
    np.testing.assert_allclose(run(supernet, family), expected, atol=1e-5)


def test_activate_computes_the_hard_pruned_subnet(supernet: Supernet, family: str) -> None:
    for candidate in sampled(supernet, 5):
        pruned = hard_pruned(supernet, candidate)
        with torch.no_grad():
            expected = pruned(**{name: torch.as_tensor(array) for name, array in INPUTS[family].items()}).logits
        supernet.activate(supernet.cut(candidate))
        np.testing.assert_allclose(run(supernet, family), expected.numpy(), atol=1e-5)


def test_activate_restores_the_whole_supernet_when_none(supernet: Supernet, family: str) -> None:
    before = run(supernet, family)
    supernet.activate(supernet.cut(sampled(supernet, 1)[0]))
    assert not np.allclose(run(supernet, family), before)
    supernet.activate(None)
    np.testing.assert_array_equal(run(supernet, family), before)


def test_order_keeps_the_function_and_sorts_units(supernet: Supernet, family: str) -> None:
    before = run(supernet, family)
    smallest = supernet.cut(supernet.space.corner("smallest", Precision.FP32))
    supernet.activate(smallest)
    small_before = run(supernet, family)
    supernet.activate(None)
    supernet.order([Batch(INPUTS[family], np.arange(3))])
    np.testing.assert_allclose(run(supernet, family), before, atol=1e-5)
    supernet.activate(smallest)
    assert not np.allclose(run(supernet, family), small_before, atol=1e-5)


def test_materialize_matches_torch_for_random_subnets(supernet: Supernet, family: str) -> None:
    graph = export(supernet, {name: array[:1] for name, array in INPUTS[family].items()})
    for candidate in sampled(supernet, 6):
        cut = supernet.cut(candidate)
        got = logits(materialize(graph, cut).SerializeToString(), INPUTS[family])
        supernet.activate(cut)
        np.testing.assert_allclose(got, run(supernet, family), atol=1e-5)
        supernet.activate(None)


def test_materialize_matches_the_plain_export_of_the_subnet(supernet: Supernet, family: str) -> None:
    graph = export(supernet, INPUTS[family])
    candidate = sampled(supernet, 3)[2]
    plain = export_module(hard_pruned(supernet, candidate), INPUTS[family])
    sliced = materialize(graph, supernet.cut(candidate))
    np.testing.assert_allclose(
        logits(sliced.SerializeToString(), INPUTS[family]), logits(plain.SerializeToString(), INPUTS[family]), atol=1e-5
    )
    assert sliced.ByteSize() < 1.05 * plain.ByteSize()


def test_export_does_not_depend_on_the_order_of_its_inputs(supernet: Supernet, family: str) -> None:
    """Tokenizers give token_type_ids before attention_mask, the model's signature has them the other way round."""
    cut = supernet.cut(supernet.space.corner("largest", Precision.FP32))
    turned = dict(reversed(INPUTS[family].items()))
    got = logits(materialize(export(supernet, turned), cut).SerializeToString(), INPUTS[family])
    np.testing.assert_allclose(got, run(supernet, family), atol=1e-5)


def test_materialize_is_deterministic(supernet: Supernet, family: str) -> None:
    cut = supernet.cut(sampled(supernet, 1)[0])
    files = [materialize(export(supernet, INPUTS[family]), cut).SerializeToString(deterministic=True) for _ in range(2)]
    assert files[0] == files[1]


def test_groups_name_nodes_of_every_subnet(supernet: Supernet, family: str) -> None:
    graph = export(supernet, INPUTS[family])
    assert list(graph.groups) == [
        v.name.removeprefix("precision.") for v in supernet.space.variables if v.kind == "precision"
    ]
    for candidate in sampled(supernet, 4):
        nodes = {node.name for node in materialize(graph, supernet.cut(candidate)).graph.node}
        for group, names in graph.groups.items():
            assert (f"precision.{group}" in candidate) == all(name in nodes for name in names), group


def test_weight_mb_counts_the_weights_of_the_subnet(supernet: Supernet) -> None:
    for candidate in sampled(supernet, 5):
        modules = dict(hard_pruned(supernet, candidate).named_modules())
        kept = [i for i in range(4) if f"layer.{i}.heads" in candidate]
        expected = 0
        for group, paths in supernet.groups.items():
            if f"precision.{group}" not in candidate:
                continue
            for path in paths:
                for position, layer in enumerate(kept):  # a pruned model numbers its layers from 0
                    path = path.replace(f".layer.{layer}.", f".layer#{position}.")
                weight = modules[path.replace("#", ".")].weight
                expected += weight.numel() * (1 if candidate[f"precision.{group}"] == "int8" else 4)
        got = supernet.weight_mb(supernet.space.encode(candidate)[None, :])
        np.testing.assert_allclose(got, [expected / 1e6])


def test_save_round_trips_and_hugging_face_reads_it(
    supernet: Supernet, family: str, tmp_path: Path, checkpoint: Path
) -> None:
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    supernet.order([Batch(INPUTS[family], np.arange(3))])
    supernet.activate(supernet.cut(supernet.space.corner("smallest", Precision.FP32)))
    supernet.save(tmp_path)
    supernet.activate(None)
    loaded = registry.load("supernets", family).load(str(tmp_path))
    assert loaded.fingerprint == supernet.fingerprint
    assert loaded.space == supernet.space
    plain_class = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    plain = plain_class.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = plain(**{name: torch.as_tensor(array) for name, array in INPUTS[family].items()}).logits.numpy()
    np.testing.assert_allclose(run(supernet, family), expected, atol=1e-5)


def test_load_fails_clearly(family: str, checkpoint: Path, tmp_path: Path) -> None:
    load = registry.load("supernets", family).load
    with pytest.raises(CheckpointError, match="there is no such folder"):
        load(str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="must be ascending"):
        load(str(checkpoint), elastic=Elastic(heads=(2, 3)))
    with pytest.raises(UsageError, match="smallest depth is 2"):
        load(str(checkpoint), elastic=Elastic(depth=(1, 4)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="'gpt2' model"):
        load(str(tmp_path))
    for text, message in (("{", "damaged"), ('{"schema_version": 99, "supernet": "x", "elastic": {}}', "version 99")):
        (tmp_path / "supernet.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            load(str(tmp_path))


def test_load_gives_random_weights_when_there_are_none(family: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    first, second = (registry.load("supernets", family).load(str(tmp_path)) for _ in range(2))
    assert not first.pretrained
    assert first.fingerprint == second.fingerprint


def test_check_labels_names_both_sides_when_they_differ(supernet: Supernet, family: str) -> None:
    check_labels(supernet, supernet.label_names, "data")
    with pytest.raises(CheckpointError, match=f"has {LABELS[family]} classes .* data has 3"):
        check_labels(supernet, ("a", "b", "c"), "data")
    with pytest.raises(CheckpointError, match="same order"):
        check_labels(supernet, supernet.label_names[::-1], "data")
