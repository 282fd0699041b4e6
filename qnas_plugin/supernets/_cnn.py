"""Elastic convolutional networks: what ``resnet50``, ``mobilenet_v3`` and their like share.

A family builds its torch modules and a `Plan`: each layer with its numbers of channels as functions of the variables.
All that a supernet has to know of a subnet follows from the plan.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qnas_plugin.errors import CheckpointError, UsageError
from qnas_plugin.files import write_json
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.materialize import OUTPUT, Graph, export
from qnas_plugin.precision import DEFAULT, Precisions
from qnas_plugin.space import Candidate, Condition, Genes, Precision, SearchSpace, Variable
from qnas_plugin.supernets import Cut, Elastic, Part
from qnas_plugin.supernets._cnn_layers import ElasticConv, start
from qnas_plugin.supernets._encoder import SCHEMA_VERSION, SUPERNET_FILE, ElasticLinear, read_record, seeded
from qnas_plugin.tasks import Batch, Inputs

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
    """

    variables: tuple[Variable, ...]
    layers: tuple[Layer, ...]
    optional: Mapping[str, Condition]
    cores: tuple[Part, ...]


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
        precisions: Precisions | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.model: Any = model
        self.plan = plan
        self.family = family
        self.elastic = elastic
        self.precisions = precisions or Precisions()
        self.pretrained = pretrained
        self.training = dict(training or {})

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels))

    @cached_property
    def space(self) -> SearchSpace:
        firsts = {layer.group: layer for layer in reversed(self.plan.layers)}
        policy = [
            Variable(f"precision.{group}", self.precisions.of(group, layer.precisions), "precision", layer.when)
            for group, layer in reversed(firsts.items())
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
        return tuple(parts)

    def example(self, setting: RuntimeSetting) -> Inputs:
        size = setting.resolution or self.model.config.image_size
        shape = (setting.batch_size, self.model.config.num_channels, size, size)
        return {"pixel_values": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.space.fingerprint.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def graph(self, inputs: Inputs) -> Graph:
        return export(self, inputs)

    def outputs(self, cut: Cut, inputs: Inputs) -> Mapping[str, npt.NDArray[Any]]:
        self.activate(cut)
        with torch.no_grad():
            values = self.model(**{name: torch.as_tensor(array) for name, array in inputs.items()}).logits.numpy()
        self.activate(None)
        return {OUTPUT: values}

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

    def activate(self, cut: Cut | None) -> None:
        if cut is None:
            cut = self.cut(self.space.corner("largest", Precision.FP32))
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

    def weight_mb(self, genes: Genes) -> npt.NDArray[np.float64]:
        space, active = self.space, self.space.active(genes)

        def count(channels: Channels) -> npt.NDArray[np.int64]:
            return np.broadcast_to(
                channels.table[tuple(genes[:, space.index[name]] for name in channels.variables.values())], len(genes)
            )

        total = np.zeros(len(genes))
        for layer in self.plan.layers:
            module, precision = self.model.get_submodule(layer.path), space.index[f"precision.{layer.group}"]
            size = count(layer.outputs).astype(np.float64)
            if not self._depthwise(layer):
                size = size * count(layer.inputs)
            if layer.kernel is not None:
                i = space.index[layer.kernel]
                size = size * np.array(space.variables[i].choices)[genes[:, i]] ** 2
            elif isinstance(module, ElasticConv):
                size = size * module.kernels[-1] ** 2
            choices = space.variables[precision].choices
            width = np.array([4 if choice == Precision.FP32 else 1 for choice in choices])
            total += size * width[genes[:, precision]] * active[:, precision]
        return total / 1e6

    def config(self, candidate: Candidate) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.model.config.to_json_string(use_diff=False))
        return config

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        record = {
            "schema_version": SCHEMA_VERSION,
            "supernet": self.family,
            "elastic": asdict(self.elastic),
            "training": self.training,
        }
        write_json(folder / SUPERNET_FILE, record)

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
            self.activate(before)


class Classifier(ElasticLinear):
    """The last layer: a linear layer of which the first inputs are used."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(nn.Linear(inputs, classes))


Build = Callable[[Any, Elastic], tuple[nn.Module, Plan]]
"""Configuration and choices to the network and its plan."""


def load_cnn(
    family: str,
    config_class: Any,
    defaults: Mapping[str, Any],
    elastic_of: Callable[[Any], Elastic],
    build: Build,
    checkpoint: str,
    label_names: Sequence[str] | None,
    elastic: Elastic | None,
    precisions: Precisions | None,
) -> CnnSupernet:
    """Loads a folder with a configuration and, unless random ones are wanted, weights.

    Weights are what ``CnnSupernet.save`` wrote, or one ``*.pth`` file in the layout that OFA publishes.

    Args:
        family: The registered name.
        config_class: The Hugging Face configuration that stands beside the weights.
        defaults: Fields of ours in it, and what they are where the file has none.
        elastic_of: The choices of a configuration that records none.
        build: Makes the network.
        checkpoint: The folder.
        label_names: For a checkpoint that no training of ours wrote: the classes that a new classifier is for.
        elastic: Choices asked for; they replace the recorded ones.
        precisions: What the user says of the precision of groups.

    Raises:
        CheckpointError: There is no such folder, or it is damaged or of another model type.
        UsageError: The choices don't fit the model.
    """
    folder = Path(checkpoint)
    path = folder / "config.json"
    if not path.is_file():
        what = "a folder without config.json" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"cannot load the checkpoint '{checkpoint}': {what}; examples/shapes has configurations")
    record = read_record(checkpoint, family)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("model_type") != config_class.model_type:
            raise CheckpointError(
                f"{checkpoint} is a '{values.get('model_type')}' model; the supernet '{family}' takes "
                f"{config_class.model_type}"
            )
        config = config_class(**{**defaults, **values})
        if record is None and label_names is not None:
            config.id2label = dict(enumerate(label_names))
            config.label2id = {name: i for i, name in enumerate(label_names)}
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is no configuration of '{family}': {error}") from None
    largest = elastic_of(config)
    chosen = record["elastic"] if record else largest
    if elastic is not None:
        chosen = replace(chosen, **{name: choices for name, choices in asdict(elastic).items() if choices})
    _check(chosen, largest, family)
    with seeded(0):
        model, plan = build(config, chosen)
        start(model)
    model.config = config
    state = _read_weights(folder)
    if state is not None:
        _fill(model, state, folder, new_classes=record is None and label_names is not None)
    training = record["training"] if record else None
    supernet = CnnSupernet(
        model.eval(), plan, family, chosen, precisions=precisions, pretrained=state is not None, training=training
    )
    supernet.precisions.check(tuple(supernet.groups))
    return supernet


def ofa_name(name: str) -> str:
    """Our name of a tensor of an OFA checkpoint.

    OFA (github.com/mit-han-lab/once-for-all, ``elastic_nn/modules``) wraps each layer in modules of the same name, more
    of them in its elastic networks than in plain ones, and blocks in a residual module whose name changed.
    """
    name = (
        name.removeprefix("module.").replace(".mobile_inverted_conv.", ".conv.").replace(".depth_conv.se.fc.", ".se.")
    )
    name = re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.", name)
    name = re.sub(r"(\.conv)+\.weight$", ".conv.weight", name)
    name = re.sub(r"(\.conv)+\.(\d+to\d+_matrix)$", r".conv.\2", name)
    name = re.sub(r"(\.conv)*(\.bn)+\.", ".bn.", name)
    return re.sub(r"(\.linear)+\.", ".", name)


def _read_weights(folder: Path) -> dict[str, torch.Tensor] | None:
    """Tensors by our names; None where there is no file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    own, published = folder / WEIGHTS_FILE, sorted(folder.glob("*.pth"))
    try:
        if own.is_file():
            return dict(load_file(own))
        if len(published) > 1:
            raise CheckpointError(f"{folder} has {len(published)} .pth files; leave one")
        if not published:
            return None
        content: Any = torch.load(published[0], weights_only=True, map_location="cpu")
        state = content.get("state_dict", content)
        return {ofa_name(name): tensor for name, tensor in state.items()}
    except CheckpointError:
        raise
    except (OSError, SafetensorError, Exception) as error:  # torch.load raises many kinds for a damaged file
        raise CheckpointError(f"cannot read the weights in {folder}: {type(error).__name__}: {error}") from None


def _fill(model: nn.Module, state: dict[str, torch.Tensor], folder: Path, *, new_classes: bool) -> None:
    """Copies weights into a model; with new classes, a classifier of other ones is left out.

    Raises:
        CheckpointError: A tensor is missing, unknown, or of another shape.
    """
    wanted = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            state[name] = tensor
        fits = name in state and state[name].shape == tensor.shape
        if not fits and new_classes and name.startswith("classifier."):
            state[name] = tensor
        elif not fits:
            got = f"has the shape {tuple(state[name].shape)}" if name in state else "is missing"
            raise CheckpointError(f"{folder}: tensor '{name}' of shape {tuple(tensor.shape)} {got}; check config.json")
    unknown = sorted(state.keys() - wanted.keys())
    if unknown:
        raise CheckpointError(f"{folder}: the model has no tensor '{unknown[0]}'; check config.json")
    model.load_state_dict(state)


def _check(chosen: Elastic, largest: Elastic, family: str) -> None:
    allowed = [name for name, choices in asdict(largest).items() if choices]
    for name, choices in asdict(chosen).items():
        if choices and name not in allowed:
            raise UsageError(f"'{family}' has no elastic {name}; it has: {', '.join(allowed)}")
        own = asdict(largest)[name]
        if own and (list(choices) != sorted(set(choices)) or choices[0] < 0 or choices[-1] != own[-1]):
            raise UsageError(
                f"the choices for {name} must be ascending, positive and end with the model's own {own[-1]}; "
                f"got {', '.join(map(str, choices))}"
            )
