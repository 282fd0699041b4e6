"""Elastic transformer encoders from real Hugging Face classes: what ``bert``, ``vit`` and their like share.

Depth, the heads of each layer and the feed-forward width of each layer are elastic. A subnet uses the first k heads and
feed-forward units of a layer's shared weights and skips whole layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from qnas_plugin.precision import Precisions
from qnas_plugin.space import Candidate, Condition, Genes, Precision, SearchSpace, Variable
from qnas_plugin.supernets import Cut, Elastic, Part, Supernet
from qnas_plugin.tasks import Batch, Inputs

SUPERNET_FILE = "supernet.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Layout:
    """Where a Hugging Face class keeps the parts of its encoder.

    Args:
        family: The registered name of the supernet.
        layers: Path of the list of layers.
        attention: Path, in a layer, of the module that knows the number of heads.
        linears: Precision group to path, in a layer, of its linear layers: query, key, value, attention_output,
            intermediate, output.
        others: Precision group to the paths, in the model, of what stands outside the layers.
        shape: Label to the name, in the configuration, of a size that latencies depend on beside the hidden size.
        example: Configuration and setting to inputs; see ``Supernet.example``.
    """

    family: str
    layers: str
    attention: str
    linears: Mapping[str, str]
    others: Mapping[str, tuple[str, ...]]
    shape: Mapping[str, str]
    example: Callable[[Any, RuntimeSetting], Inputs]


class ElasticLinear(nn.Linear):
    """A linear layer of which the first ``width`` inputs and outputs are used; shares the weights it was made from."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.width = (linear.in_features, linear.out_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        inputs, outputs = self.width
        bias = None if self.bias is None else self.bias[:outputs]
        return nn.functional.linear(input, self.weight[:outputs, :inputs], bias)


class EncoderSupernet:
    """A Hugging Face encoder with elastic depth, heads and feed-forward widths.

    Args:
        model: The whole model; its linear layers are replaced by elastic ones that share their weights.
        layout: Where its parts are.
        elastic: The choices; each must end with the size that the model has.
        precisions: What the user says of the precision of groups.
        pretrained: Whether the weights are more than random numbers.
        training: What ``save`` records about how the weights came about.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        elastic: Elastic,
        *,
        pretrained: bool,
        precisions: Precisions | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        config: Any = model.config
        self.pretrained = pretrained
        self.model: Any = model
        self.layout = layout
        self.precisions = precisions or Precisions()
        self.training = dict(training or {})
        self.layers = list(model.get_submodule(layout.layers).children())
        self.heads = int(config.num_attention_heads)
        self.head_size = int(config.hidden_size) // self.heads
        self.ffn = int(self._linear(0, "intermediate").out_features)
        self.elastic = _complete(elastic, depth=len(self.layers), heads=self.heads, ffn=self.ffn)
        for i in range(len(self.layers)):
            for path in layout.linears.values():
                full = f"{layout.layers}.{i}.{path}"
                model.set_submodule(full, ElasticLinear(model.get_submodule(full)))  # type: ignore[arg-type]

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
                variables.append(Variable(f"precision.layer.{i}.{group}", choices, "precision", when))
        variables.extend(
            Variable(f"precision.{group}", self.precisions.of(group), "precision") for group in self.layout.others
        )
        return SearchSpace(tuple(variables))

    @cached_property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        groups = {
            f"layer.{i}.{group}": (f"{self.layout.layers}.{i}.{path}",)
            for i in range(len(self.layers))
            for group, path in self.layout.linears.items()
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
            for group, path in self.layout.linears.items():
                width, levels = {
                    "attention_output": (heads, ("layer", "attention")),
                    "intermediate": (ffn, ("layer", "ffn")),
                    "output": (ffn, ("layer", "ffn")),
                }.get(group, (heads, ("layer", "attention", "projections")))
                variables = width | {"precision": f"precision.{block}.{group}"}
                parts.append(Part(group, variables, (f"{layer}.{path}",), block, levels))
        return tuple(parts)

    def example(self, setting: RuntimeSetting) -> Inputs:
        return self.layout.example(self.model.config, setting)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.model, self.space)

    def graph(self, inputs: Inputs) -> Graph:
        return export(self, inputs)

    def outputs(self, cut: Cut, inputs: Inputs) -> Mapping[str, npt.NDArray[Any]]:
        return outputs(self, cut, inputs)

    def cut(self, candidate: Candidate) -> Cut:
        kept = kept_layers(len(self.layers), int(candidate["depth"]))
        widths: dict[str, tuple[int, int]] = {}
        for i in kept:
            inner, ffn = int(candidate[f"layer.{i}.heads"]) * self.head_size, int(candidate[f"layer.{i}.ffn"])
            for group in self.layout.linears:
                linear = self._linear(i, group)
                widths[f"{self.layout.layers}.{i}.{self.layout.linears[group]}"] = {
                    "attention_output": (inner, linear.out_features),
                    "intermediate": (linear.in_features, ffn),
                    "output": (ffn, linear.out_features),
                }.get(group, (linear.in_features, inner))
        skipped = tuple(f"{self.layout.layers}.{i}" for i in range(len(self.layers)) if i not in kept)
        return Cut(skipped, widths)

    def activate(self, cut: Cut | None) -> None:
        if cut is None:
            cut = self.cut(self.space.corner("largest", Precision.FP32))
        kept = []
        for i, layer in enumerate(self.layers):
            if f"{self.layout.layers}.{i}" in cut.skipped:
                continue
            kept.append(layer)
            for group, path in self.layout.linears.items():
                self._linear(i, group).width = cut.widths[f"{self.layout.layers}.{i}.{path}"]
            attention: Any = layer.get_submodule(self.layout.attention)
            attention.all_head_size = self._linear(i, "query").width[1]
            attention.num_attention_heads = attention.all_head_size // self.head_size
        self.model.set_submodule(self.layout.layers, nn.ModuleList(kept))

    @torch.no_grad()
    def order(self, batches: Iterable[Batch]) -> None:
        """Sorts heads and feed-forward units by the energy that they add to the residual stream.

        The score of a unit is the mean square of its activation times the squared norm of the weights that read it.
        """
        energy: dict[tuple[int, str], torch.Tensor] = {}

        def record(i: int, group: str) -> Any:
            def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                square = inputs[0].detach().float().square().flatten(0, -2).sum(0)
                energy[i, group] = energy.get((i, group), torch.zeros_like(square)) + square

            return self._linear(i, group).register_forward_pre_hook(hook)

        with self._whole():
            hooks = [record(i, g) for i in range(len(self.layers)) for g in ("attention_output", "output")]
            try:
                self.model.eval()
                for batch in batches:
                    self.model(**{name: torch.as_tensor(array) for name, array in batch.inputs.items()})
            finally:
                for hook in hooks:
                    hook.remove()
            for i in range(len(self.layers)):
                for reader, writers, unit in (
                    ("attention_output", ("query", "key", "value"), self.head_size),
                    ("output", ("intermediate",), 1),
                ):
                    weight = self._linear(i, reader).weight
                    score = (energy[i, reader] * weight.square().sum(0)).view(-1, unit).sum(1)
                    rank = score.argsort(descending=True, stable=True)
                    columns = (rank[:, None] * unit + torch.arange(unit)).flatten()
                    weight.copy_(weight[:, columns])
                    for writer in writers:
                        linear = self._linear(i, writer)
                        linear.weight.copy_(linear.weight[columns])
                        if linear.bias is not None:
                            linear.bias.copy_(linear.bias[columns])

    def weight_mb(self, genes: Genes) -> npt.NDArray[np.float64]:
        space, active = self.space, self.space.active(genes)

        def column(name: str) -> npt.NDArray[np.float64]:
            i = space.index[name]
            choices = np.array(space.variables[i].choices)
            if space.variables[i].kind == "precision":
                choices = np.where(choices == Precision.FP32.value, 4, 1)
            return np.asarray(choices[genes[:, i]] * active[:, i], dtype=np.float64)

        total = np.zeros(len(genes))
        for i in range(len(self.layers)):
            inner, ffn = column(f"layer.{i}.heads") * self.head_size, column(f"layer.{i}.ffn")
            for group in self.layout.linears:
                linear = self._linear(i, group)
                count = {
                    "attention_output": inner * linear.out_features,
                    "intermediate": ffn * linear.in_features,
                    "output": ffn * linear.out_features,
                }.get(group, inner * linear.in_features)
                total += count * column(f"precision.layer.{i}.{group}")
        for group, paths in self.layout.others.items():
            size = sum(self.model.get_submodule(path).weight.numel() for path in paths)
            total += size * column(f"precision.{group}")
        return total / 1e6

    def config(self, candidate: Candidate) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.model.config.to_json_string(use_diff=False))
        return config | {"num_hidden_layers": int(candidate["depth"])}

    def save(self, folder: Path) -> None:
        with self._whole():
            self.model.save_pretrained(folder)
        write_record(folder, self.layout.family, self.elastic, self.training)

    def _linear(self, layer: int, group: str) -> Any:
        return self.layers[layer].get_submodule(self.layout.linears[group])

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """The whole supernet inside, what was active before after."""
        layers = self.model.get_submodule(self.layout.layers)
        widths = [(linear, linear.width) for linear in self.model.modules() if isinstance(linear, ElasticLinear)]
        attentions: list[Any] = [layer.get_submodule(self.layout.attention) for layer in self.layers]
        heads = [(a.num_attention_heads, a.all_head_size) for a in attentions]
        self.activate(None)
        try:
            yield
        finally:
            self.model.set_submodule(self.layout.layers, layers)
            for linear, width in widths:
                linear.width = width
            for attention, (count, size) in zip(attentions, heads, strict=True):
                attention.num_attention_heads, attention.all_head_size = count, size


def fingerprint(model: nn.Module, space: SearchSpace) -> str:
    """Twelve hexadecimal digits of the weights and the space."""
    digest = hashlib.sha256(space.fingerprint.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def outputs(supernet: Supernet, cut: Cut, inputs: Inputs) -> Mapping[str, npt.NDArray[Any]]:
    """What torch computes of a subnet for one batch."""
    supernet.activate(cut)
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


def write_record(folder: Path, family: str, elastic: Elastic, training: Mapping[str, Any]) -> None:
    """Writes what a checkpoint is beside its weights."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "supernet": family,
        "elastic": asdict(elastic),
        "training": dict(training),
    }
    write_json(folder / SUPERNET_FILE, record)


def read_record(checkpoint: str, family: str) -> dict[str, Any] | None:
    """What ``EncoderSupernet.save`` wrote beside the weights; None for a plain Hugging Face checkpoint.

    Raises:
        CheckpointError: The file is malformed, newer than this program, or of another family.
    """
    path = Path(checkpoint) / SUPERNET_FILE
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, found = int(record["schema_version"]), record["supernet"]
        record["elastic"] = Elastic(**{name: tuple(choices) for name, choices in record["elastic"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); train again or restore the file") from None
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; update it")
    if found != family:
        raise CheckpointError(f"{checkpoint} is a '{found}' supernet, not '{family}'; use --supernet {found}")
    return record


def load_encoder(
    layouts: Mapping[str, tuple[Any, Layout]],
    checkpoint: str,
    label_names: Sequence[str] | None,
    default: Callable[[int, int, int], Elastic],
    elastic: Elastic | None,
    precisions: Precisions | None,
) -> EncoderSupernet:
    """Loads a Hugging Face checkpoint, or one that ``EncoderSupernet.save`` wrote, as a supernet.

    Args:
        layouts: A ``model_type`` to the class whose ``from_pretrained`` builds the model with its head, and to where
            the parts are.
        checkpoint: A name or a folder; a folder with a configuration and no weights gives random ones.
        label_names: For a checkpoint without a trained head: the classes that a new one is for.
        default: Number of layers, heads and feed-forward width to the choices of a checkpoint that records none.
        elastic: Choices asked for; they replace the recorded ones.
        precisions: What the user says of the precision of groups.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged or of another model type.
        UsageError: The choices don't fit the model.
    """
    from transformers import AutoConfig

    family = next(layout.family for _, layout in layouts.values())
    record = read_record(checkpoint, family)
    folder = Path(checkpoint)
    options: dict[str, Any] = {"attn_implementation": "eager"}
    if label_names is not None and record is None:
        options |= {
            "num_labels": len(label_names),
            "id2label": dict(enumerate(label_names)),
            "label2id": {name: i for i, name in enumerate(label_names)},
            "ignore_mismatched_sizes": True,
        }
    try:
        with quiet_transformers(), seeded(0):
            config = AutoConfig.from_pretrained(checkpoint)
            if config.model_type not in layouts:
                raise CheckpointError(
                    f"{checkpoint} is a '{config.model_type}' model; the supernet '{family}' takes {', '.join(layouts)}"
                )
            model_class, layout = layouts[config.model_type]
            pretrained = not folder.is_dir() or any(
                [*folder.glob("*.safetensors*"), *folder.glob("pytorch_model*.bin*")]
            )
            if pretrained:
                model = model_class.from_pretrained(checkpoint, **options)
            else:
                config = AutoConfig.from_pretrained(checkpoint, **options)
                model = model_class._from_config(config, attn_implementation="eager")
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        missing = "" if folder.exists() else "there is no such folder, and as a Hugging Face name: "
        raise CheckpointError(f"cannot load the checkpoint '{checkpoint}': {missing}{reason}") from error
    try:
        ffn = int(model.get_submodule(f"{layout.layers}.0.{layout.linears['intermediate']}").out_features)
    except AttributeError as error:
        raise CheckpointError(
            f"the layers of '{checkpoint}' are of a kind that '{family}' does not have: {error}"
        ) from None
    size = (config.num_hidden_layers, config.num_attention_heads, ffn)
    chosen = record["elastic"] if record else default(*size)
    if elastic is not None:
        chosen = replace(chosen, **{name: choices for name, choices in asdict(elastic).items() if choices})
    training = record["training"] if record else None
    supernet = EncoderSupernet(
        model.float().eval(),
        layout,
        chosen,
        precisions=precisions,
        pretrained=pretrained,
        training=training,
    )
    supernet.precisions.check(tuple(supernet.groups))
    return supernet


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps notes about new or unused heads, and retries of downloads, from the user; errors still raise."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    before = [(log, log.get_verbosity()) for log in (logging, hub)]
    for log, _ in before:
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, verbosity in before:
            log.set_verbosity(verbosity)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A fixed torch seed inside, the caller's random state after: a new head gets the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def scaled(largest: int, fractions: Sequence[float], multiple: int = 1) -> tuple[int, ...]:
    """Fractions of a size, rounded to a multiple, ascending, without repeats; ends with the size itself."""
    sizes = {max(multiple, round(largest * fraction / multiple) * multiple) for fraction in fractions}
    return (*sorted(size for size in sizes if size < largest), largest)


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
