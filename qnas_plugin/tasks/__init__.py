"""The seam of the tasks: a data set in five disjoint parts, and what turns its raw examples into model inputs.

A task is a module of this folder (or of an entry point ``qnas_plugin.tasks``) with two functions:

    load(data: str, *, sizes: SplitSizes) -> Dataset
    processor(checkpoint: str, *, max_length: int | None = None) -> Processor
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import DataError, UsageError
from qnas_plugin.errors import reason as reason

SPLITS = ("train", "train_holdout", "validation", "val", "dev", "test")
"""The names that a file or folder of a split can have; `held_out_and_report` says what each is for."""

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
        metric: The name of the metric, see ``qnas_plugin.metrics``.
        fingerprint: Twelve hexadecimal digits of the content of all parts.
        source: Where the data came from, for people.
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


def checkpoint_folder(checkpoint: str) -> str:
    """Where a checkpoint's tokenizer or image processor is: beside a model file, else the folder or name itself."""
    path = Path(checkpoint)
    return str(path.parent) if path.is_file() else checkpoint


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


def content_key(*fields: bytes) -> bytes:
    """What examples of equal content share, and what decides the part that an example goes to."""
    return hashlib.sha256(b"".join(len(field).to_bytes(8, "little") + field for field in fields)).digest()


@dataclass(frozen=True)
class Pool:
    """Examples before the split.

    Args:
        items: ``n`` of them.
        labels: Of each.
        keys: The `content_key` of each item.
        clusters: The `content_key` of what items share that depend on each other, the image of several questions; None
            where nothing is shared.
    """

    items: Sequence[Any]
    labels: npt.NDArray[Any]
    keys: Sequence[bytes]
    clusters: Sequence[bytes] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, positions: Sequence[int]) -> Pool:
        """The examples at these positions, in their order."""
        return Pool(
            [self.items[i] for i in positions],
            self.labels[list(positions)],
            [self.keys[i] for i in positions],
            None if self.clusters is None else [self.clusters[i] for i in positions],
        )

    def without(self, other: Pool) -> Pool:
        """The examples whose content the other pool does not have."""
        theirs = frozenset(other.keys)
        return self.take([i for i, key in enumerate(self.keys) if key not in theirs])

    def cut(self, size: int | None, *, one_in: int = 1) -> tuple[Pool, Pool]:
        """Splits off examples of distinct content by the order of their keys.

        Args:
            size: How many to split off at most.
            one_in: At most one in this many contents is split off; one example always is.

        Returns:
            What was split off, one example of each content, and the examples of all other contents.
        """
        first: dict[bytes, int] = {}
        for i in sorted(range(len(self)), key=lambda i: (self.keys[i], self.labels[i].tolist())):
            first.setdefault(self.keys[i], i)
        limit = max(1, len(first) // one_in)
        part = self.take(list(first.values())[: limit if size is None else min(size, limit)])
        return part, self.without(part)

    def divided(self, sizes: SplitSizes) -> tuple[Pool, Pool]:
        """What was held out for search and selection, apart; examples of one cluster stay together."""
        clusters = self.keys if self.clusters is None else self.clusters
        order = sorted(range(len(self)), key=lambda i: (clusters[i], self.keys[i]))
        last = sizes.divided(len(self))
        while 0 < last < len(order) and clusters[order[last - 1]] == clusters[order[last]]:
            last += 1
        return self.take(order[:last]), self.take(order[last:])

    def examples(self, view: Callable[[Sequence[Any]], Sequence[Any]] = list) -> Examples:
        """The raw examples; ``view`` makes them of the items."""
        numbers = {} if self.clusters is None else {key: i for i, key in enumerate(dict.fromkeys(self.clusters))}
        clusters = None if self.clusters is None else np.array([numbers[key] for key in self.clusters], dtype=np.int64)
        return Examples(view(self.items), self.labels, clusters)


def held_out_and_report(splits: Collection[str], source: str) -> tuple[str | None, str]:
    """Which of the splits found are the held-out training data and the one to report.

    The report is ``test``, or without it ``validation`` (also named ``val`` or ``dev``). Held-out training data is
    ``train_holdout``, or without it a validation split beside a test split.

    Raises:
        DataError: There is no ``train``, nothing to report, or two names of one split.
    """
    validation = [name for name in ("validation", "val", "dev") if name in splits]
    if len(validation) > 1:
        raise DataError(f"{source}: {' and '.join(validation)} name the same split; keep one")
    reports = [*(["test"] if "test" in splits else []), *validation]
    if "train" not in splits or not reports:
        missing = "a labelled 'test' or 'validation'" if "train" in splits else "'train'"
        raise DataError(f"{source}: a split is missing: {missing}; have: {', '.join(sorted(splits)) or 'none'}")
    held_out = ["train_holdout"] if "train_holdout" in splits else reports[1:]
    return next(iter(held_out), None), reports[0]


def assemble(
    train: Pool,
    *,
    held_out: Pool | None,
    report: Pool | None,
    sizes: SplitSizes,
    label_names: tuple[str, ...],
    source: str,
    view: Callable[[Sequence[Any]], Sequence[Any]] = list,
) -> Dataset:
    """The data set of accuracy tasks, in five parts that share no content.

    What stands in the report split leaves the other parts, and what stands in the held-out data leaves the training
    part whether it was chosen or not: with both given, ``train`` does not depend on the sizes.

    Args:
        train: The training data.
        held_out: Training data that was held out; None cuts calibration, search and selection from ``train``.
        report: The official split; None cuts it from ``train``.
        sizes: How many examples each part gets.
        label_names: Names in the order of the label numbers.
        source: Where the data came from, for people.
        view: Turns the items of a part into its raw examples.

    Raises:
        UsageError: A size is below 1.
        DataError: A part would be empty.
    """
    for name, least in (("calibration", 1), ("search", 1), ("selection", 0), ("report", 1)):
        size = getattr(sizes, name)
        if size is not None and size < least:
            raise UsageError(f"the {name} split needs at least {least} example{'s' * (not least)}, got {size}")
    if report is None:
        report, train = train.cut(sizes.report, one_in=3)
    else:
        train = train.without(report)
        held_out = held_out.without(report) if held_out is not None else None
        if sizes.report is not None and sizes.report < len(report):
            report, _ = report.cut(sizes.report)
    if held_out is None:
        apart, train = train.cut(sizes.held_out, one_in=2)
        calibration, train = train.cut(sizes.calibration, one_in=3)
    else:
        train = train.without(held_out)
        calibration, rest = held_out.cut(sizes.calibration, one_in=3)
        apart, _ = rest.cut(sizes.held_out)
    search, selection = apart.divided(sizes)

    parts = {"train": train, "calibration": calibration, "search": search, "selection": selection, "report": report}
    for name, part in parts.items():
        if not len(part) and name != "selection":
            raise DataError(
                f"{source}: no example is left for {name} once equal ones stand in one part; give more data"
            )
    content = [b"".join(part.keys) + part.labels.astype("<i8").tobytes() for part in parts.values() if len(part)]
    return Dataset(
        **{name: part.examples(view) for name, part in parts.items()},
        label_names=label_names,
        metric="accuracy",
        fingerprint=content_key("\0".join(label_names).encode(), *content).hex()[:12],
        source=source,
    )
