"""Elastic convolutional networks: what ``resnet50``, ``mobilenet_v3`` and their like share.

A family builds its torch modules and a `Plan`: each layer with its numbers of channels as functions of the variables.
All that a supernet has to know of a subnet follows from the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qnas_plugin.build.export import export
from qnas_plugin.build.graph import Cut, Graph
from qnas_plugin.data import Batch, Inputs
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.quantizers.formats import DEFAULT, Precisions
from qnas_plugin.space import Candidate, Condition, SearchSpace, Variable
from qnas_plugin.supernets import Elastic, Part
from qnas_plugin.supernets._checkpoint import fingerprint, write_record
from qnas_plugin.supernets._encoder import outputs
from qnas_plugin.supernets._encoder_layers import ElasticLinear

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels that some layers write and others read: the same object wherever they are the same.

    Args:
        table: How many there are, with an axis for each variable, indexed by its choice.
        variables: Label to name of the variables, in the order of the axes.
    """

    table: npt.NDArray[np.int64]
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def fixed(cls, count: int) -> Channels:
        """Always as many."""
        return cls(np.array(count))

    @property
    def largest(self) -> int:
        return int(self.table.max())


@dataclass(frozen=True)
class Layer:
    """A convolution or the classifier.

    Args:
        path: Of the module.
        group: Its precision group; a group may have several layers.
        kind: Layers of one kind differ by their variables only; the layers of a group have one kind.
        inputs: The channels that it reads.
        outputs: The channels that it writes.
        block: The block that it is in; layers outside blocks have none.
        kernel: The variable of its kernel size.
        when: The condition under which it exists.
        precisions: The choices of its group where a user names none.
    """

    path: str
    group: str
    kind: str
    inputs: Channels
    outputs: Channels
    block: str = ""
    kernel: str | None = None
    when: Condition | None = None
    precisions: tuple[str, ...] = DEFAULT


@dataclass(frozen=True)
class Plan:
    """How the variables shape a network.

    Args:
        variables: Of the architecture.
        layers: In the order of the network.
        optional: Path of a block that can be skipped to the condition under which it is there.
        cores: What is in blocks beside their layers.
        stream: Layers of which each reads what the one before it wrote, their paths.
        pooled: Path of a layer of the stream to that of another one that reads the same pooled tensor. ONNX Runtime
            pools in INT8 if both read INT8, which takes longer than in FP32.
    """

    variables: tuple[Variable, ...]
    layers: tuple[Layer, ...]
    optional: Mapping[str, Condition]
    cores: tuple[Part, ...]
    stream: tuple[str, ...] = ()
    pooled: Mapping[str, str] = field(default_factory=dict)


class CnnSupernet:
    """A convolutional network with elastic depth, widths and kernels.

    Args:
        model: The whole network: `ElasticConv`, `ElasticNorm` and `ElasticLinear` layers, ``config``, and a flag
            ``skipped`` in each block that can be.
        plan: How the variables shape it.
        family: The registered name.
        elastic: The choices that the plan was made with.
        precisions: What the user says of the precision of groups.
        pretrained: Whether the weights are more than random numbers.
        new_head: The tensors of the head, where it is new and so has random weights.
        training: What ``save`` records about how the weights came about.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        family: str,
        elastic: Elastic,
        *,
        pretrained: bool,
        new_head: Sequence[str] = (),
        precisions: Precisions | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.model: Any = model
        self.plan = plan
        self.family = family
        self.elastic = elastic
        self.precisions = precisions or Precisions()
        self.pretrained = pretrained
        self.new_head = tuple(new_head)
        self.training = dict(training or {})

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels))

    @cached_property
    def space(self) -> SearchSpace:
        policy = [
            Variable.precision(group, self.precisions.of(group, layer.precisions), layer.when)
            for group, layer in {layer.group: layer for layer in self.plan.layers}.items()
        ]
        return SearchSpace((*self.plan.variables, *policy))

    @cached_property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        groups: dict[str, tuple[str, ...]] = {}
        for layer in self.plan.layers:
            groups[layer.group] = (*groups.get(layer.group, ()), layer.path)
        return groups

    @property
    def shape(self) -> Mapping[str, int | str]:
        sizes = [layer.outputs.largest for layer in self.plan.layers]
        text = "-".join(map(str, sizes))
        return {
            "channels": self.model.config.num_channels,
            "layers": len(sizes),
            "stem": sizes[0],
            "widths": hashlib.sha256(text.encode()).hexdigest()[:8],
        }

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        parts = [Part("rest"), *self.plan.cores]
        for group, paths in self.groups.items():
            layer = next(layer for layer in self.plan.layers if layer.group == group)
            variables: dict[str, str] = {}
            for prefix, channels in (("", layer.outputs), ("in_", layer.inputs)):
                for label, name in channels.variables.items():
                    if name not in variables.values():
                        variables[f"{prefix}{label}"] = name
            if layer.kernel is not None:
                variables["kernel"] = layer.kernel
            variables["precision"] = f"precision.{group}"
            parts.append(Part(layer.kind, variables, tuple(path.removesuffix(".conv") for path in paths), layer.block))
        layers = {layer.path: layer for layer in self.plan.layers}
        for writer, reader in pairwise(layers[path] for path in self.plan.stream):
            ends = {"from": f"precision.{writer.group}", "to": f"precision.{reader.group}"}
            other = self.plan.pooled.get(reader.path)
            beside = {} if other is None else {"beside": f"precision.{layers[other].group}"}
            variables = {**reader.inputs.variables, **beside, **ends}
            parts.append(Part(f"{reader.kind}.boundary", variables, (), reader.block, reader=reader.path))
        return tuple(parts)

    def example(self, setting: RuntimeSetting) -> Inputs:
        size = setting.resolution or self.model.config.image_size
        shape = (setting.batch_size, self.model.config.num_channels, size, size)
        return {"pixel_values": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.model, self.space)

    def graph(self, inputs: Inputs) -> Graph:
        self.activate(None)
        return export(self.model, self.groups, inputs)

    def outputs(self, candidate: Candidate, inputs: Inputs) -> Mapping[str, npt.NDArray[Any]]:
        return outputs(self, candidate, inputs)

    def cut(self, candidate: Candidate) -> Cut:
        def exists(condition: Condition | None) -> bool:
            return condition is None or candidate.get(condition.variable) in condition.values

        def count(channels: Channels) -> int:
            choices = [self.space.variables[self.space.index[name]].choices for name in channels.variables.values()]
            values = [candidate[name] for name in channels.variables.values()]
            return int(channels.table[tuple(own.index(v) for own, v in zip(choices, values, strict=True))])

        kept = [layer for layer in self.plan.layers if exists(layer.when)]
        return Cut(
            tuple(path for path, condition in self.plan.optional.items() if not exists(condition)),
            {layer.path: (count(layer.inputs), count(layer.outputs)) for layer in kept},
            {layer.path: int(candidate[layer.kernel]) for layer in kept if layer.kernel is not None},
        )

    def activate(self, candidate: Candidate | None) -> None:
        self._take(self.cut(self.space.corners["largest-fp32"] if candidate is None else candidate))

    def _take(self, cut: Cut) -> None:
        for path in self.plan.optional:
            self.model.get_submodule(path).skipped = path in cut.skipped
        for path, width in cut.widths.items():
            self.model.get_submodule(path).width = width
            norm = self._norm(path)
            if norm is not None:
                norm.width = width[1]
        for path, kernel in cut.kernels.items():
            self.model.get_submodule(path).kernel = kernel

    @torch.no_grad()
    def order(self, batches: Iterable[Batch]) -> None:
        """Sorts all elastic channels, those of the residual streams too, by the energy that their readers get of them.

        The score of a channel is its mean square times the squared norm of the weights that read it.
        """
        energy: dict[str, torch.Tensor] = {}

        def record(path: str) -> Any:
            def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                square = inputs[0].detach().float().square().transpose(0, 1).flatten(1).sum(1)
                energy[path] = energy.get(path, torch.zeros_like(square)) + square

            return self.model.get_submodule(path).register_forward_pre_hook(hook)

        elastic = {layer.outputs: None for layer in self.plan.layers if layer.outputs.table.size > 1}
        readers = {c: [r for r in self.plan.layers if r.inputs is c and not self._depthwise(r)] for c in elastic}
        with self._whole():
            hooks = [record(reader.path) for own in readers.values() for reader in own]
            try:
                self.model.eval()
                for batch in batches:
                    self.model(**{name: torch.as_tensor(array) for name, array in batch.inputs.items()})
            finally:
                for hook in hooks:
                    hook.remove()
        for channels in elastic:
            score = torch.zeros(channels.largest)
            for reader in readers[channels]:
                weight = self.model.get_submodule(reader.path).weight
                score += energy[reader.path] * weight.square().transpose(0, 1).flatten(1).sum(1)
            rank = score.argsort(descending=True, stable=True)
            for reader in readers[channels]:
                weight = self.model.get_submodule(reader.path).weight
                weight.copy_(weight[:, rank])
            for writer in (layer for layer in self.plan.layers if layer.outputs is channels):
                conv, norm = self.model.get_submodule(writer.path), self._norm(writer.path)
                tensors = [conv.weight, conv.bias]
                if norm is not None:
                    tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
                for tensor in tensors:
                    if tensor is not None:
                        tensor.copy_(tensor[rank])

    def config(self, candidate: Candidate) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.model.config.to_json_string(use_diff=False))
        return config

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        write_record(folder, self.family, self.elastic, self.training)

    def _depthwise(self, layer: Layer) -> bool:
        return getattr(self.model.get_submodule(layer.path), "groups", 1) > 1

    def _norm(self, path: str) -> Any:
        """The BatchNorm of a convolution, if it has one."""
        return getattr(self.model.get_submodule(path.rpartition(".")[0]), "bn", None) if "." in path else None

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """The whole supernet inside, what was active before after."""
        layers = [self.model.get_submodule(layer.path) for layer in self.plan.layers]
        kernels = {
            layer.path: self.model.get_submodule(layer.path).kernel for layer in self.plan.layers if layer.kernel
        }
        before = Cut(
            tuple(path for path in self.plan.optional if self.model.get_submodule(path).skipped),
            {layer.path: module.width for layer, module in zip(self.plan.layers, layers, strict=True)},
            kernels,
        )
        self.activate(None)
        try:
            yield
        finally:
            self._take(before)


class Classifier(ElasticLinear):
    """The last layer: a linear layer of which the first inputs are used."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(nn.Linear(inputs, classes))
