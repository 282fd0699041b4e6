"""Elastic transformer encoders from real Hugging Face classes: what ``bert``, ``vit`` and their like share.

Depth, the heads of each layer and the feed-forward width of each layer are elastic. A subnet uses the first k heads and
feed-forward units of a layer's shared weights and skips whole layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from qnas_plugin.build.export import export
from qnas_plugin.build.graph import OUTPUT, Cut, Graph
from qnas_plugin.data import Batch, Inputs
from qnas_plugin.errors import UsageError
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.space import Candidate, Condition, SearchSpace, Variable
from qnas_plugin.supernets import Elastic, Part, Supernet
from qnas_plugin.supernets._checkpoint import fingerprint, write_record
from qnas_plugin.supernets._encoder_layers import ElasticLayerNorm, ElasticLinear


@dataclass(frozen=True)
class Layout:
    """Where a Hugging Face class keeps the parts of its encoder.

    Args:
        family: The registered name of the supernet.
        layers: Path of the list of layers.
        attention: Path, in a layer, of the module that knows the number of heads.
        linears: Precision group to paths, in a layer, of its linear layers: query, key, value, attention_output,
            intermediate, output. Several are experts of the same sizes, in the same order in each group.
        others: Precision group to the paths, in the model, of what stands outside the layers.
        shape: Label to the name, in the configuration, of a size that latencies depend on beside the hidden size.
        example: Configuration and setting to inputs; see ``Supernet.example``.
        norms: Precision group to paths, in a layer, of the norms of what its linear layers read, where there are some:
            those of attention_output go over all heads, those of output over all feed-forward units.
    """

    family: str
    layers: str
    attention: str
    linears: Mapping[str, tuple[str, ...]]
    others: Mapping[str, tuple[str, ...]]
    shape: Mapping[str, str]
    example: Callable[[Any, RuntimeSetting], Inputs]
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class EncoderSupernet:
    """A Hugging Face encoder with elastic depth, heads and feed-forward widths.

    Args:
        model: The whole model; what is elastic in its layers is replaced by modules that share its weights.
        layout: Where its parts are.
        elastic: The choices; each must end with the size that the model has.
        precisions: What the user says of the precision of groups.
        pretrained: Whether the weights are more than random numbers.
        new_head: The tensors of the head, where it is new and so has random weights.
        training: What ``save`` records about how the weights came about.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        elastic: Elastic,
        *,
        pretrained: bool,
        new_head: Sequence[str] = (),
        precisions: Precisions | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        config: Any = model.config
        self.pretrained = pretrained
        self.new_head = tuple(new_head)
        self.model: Any = model
        self.layout = layout
        self.precisions = precisions or Precisions()
        self.training = dict(training or {})
        self.layers = list(model.get_submodule(layout.layers).children())
        self.heads = int(config.num_attention_heads)
        self.head_size = int(config.hidden_size) // self.heads
        self.ffn = int(self._linears(0, "intermediate")[0].out_features)
        self.elastic = _complete(elastic, depth=len(self.layers), heads=self.heads, ffn=self.ffn)
        for layer in self.layers:
            for paths in layout.linears.values():
                for path in paths:
                    layer.set_submodule(path, ElasticLinear(layer.get_submodule(path)))  # type: ignore[arg-type]
            for paths in layout.norms.values():
                for path in paths:
                    layer.set_submodule(path, ElasticLayerNorm(layer.get_submodule(path)))  # type: ignore[arg-type]

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels))

    @cached_property
    def space(self) -> SearchSpace:
        kept = {depth: kept_layers(len(self.layers), depth) for depth in self.elastic.depth}
        exists = [
            Condition("depth", tuple(depth for depth in self.elastic.depth if i in kept[depth]))
            for i in range(len(self.layers))
        ]
        variables = [Variable("depth", self.elastic.depth)]
        for i, when in enumerate(exists):
            variables.append(Variable(f"layer.{i}.heads", self.elastic.heads, when=when))
            variables.append(Variable(f"layer.{i}.ffn", self.elastic.ffn, when=when))
        for i, when in enumerate(exists):
            for group in self.layout.linears:
                choices = self.precisions.of(f"layer.{i}.{group}")
                variables.append(Variable.precision(f"layer.{i}.{group}", choices, when))
        variables.extend(Variable.precision(group, self.precisions.of(group)) for group in self.layout.others)
        return SearchSpace(tuple(variables))

    @cached_property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        groups = {
            f"layer.{i}.{group}": tuple(f"{self.layout.layers}.{i}.{path}" for path in paths)
            for i in range(len(self.layers))
            for group, paths in self.layout.linears.items()
        }
        return groups | dict(self.layout.others)

    @property
    def shape(self) -> Mapping[str, int | str]:
        config: Any = self.model.config
        own = {label: getattr(config, name) for label, name in self.layout.shape.items()}
        return {"activation": config.hidden_act, "head": self.head_size, "hidden": config.hidden_size} | own

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        parts = [Part("rest")]
        parts += [
            Part(group, {"precision": f"precision.{group}"}, paths) for group, paths in self.layout.others.items()
        ]
        for i in range(len(self.layers)):
            block, layer = f"layer.{i}", f"{self.layout.layers}.{i}"
            attention = f"{layer}.{self.layout.attention.partition('.')[0]}"
            heads, ffn = {"heads": f"{block}.heads"}, {"ffn": f"{block}.ffn"}
            parts.append(Part("attention_core", heads, (attention,), block, ("layer", "attention")))
            parts.append(Part("ffn_core", ffn, (layer,), block, ("layer", "ffn")))
            for group, paths in self.layout.linears.items():
                width, levels = {
                    "attention_output": (heads, ("layer", "attention")),
                    "intermediate": (ffn, ("layer", "ffn")),
                    "output": (ffn, ("layer", "ffn")),
                }.get(group, (heads, ("layer", "attention", "projections")))
                variables = width | {"precision": f"precision.{block}.{group}"}
                own = tuple(f"{layer}.{path}" for path in paths)
                parts.append(Part(group, variables, own, block, levels))
        return tuple(parts)

    def example(self, setting: RuntimeSetting) -> Inputs:
        return self.layout.example(self.model.config, setting)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.model, self.space)

    def graph(self, inputs: Inputs) -> Graph:
        self.activate(None)
        return export(self.model, self.groups, inputs)

    def outputs(self, candidate: Candidate, inputs: Inputs) -> Mapping[str, npt.NDArray[Any]]:
        return outputs(self, candidate, inputs)

    def cut(self, candidate: Candidate) -> Cut:
        kept = kept_layers(len(self.layers), int(candidate["depth"]))
        widths: dict[str, tuple[int, int]] = {}
        for i in kept:
            inner, ffn = int(candidate[f"layer.{i}.heads"]) * self.head_size, int(candidate[f"layer.{i}.ffn"])
            for group, paths in self.layout.linears.items():
                linear = self._linears(i, group)[0]
                width = {
                    "attention_output": (inner, linear.out_features),
                    "intermediate": (linear.in_features, ffn),
                    "output": (ffn, linear.out_features),
                }.get(group, (linear.in_features, inner))
                widths |= {f"{self.layout.layers}.{i}.{path}": width for path in paths}
                norms = self.layout.norms.get(group, ())
                widths |= {f"{self.layout.layers}.{i}.{path}": (width[0], width[0]) for path in norms}
        skipped = tuple(f"{self.layout.layers}.{i}" for i in range(len(self.layers)) if i not in kept)
        return Cut(skipped, widths)

    def activate(self, candidate: Candidate | None) -> None:
        cut = self.cut(self.space.corners["largest-fp32"] if candidate is None else candidate)
        kept = []
        for i, layer in enumerate(self.layers):
            if f"{self.layout.layers}.{i}" in cut.skipped:
                continue
            kept.append(layer)
            for path, module in _elastic(layer):
                module.width = cut.widths[f"{self.layout.layers}.{i}.{path}"]
            attention: Any = layer.get_submodule(self.layout.attention)
            attention.all_head_size = self._linears(i, "query")[0].width[1]
            attention.num_attention_heads = attention.all_head_size // self.head_size
        self.model.set_submodule(self.layout.layers, nn.ModuleList(kept))

    @torch.no_grad()
    def order(self, batches: Iterable[Batch]) -> None:
        """Sorts heads and feed-forward units by the energy that they add to the residual stream.

        The score of a unit is the mean square of its activation times the squared norm of the weights that read it.
        Experts share their heads, whose scores are added up, and have feed-forward units of their own.
        """
        energy: dict[nn.Module, torch.Tensor] = {}

        def record(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            square = inputs[0].detach().float().square().flatten(0, -2).sum(0)
            energy[module] = energy.get(module, torch.zeros_like(square)) + square

        def scores(i: int, reader: str, unit: int) -> list[torch.Tensor]:
            linears = self._linears(i, reader)
            return [(energy[own] * own.weight.square().sum(0)).view(-1, unit).sum(1) for own in linears]

        with self._whole():
            readers = [self._linears(i, g) for i in range(len(self.layers)) for g in ("attention_output", "output")]
            hooks = [own.register_forward_pre_hook(record) for linears in readers for own in linears]
            try:
                self.model.eval()
                for batch in batches:
                    self.model(**{name: torch.as_tensor(array) for name, array in batch.inputs.items()})
            finally:
                for hook in hooks:
                    hook.remove()
            for i in range(len(self.layers)):
                heads, units = scores(i, "attention_output", self.head_size), scores(i, "output", 1)
                for expert in range(len(units)):
                    self._sort(i, expert, "attention_output", ("query", "key", "value"), torch.stack(heads).sum(0))
                    self._sort(i, expert, "output", ("intermediate",), units[expert])

    def _sort(self, layer: int, expert: int, reader: str, writers: Sequence[str], score: torch.Tensor) -> None:
        """Puts the units with the highest scores first in what writes, normalises and reads them."""
        weight = self._linears(layer, reader)[expert].weight
        unit = weight.shape[1] // len(score)
        rank = score.argsort(descending=True, stable=True)
        columns = (rank[:, None] * unit + torch.arange(unit)).flatten()
        weight.copy_(weight[:, columns])
        norms = self.layout.norms.get(reader, ())[expert : expert + 1]
        modules = [self._linears(layer, writer)[expert] for writer in writers]
        for module in (*modules, *map(self.layers[layer].get_submodule, norms)):
            for vectors in (module.weight, module.bias):
                if vectors is not None:
                    vectors.copy_(vectors[columns])

    def config(self, candidate: Candidate) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.model.config.to_json_string(use_diff=False))
        return config | {"num_hidden_layers": int(candidate["depth"])}

    def save(self, folder: Path) -> None:
        with self._whole():
            self.model.save_pretrained(folder)
        write_record(folder, self.layout.family, self.elastic, self.training)

    def _linears(self, layer: int, group: str) -> list[Any]:
        """The linear layers of a group: one for each expert."""
        return [self.layers[layer].get_submodule(path) for path in self.layout.linears[group]]

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """The whole supernet inside, what was active before after."""
        layers = self.model.get_submodule(self.layout.layers)
        widths = [(module, module.width) for _, module in _elastic(self.model)]
        attentions: list[Any] = [layer.get_submodule(self.layout.attention) for layer in self.layers]
        heads = [(a.num_attention_heads, a.all_head_size) for a in attentions]
        self.activate(None)
        try:
            yield
        finally:
            self.model.set_submodule(self.layout.layers, layers)
            for module, width in widths:
                module.width = width
            for attention, (count, size) in zip(attentions, heads, strict=True):
                attention.num_attention_heads, attention.all_head_size = count, size


@torch.no_grad()
def outputs(supernet: Supernet, candidate: Candidate, inputs: Inputs) -> Mapping[str, npt.NDArray[Any]]:
    """What torch computes of a candidate for one batch."""
    supernet.activate(candidate)
    tensors = {name: torch.as_tensor(array) for name, array in inputs.items()}
    values = {OUTPUT: supernet.model(**tensors).logits.numpy()}
    supernet.activate(None)
    return values


def kept_layers(layers: int, depth: int) -> tuple[int, ...]:
    """Which layers a subnet of this depth keeps: the first and the last always, the others thinned out evenly.

    Every second inner layer goes first, from the top, then the rest from the bottom; so the layers of a subnet are
    among those of every deeper one.
    """
    dropped = [*range(layers - 2, 0, -2)]
    dropped += [i for i in range(1, layers - 1) if i not in dropped]
    dropped += [0]
    return tuple(i for i in range(layers) if i not in dropped[: layers - depth])


def _elastic(module: nn.Module) -> Iterator[tuple[str, ElasticLinear | ElasticLayerNorm]]:
    """The elastic modules in a module, with their paths."""
    for path, child in module.named_modules():
        if isinstance(child, ElasticLinear | ElasticLayerNorm):
            yield path, child


def _complete(elastic: Elastic, **largest: int) -> Elastic:
    for name, choices in asdict(elastic).items():
        if choices and name not in largest:
            raise UsageError(f"an encoder has no elastic {name}; it has: {', '.join(largest)}")
    for name, size in largest.items():
        choices = getattr(elastic, name) or (size,)
        if list(choices) != sorted(set(choices)) or choices[0] < 1 or choices[-1] != size:
            raise UsageError(
                f"the choices for {name} must be ascending, positive and end with the model's own {size}; "
                f"got {', '.join(map(str, choices))}"
            )
        elastic = replace(elastic, **{name: tuple(choices)})
    if largest["depth"] > 1 and elastic.depth[0] < 2:
        raise UsageError(
            f"the smallest depth is 2, as the first and last layers are always kept; got {elastic.depth[0]}"
        )
    return elastic
