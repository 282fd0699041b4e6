"""The seam of the tasks: a data set in four disjoint parts, and what turns its raw examples into model inputs.

A task is a module of this folder (or of an entry point ``qnas_plugin.tasks``) with two functions:

    load(data: str, *, sizes: SplitSizes) -> Dataset
    processor(checkpoint: str, *, max_length: int | None = None) -> Processor
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Inputs = Mapping[str, npt.NDArray[Any]]
"""Model inputs by their ONNX name; the first axis of each array is the batch."""


@dataclass(frozen=True)
class Batch:
    """Model inputs and the positions ``(b,)``, in their part of the data set, of the examples that they hold."""

    inputs: Inputs
    positions: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Raw examples (texts, or images as ``uint8`` arrays ``(h, w, c)``) and their labels, shape ``(n,)``."""

    inputs: Sequence[Any]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SplitSizes:
    """How many examples each held-out part gets; None takes all that its source has.

    Args:
        calibration: Examples for the ranges of static quantization, from the training data.
        search: Examples for the accuracy that steers the search, from the training data.
        report: Examples for the verified results, from the official validation or test split.
    """

    calibration: int = 128
    search: int | None = 2000
    report: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set in four disjoint parts. The split depends on the data and the sizes alone, never on a seed.

    Args:
        train: What training may see; disjoint from the other three.
        calibration: Part of the training data, for quantization ranges.
        search: Part of the training data, for the accuracy that steers the search.
        report: The official validation or test split, for the verified results only.
        label_names: Names in the order of the label numbers.
        metric: The name of the metric; higher is better, in [0, 1].
        fingerprint: Twelve hexadecimal digits of the content of all four parts.
        source: Where the data came from, for people.
    """

    train: Examples
    calibration: Examples
    search: Examples
    report: Examples
    label_names: tuple[str, ...]
    metric: str
    fingerprint: str
    source: str


class Processor(Protocol):
    """Turns raw examples into model inputs: a tokenizer or an image processor."""

    def batches(self, inputs: Sequence[Any], batch_size: int) -> list[Batch]:
        """All examples in batches, each example once; texts are grouped by length so that little is padded."""
        ...

    def timing_inputs(self, batch_size: int, sequence_length: int | None) -> Inputs:
        """Inputs of the exact shape that a latency is measured at, without padding; the same each time."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the tokenizer or image processor files that Hugging Face loads beside a model."""
        ...
