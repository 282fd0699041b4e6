"""The seam of the tasks: a data set in five disjoint parts, and what turns its raw examples into model inputs.

A task is a module of this folder (or of an entry point ``qnas_plugin.tasks``) with two functions:

    load(data: str, *, sizes: SplitSizes) -> Dataset
    processor(checkpoint: str, *, max_length: int | None = None) -> Processor

The data set names its metric (``qnas_plugin.measure.metrics``), and has the losses that ``qnas train`` minimises: of
its labels, and of a teacher's logits.

With a third one, the task is tested by ``qnas_plugin.testing.tasks``:

    tiny(folder: Path) -> Tiny
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.data import Dataset, Examples, SplitSizes
from qnas_plugin.errors import DataError, UsageError
from qnas_plugin.tasks._losses import of_classes

SPLITS = ("train", "train_holdout", "validation", "val", "dev", "test")
"""The names that a file or folder of a split can have; `held_out_and_report` says what each is for."""


@dataclass(frozen=True)
class Tiny:
    """Data and a checkpoint that are small enough for tests.

    Args:
        data: What ``load`` takes: about 80 examples, 20 of them or more held out.
        checkpoint: What ``processor`` takes: a folder with a tokenizer or an image processor, or a model file.
    """

    data: Path
    checkpoint: Path


def checkpoint_folder(checkpoint: str) -> str:
    """Where a checkpoint's tokenizer or image processor is: beside a model file, else the folder or name itself."""
    path = Path(checkpoint)
    return str(path.parent) if path.is_file() else checkpoint


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
        losses=of_classes(),
    )
