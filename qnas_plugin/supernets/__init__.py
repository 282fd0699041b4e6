"""The seam of the supernets: a model whose subnets are slices of its weights.

A supernet is a module of this folder (or of an entry point ``qnas_plugin.supernets``) with one function:

    load(
        checkpoint: str,
        *,
        label_names: Sequence[str] | None = None,
        elastic: Elastic | None = None,
        precisions: Precisions | None = None,
    ) -> Supernet

``checkpoint`` is a Hugging Face name or folder, or a folder that ``Supernet.save`` wrote. How one is made stands in
``docs/add_a_supernet.md``. With a second function, the family is tested by ``qnas_plugin.testing.supernets``:

    tiny(folder: Path) -> Tiny
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from qnas_plugin.data import Batch, Inputs
from qnas_plugin.space import Candidate, SearchSpace

if TYPE_CHECKING:
    import torch

    from qnas_plugin.build.graph import Cut, Graph
    from qnas_plugin.hardware import RuntimeSetting


@dataclass(frozen=True)
class Elastic:
    """The choices of the elastic dimensions, smallest first; an empty one stands for the family's own.

    Args:
        depth: Numbers of layers kept, in all or in a stage.
        heads: Numbers of attention heads kept in a layer.
        ffn: Widths of the feed-forward part of a layer.
        kernel: Sizes of convolution kernels.
        expand: Widths inside a block, relative to the block's own.
        width: Widths of a stage, relative to the whole.
    """

    depth: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    ffn: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    expand: tuple[float, ...] = ()
    width: tuple[float, ...] = ()


@dataclass(frozen=True)
class Part:
    """A place in the network that takes time: parts of one kind whose variables have equal values take the same.

    It is there while all its variables exist.

    Args:
        kind: What it is, ``query``.
        variables: Label to the name of a variable: ``heads`` to ``layer.0.heads``, ``precision`` to the group's.
        paths: The modules whose nodes it is made of; a node belongs to the part with the longest path above it.
        block: Which block of the network it is in, ``layer.0``; parts outside the blocks have none.
        levels: What it may be taken together with, the widest first: ``layer``, ``attention``, ``projections``.
        reader: The module that reads a tensor, of which this part is the change between INT8 and FP32. Its last two
            variables are the precisions of what writes the tensor and of what reads it; it is there while one of them
            is ``fp32`` and the other one is not, and no node is its own.
    """

    kind: str
    variables: Mapping[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ("",)
    block: str = ""
    levels: tuple[str, ...] = ()
    reader: str | None = None


@dataclass(frozen=True)
class Tiny:
    """A checkpoint with random weights that is small enough for tests, and what the family takes and refuses.

    Args:
        checkpoint: A folder with ``config.json``, ``model.safetensors`` and the tokenizer or image processor.
        inputs: Of three examples; where there is a mask, some of them are padded.
        elastic: Choices for this checkpoint; none for the family's own.
        refused: Choices that the family refuses.
        plain: A class whose ``from_pretrained`` reads the checkpoint and computes the same as the whole supernet; None
            where nobody else has such a class.
    """

    checkpoint: Path
    inputs: Inputs
    elastic: Elastic = Elastic()
    refused: tuple[Elastic, ...] = ()
    plain: type[Any] | None = None


class Network(Protocol):
    """What can be searched: a space, and the ONNX graph of which its candidates are cuts with a precision policy."""

    @property
    def space(self) -> SearchSpace:
        """Architecture variables first, then one precision variable for each group, named ``precision.<group>``."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names in the order of the model's outputs; none where the model does not tell."""
        ...

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the weights and the space."""
        ...

    def graph(self, inputs: Inputs) -> Graph:
        """The graph of the whole network; the inputs only give names, types and ranks.

        Raises:
            MaterializeError: The graph has another form than expected.
        """
        ...

    def outputs(self, candidate: Candidate, inputs: Inputs) -> Mapping[str, npt.NDArray[Any]]:
        """What a candidate gives for one batch, without that graph; in FP32 unless it was trained quantized."""
        ...

    def cut(self, candidate: Candidate) -> Cut:
        """What the candidate's subnet keeps."""
        ...

    def config(self, candidate: Candidate) -> dict[str, Any]:
        """What stands as ``config.json`` beside a candidate's ONNX file, for ``ORTModelFor...`` and pipelines.

        Empty where there is no such file.
        """
        ...


class Supernet(Network, Protocol):
    """A torch model with shared weights, whose subnets are slices, and the layers that its policy is about."""

    @property
    def model(self) -> torch.nn.Module:
        """Takes inputs by name and returns ``logits``, as Hugging Face models do; computes what was activated last."""
        ...

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Precision group to the paths of the modules that it holds."""
        ...

    @property
    def pretrained(self) -> bool:
        """Whether the weights came from a checkpoint; they are random where a folder has a configuration only."""
        ...

    @property
    def new_head(self) -> tuple[str, ...]:
        """The tensors of the head that the checkpoint lacks: random until training; none where it is whole."""
        ...

    @property
    def shape(self) -> Mapping[str, int | str]:
        """What the time of its parts depends on beside their variables: hidden size, activation, patch size, ..."""
        ...

    @property
    def parts(self) -> tuple[Part, ...]:
        """The smallest places whose times add up to the network's; one has the path ``""``: all that is in no other."""
        ...

    def example(self, setting: RuntimeSetting) -> Inputs:
        """Inputs of the exact shape of a setting, made without data: random, without padding, the same each time.

        Raises:
            UsageError: The setting lacks a sequence length, or the model does not take such inputs.
        """
        ...

    def activate(self, candidate: Candidate | None) -> None:
        """Makes ``model`` compute a candidate; None is the whole supernet in FP32.

        A family that trains quantized networks computes in the formats of the candidate's policy, others in FP32.
        """
        ...

    def order(self, batches: Iterable[Batch]) -> None:
        """Sorts heads, units or channels by importance on these data, so that the first k are the best k.

        The function that the whole supernet computes stays the same.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes a checkpoint that ``load`` reads, and Hugging Face's ``from_pretrained`` where the class is theirs."""
        ...


def check_trained(supernet: Supernet, checkpoint: str) -> None:
    """Checks that all weights came from the checkpoint.

    Raises:
        CheckpointError: They, or those of the head, are random.
    """
    from qnas_plugin.errors import CheckpointError

    if not supernet.pretrained:
        raise CheckpointError(f"{checkpoint} has a configuration but no weights; train it first with: qnas train")
    if supernet.new_head:
        raise CheckpointError(
            f"{checkpoint} has no trained head ({', '.join(supernet.new_head)} would be random); train it first with: "
            "qnas train"
        )


def check_labels(network: Network, label_names: Sequence[str], source: str) -> None:
    """Checks that a model's classes are those of a data set, where both tell.

    Raises:
        CheckpointError: Their numbers or names differ.
    """
    from qnas_plugin.errors import CheckpointError

    have = network.label_names
    if not have or not label_names:
        return
    if len(have) != len(label_names):
        raise CheckpointError(
            f"the checkpoint has {len(have)} classes ({', '.join(have[:5])}...) and {source} has {len(label_names)} "
            f"({', '.join(label_names[:5])}...); train on this data first with: qnas train"
        )
    generic = all(name == f"LABEL_{i}" for i, name in enumerate(have))
    if not generic and list(have) != list(label_names):
        raise CheckpointError(
            f"the checkpoint's classes are {', '.join(have[:5])}... and those of {source} are "
            f"{', '.join(label_names[:5])}...; they must be the same in the same order"
        )
