"""Data sets as values: raw examples in five disjoint parts, and the model inputs that a processor makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Inputs = Mapping[str, npt.NDArray[Any]]
"""Model inputs by their ONNX name; the first axis of each array is the batch."""


@dataclass(frozen=True)
class Batch:
    """Model inputs and the positions ``(b,)``, in their part of the data set, of the examples that they hold."""

    inputs: Inputs
    positions: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Raw examples and their labels, shape ``(n,)``.

    An example is a text, an image as a ``uint8`` array ``(h, w, c)``, a question with an image's file, or arrays by the
    name of the model's input.

    Args:
        inputs: ``n`` of them.
        labels: Of each.
        clusters: The number ``(n,)`` of what examples share, where they depend on each other: the image of questions.
    """

    inputs: Sequence[Any]
    labels: npt.NDArray[Any]
    clusters: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SplitSizes:
    """How many examples each held-out part gets at most; None takes all that its source has.

    A part that is cut from data of which something must be left takes no more than a third of it, search and selection
    together no more than half.

    Args:
        calibration: Examples for the ranges of static quantization, from the training data.
        search: Examples for the accuracy that steers the search, from the training data.
        selection: Examples on which the recommended member is chosen, from the training data; None is as many as the
            search has.
        report: Examples for the verified results, from the official validation or test split.
    """

    calibration: int = 128
    search: int | None = 2000
    selection: int | None = None
    report: int | None = None

    @property
    def held_out(self) -> int | None:
        """Examples for search and selection together."""
        return (
            None if self.search is None else self.search + (self.search if self.selection is None else self.selection)
        )

    def divided(self, count: int) -> int:
        """How many of ``count`` examples that were held out for both are for the search; both shrink alike."""
        if self.search is None:
            return count - min(count // 2, count if self.selection is None else self.selection)
        selection = self.search if self.selection is None else self.selection
        return count - min(selection, count * selection // (self.search + selection))


@dataclass(frozen=True)
class Losses:
    """What training minimises, given by the task: only it knows which axis of its logits is that of the classes.

    Args:
        labels: Logits ``(b, ...)`` and labels ``(b, ...)`` of a batch to a scalar.
        teacher: Logits and those of a teacher, of one shape, to a scalar.
    """

    labels: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    teacher: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Dataset:
    """A data set in five disjoint parts. The split depends on the data and the sizes alone, never on a seed.

    Args:
        train: What training may see; disjoint from the other four.
        calibration: Part of the training data, for quantization ranges.
        search: Part of the training data, for the accuracy that steers the search.
        selection: Part of the training data, on which nothing is searched: what is recommended is chosen on it. It may
            be empty.
        report: The official validation or test split, for the verified results only.
        label_names: Names in the order of the label numbers.
        metric: The name of the metric, see ``qnas_plugin.measure.metrics``.
        fingerprint: Twelve hexadecimal digits of the content of all parts.
        source: Where the data came from, for people.
        losses: What training on it minimises; None where nothing is trained on it.
    """

    train: Examples
    calibration: Examples
    search: Examples
    selection: Examples
    report: Examples
    label_names: tuple[str, ...]
    metric: str
    fingerprint: str
    source: str
    losses: Losses | None = None


class Processor(Protocol):
    """Turns raw examples into model inputs: a tokenizer or an image processor."""

    def batches(self, inputs: Sequence[Any], batch_size: int) -> Sequence[Batch]:
        """All examples in batches, each example once; texts are grouped by length so that little is padded.

        A batch may be encoded anew at each access; whoever runs over few examples many times keeps a list.
        """
        ...

    def timing_inputs(self, batch_size: int, sequence_length: int | None, examples: Sequence[Any] = ()) -> Inputs:
        """Inputs of the exact shape that a latency is measured at, without padding; the same each time.

        Args:
            batch_size: Examples a run.
            sequence_length: Of texts.
            examples: Some of the data, where nothing else tells shapes and values.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes the tokenizer or image processor files that Hugging Face loads beside a model."""
        ...


ENCODED = 256
"""How many search examples a fingerprint of their encoding is of."""


def encoding(processor: Processor, dataset: Dataset) -> str:
    """Twelve hexadecimal digits of what a processor makes of a data set: of its tokenizer or image processor.

    It is of the calibration part and the first ``ENCODED`` examples of the search part. Pixels and other fractions
    count to two decimals, so that the last bits of another library's version don't.
    """
    digest = hashlib.sha256()
    for inputs in (dataset.calibration.inputs, dataset.search.inputs[:ENCODED]):
        for batch in processor.batches(inputs, 32) if len(inputs) else ():
            for name, array in sorted(batch.inputs.items()):
                whole = np.round(array, 2) + 0.0 if array.dtype.kind == "f" else array
                digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(whole).tobytes())
    return digest.hexdigest()[:12]


Item = TypeVar("Item")
Source = TypeVar("Source")


@dataclass(frozen=True, eq=False)
class OnAccess(Sequence[Item], Generic[Source, Item]):
    """A sequence whose items are made from their sources at each access, so that few are in memory at a time."""

    sources: Sequence[Source]
    make: Callable[[Source], Item]

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> OnAccess[Source, Item]: ...

    def __getitem__(self, index: int | slice) -> Item | OnAccess[Source, Item]:
        if isinstance(index, slice):
            return OnAccess(self.sources[index], self.make)
        return self.make(self.sources[index])
