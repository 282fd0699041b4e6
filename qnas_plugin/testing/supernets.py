"""What every supernet promises, on its own tiny checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from qnas_plugin import registry
from qnas_plugin.build.export import export_module
from qnas_plugin.build.graph import Graph
from qnas_plugin.build.slice import materialize
from qnas_plugin.data import Batch, Inputs
from qnas_plugin.errors import CheckpointError, UsageError
from qnas_plugin.latency.parts_alone import build, isolate
from qnas_plugin.latency.rows import Decomposition, join
from qnas_plugin.space import Candidate
from qnas_plugin.supernets import Supernet, Tiny, check_labels, check_trained
from qnas_plugin.testing._contract import Contract
from qnas_plugin.testing._costs import WITHIN, CostsOfFiles
from qnas_plugin.testing._pruned import cut_to_size

Logits = npt.NDArray[Any]


class SupernetContract(Contract):
    """A subnet is a slice in torch as in the graph, its precision lands, and checkpoints are read or refused whole."""

    @classmethod
    def make(cls, name: str, folder: Path) -> Tiny:
        """The checkpoint: the family's own, or another form of it."""
        made: Tiny = registry.load("supernets", name).tiny(folder)
        return made

    def pruned(self, supernet: Supernet, candidate: Candidate) -> torch.nn.Module:
        """The subnet as a model of its own, with nothing shared; a family with layers of its own replaces them here."""
        return cut_to_size(supernet, candidate)

    @pytest.fixture(scope="class")
    @classmethod
    def tiny(cls, name: str, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
        """The checkpoint."""
        return cls.make(name, tmp_path_factory.mktemp(name))

    @pytest.fixture
    def supernet(self, name: str, tiny: Tiny) -> Supernet:
        """A fresh one."""
        return load(name, tiny.checkpoint, elastic=tiny.elastic)

    @pytest.fixture(scope="class")
    @classmethod
    def graph(cls, name: str, tiny: Tiny) -> Graph:
        """Of a supernet in its first state."""
        return load(name, tiny.checkpoint, elastic=tiny.elastic).graph(_first(tiny.inputs))

    @pytest.fixture(scope="class")
    @classmethod
    def more_labels(cls, name: str, tiny: Tiny) -> list[str]:
        """Classes of other data: one more."""
        return [f"{i}" for i in range(len(load(name, tiny.checkpoint).label_names) + 1)]

    @pytest.fixture(scope="class")
    @classmethod
    def inner_tensor(cls, name: str, tiny: Tiny, more_labels: list[str]) -> str:
        """The name of a weight in the middle of the network, in one of its numbered layers."""
        head = load(name, tiny.checkpoint, label_names=more_labels).new_head
        tensors = load_file(tiny.checkpoint / "model.safetensors")
        names = sorted(key for key, tensor in tensors.items() if tensor.ndim >= 2 and key not in head)
        inner = [key for key in names if any(part.isdigit() for part in key.split("."))]
        return inner[len(inner) // 2]

    @pytest.fixture(scope="class")
    @classmethod
    def costs(cls, name: str, tiny: Tiny, graph: Graph) -> CostsOfFiles:
        """Of a supernet in its first state."""
        return CostsOfFiles.of(load(name, tiny.checkpoint, elastic=tiny.elastic), _first(tiny.inputs), graph)

    def test_model_computes_what_another_class_does_when_whole(self, supernet: Supernet, tiny: Tiny) -> None:
        if tiny.plain is None:
            pytest.skip("nobody else has such a class")
        np.testing.assert_allclose(run(supernet, tiny), _plain(tiny, tiny.checkpoint), atol=1e-5)

    def test_activate_computes_the_hard_pruned_subnet(self, supernet: Supernet, tiny: Tiny) -> None:
        for candidate in sampled(supernet, 5):
            expected = computed(self.pruned(supernet, candidate), tiny.inputs)
            supernet.activate(candidate)
            np.testing.assert_allclose(run(supernet, tiny), expected, atol=1e-5)

    def test_activate_restores_the_whole_supernet_when_none(self, supernet: Supernet, tiny: Tiny) -> None:
        before = run(supernet, tiny)
        supernet.activate(sampled(supernet, 1)[0])
        assert not np.allclose(run(supernet, tiny), before)
        supernet.activate(None)
        np.testing.assert_array_equal(run(supernet, tiny), before)

    def test_order_keeps_the_function_and_sorts_units(self, supernet: Supernet, tiny: Tiny) -> None:
        before = run(supernet, tiny)
        smallest = supernet.space.corners["smallest-fp32"]
        supernet.activate(smallest)
        small_before = run(supernet, tiny)
        supernet.activate(None)
        supernet.order([_batch(tiny)])
        np.testing.assert_allclose(run(supernet, tiny), before, atol=1e-5)
        supernet.activate(smallest)
        assert not np.allclose(run(supernet, tiny), small_before, atol=1e-5)

    def test_materialize_matches_torch_for_random_subnets(self, supernet: Supernet, tiny: Tiny, graph: Graph) -> None:
        for candidate in sampled(supernet, 6):
            cut = supernet.cut(candidate)
            got = logits(materialize(graph, cut).SerializeToString(), tiny.inputs)
            supernet.activate(candidate)
            np.testing.assert_allclose(got, run(supernet, tiny), atol=1e-5)
            supernet.activate(None)

    def test_materialize_matches_the_plain_export_of_the_subnet(
        self, supernet: Supernet, tiny: Tiny, graph: Graph
    ) -> None:
        candidate = sampled(supernet, 3)[2]
        plain = export_module(self.pruned(supernet, candidate), tiny.inputs)
        sliced = materialize(graph, supernet.cut(candidate))
        got, expected = (logits(model.SerializeToString(), tiny.inputs) for model in (sliced, plain))
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert sliced.ByteSize() < 1.05 * plain.ByteSize()

    def test_export_does_not_depend_on_the_order_of_its_inputs(self, supernet: Supernet, tiny: Tiny) -> None:
        """Tokenizers give token_type_ids before attention_mask, the model's signature has them the other way round."""
        if len(tiny.inputs) == 1:
            pytest.skip("one input has no order")
        cut = supernet.cut(supernet.space.corners["largest-fp32"])
        turned = {key: tiny.inputs[key] for key in reversed(list(tiny.inputs))}
        got = logits(materialize(supernet.graph(turned), cut).SerializeToString(), tiny.inputs)
        np.testing.assert_allclose(got, run(supernet, tiny), atol=1e-5)

    def test_materialize_is_deterministic(self, supernet: Supernet, tiny: Tiny, graph: Graph) -> None:
        cut, again = supernet.cut(sampled(supernet, 1)[0]), supernet.graph(_first(tiny.inputs))
        files = [materialize(each, cut).SerializeToString(deterministic=True) for each in (graph, again)]
        assert files[0] == files[1]

    def test_groups_name_nodes_of_every_subnet(self, supernet: Supernet, graph: Graph) -> None:
        precisions = [variable for variable in supernet.space.variables if variable.kind == "precision"]
        assert list(graph.groups) == list(dict.fromkeys(variable.group for variable in precisions))
        for candidate in sampled(supernet, 4):
            nodes = {node.name for node in materialize(graph, supernet.cut(candidate)).graph.node}
            for group, names in graph.groups.items():
                assert (group in supernet.space.policy(candidate)) == all(name in nodes for name in names), group

    def test_size_is_that_of_the_file(self, costs: CostsOfFiles) -> None:
        assert np.abs(costs.off(100)).max() < WITHIN

    def test_macs_and_bit_operations_are_those_of_the_graph(self, costs: CostsOfFiles) -> None:
        computed, counted = costs.work(10)
        np.testing.assert_allclose(computed, counted, rtol=1e-6)

    def test_emit_lands_each_group_of_random_candidates(self, supernet: Supernet, graph: Graph) -> None:
        for candidate in sampled(supernet, 3):
            build(graph, supernet, candidate)  # raises where a group has not landed

    def test_parts_are_rows_of_a_table_and_own_each_node_once(
        self, supernet: Supernet, tiny: Tiny, tmp_path: Path, graph: Graph
    ) -> None:
        """The rows of the largest FP32 network, timed alone, hold its nodes: each once, constants apart."""
        space = supernet.space
        largest = space.corners["largest-fp32"]
        decomposition = Decomposition(space, join(supernet.parts, "linear"))
        active = decomposition.counts(space.encode(largest)[None])[0]
        there = [part for part in supernet.parts if part.reader is None]  # all is FP32, so that no tensor changes
        assert active.sum() == sum(all(name in largest for name in part.variables.values()) for part in there)
        rows = list(zip(decomposition.keys, active.tolist(), strict=True))
        only = [key for key, count in rows if count]
        alone = isolate(graph, supernet, decomposition, _first(tiny.inputs), tmp_path, only)
        found = {each.key: each.model for each in alone}
        owned = sum(count * _computing(found[key].graph.node) for key, count in rows if key in found)
        assert owned == _computing(materialize(graph, supernet.cut(largest)).graph.node)

    def test_save_round_trips_and_other_classes_read_it(
        self, name: str, supernet: Supernet, tiny: Tiny, tmp_path: Path
    ) -> None:
        supernet.order([_batch(tiny)])
        supernet.activate(supernet.space.corners["smallest-fp32"])
        supernet.save(tmp_path)
        supernet.activate(None)
        loaded = load(name, tmp_path)
        assert loaded.fingerprint == supernet.fingerprint
        assert loaded.space == supernet.space
        np.testing.assert_array_equal(run(loaded, tiny), run(supernet, tiny))
        if tiny.plain is not None:
            np.testing.assert_allclose(run(supernet, tiny), _plain(tiny, tmp_path), atol=1e-5)

    def test_load_refuses_choices_in_one_line(self, name: str, tiny: Tiny) -> None:
        assert tiny.refused, "give choices that the family refuses"
        for elastic in tiny.refused:
            with pytest.raises(UsageError) as error:
                load(name, tiny.checkpoint, elastic=elastic)
            assert len(str(error.value).splitlines()) == 1

    def test_load_refuses_what_is_no_checkpoint_in_one_line(self, name: str, tmp_path: Path) -> None:
        foreign, broken, newer = (tmp_path / part for part in ("foreign", "broken", "newer"))
        for folder in (foreign, broken, newer):
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
        (broken / "supernet.json").write_text("{", encoding="utf-8")
        later = {"schema_version": 99, "supernet": "x", "elastic": {}}
        (newer / "supernet.json").write_text(json.dumps(later), encoding="utf-8")
        named = {tmp_path / "missing": "missing", foreign: "'gpt2'", broken: "supernet.json", newer: "99"}
        for folder, what in named.items():
            with pytest.raises(CheckpointError) as error:
                load(name, folder)
            assert what in str(error.value)
            assert len(str(error.value).splitlines()) == 1

    @pytest.mark.parametrize("labels", [False, True], ids=["as it is", "with new classes"])
    @pytest.mark.parametrize("damage", ["missing", "renamed", "unexpected", "reshaped", "empty", "layers"])
    def test_load_names_tensors_that_do_not_fit(
        self,
        damage: str,
        labels: bool,
        name: str,
        tiny: Tiny,
        more_labels: list[str],
        inner_tensor: str,
        tmp_path: Path,
    ) -> None:
        """Whether or not a new head is allowed: the rest of the network never gets random weights."""
        layer = _layer_of(inner_tensor)

        def change(tensors: dict[str, torch.Tensor]) -> None:
            if damage == "unexpected":
                tensors[f"{layer}.more.weight"] = torch.zeros(1)
            elif damage == "reshaped":
                tensors[inner_tensor] = tensors[inner_tensor][:1].clone()
            elif damage == "empty":
                tensors.clear()
            elif damage == "layers":
                for own in [own for own in tensors if own.startswith(f"{layer}.")]:
                    del tensors[own]
            else:
                weight = tensors.pop(inner_tensor)
                if damage == "renamed":
                    tensors[f"{inner_tensor}_of_another_name"] = weight

        folder = _changed(tiny.checkpoint, tmp_path / "copy", change)
        with pytest.raises(CheckpointError, match=r"missing|has no tensor|shape") as error:
            load(name, folder, label_names=more_labels if labels else None)
        named = {"unexpected": f"{layer}.more.weight", "empty": "is missing", "layers": layer}.get(damage, inner_tensor)
        assert named in str(error.value)
        assert len(str(error.value).splitlines()) == 1

    def test_load_tells_which_tensors_of_a_head_are_new(self, name: str, tiny: Tiny, more_labels: list[str]) -> None:
        assert load(name, tiny.checkpoint).new_head == ()
        new = load(name, tiny.checkpoint, label_names=more_labels)
        shapes = {key: tensor.shape for key, tensor in load_file(tiny.checkpoint / "model.safetensors").items()}
        assert new.new_head
        assert {key for key, tensor in new.model.state_dict().items() if shapes.get(key) != tensor.shape} == {
            *new.new_head
        }
        with pytest.raises(CheckpointError, match="has no trained head"):
            check_trained(new, str(tiny.checkpoint))

    def test_load_gives_random_weights_when_there_are_none(self, name: str, tiny: Tiny, tmp_path: Path) -> None:
        shutil.copy(tiny.checkpoint / "config.json", tmp_path)
        first, second = (load(name, tmp_path) for _ in range(2))
        assert not first.pretrained
        assert first.fingerprint == second.fingerprint

    def test_check_labels_names_both_sides_when_they_differ(self, supernet: Supernet, more_labels: list[str]) -> None:
        own = supernet.label_names
        check_labels(supernet, own, "data")
        with pytest.raises(CheckpointError, match=f"has {len(own)} classes .* data has {len(own) + 1}"):
            check_labels(supernet, more_labels, "data")
        with pytest.raises(CheckpointError, match="same order"):
            check_labels(supernet, own[::-1], "data")


def load(name: str, checkpoint: Path, **options: Any) -> Supernet:
    """A registered family's supernet."""
    supernet: Supernet = registry.load("supernets", name).load(str(checkpoint), **options)
    return supernet


def computed(model: torch.nn.Module, inputs: Inputs) -> Logits:
    """The logits that torch gives."""
    with torch.no_grad():
        output = model(**{key: torch.as_tensor(array) for key, array in inputs.items()})
    return np.asarray(output.logits)


def run(supernet: Supernet, tiny: Tiny) -> Logits:
    """The logits of what is activated."""
    return computed(supernet.model, tiny.inputs)


def logits(model: bytes, inputs: Inputs) -> Logits:
    """What ONNX Runtime gives, with a session that another program could have."""
    import onnxruntime

    from qnas_plugin.runtimes.onnxruntime import make_exact

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    make_exact(options)
    opened = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(opened.run(["logits"], {node.name: inputs[node.name] for node in opened.get_inputs()})[0])


def sampled(supernet: Supernet, count: int) -> list[Candidate]:
    """The same candidates each time."""
    return [supernet.space.decode(genes) for genes in supernet.space.sample(count, np.random.default_rng(1))]


def _plain(tiny: Tiny, folder: Path) -> Logits:
    """What the other class gives for the weights of a folder."""
    assert tiny.plain is not None
    return computed(tiny.plain.from_pretrained(folder).eval(), tiny.inputs)


def _first(inputs: Inputs) -> Inputs:
    return {key: array[:1] for key, array in inputs.items()}


def _batch(tiny: Tiny) -> Batch:
    return Batch(tiny.inputs, np.arange(len(next(iter(tiny.inputs.values())))))


def _computing(nodes: Any) -> int:
    """How many there are beside constants."""
    return sum(node.op_type != "Constant" for node in nodes)


def _changed(checkpoint: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy whose weights were changed."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _layer_of(tensor: str) -> str:
    """``bert.encoder.layer.1`` of the name of a weight in it."""
    parts = tensor.split(".")
    return ".".join(parts[: next(i for i, part in enumerate(parts) if part.isdigit()) + 1])
