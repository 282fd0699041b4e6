"""What a profile has measured so far, kept line by line in a file: a stopped run loses no more than one group."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qnas_plugin.errors import LatencyTableError, OutputError
from qnas_plugin.files import write_bytes
from qnas_plugin.latency_fit import Floats, Indices
from qnas_plugin.space import Genes

Purpose = Literal["fit", "reference", "test", "repeat"]


@dataclass(frozen=True)
class Timing:
    """A network that was timed.

    Args:
        purpose: Whether rows are fitted to it, or to it as the one that is in all groups; whether rows are tested on
            it, or it is a second time that a test is timed.
        genes: Its canonical genotype.
        rounds: Medians of the rounds, in milliseconds.
        core_share: See ``measure.Latency``.
        group: The number of its group.
    """

    purpose: Purpose
    genes: tuple[int, ...]
    rounds: tuple[float, ...]
    core_share: float
    group: int

    @property
    def ms(self) -> float:
        """What the network takes; see ``undisturbed``."""
        return undisturbed(self.rounds)

    @property
    def spread(self) -> float:
        """How far the faster half of the rounds was apart, relative."""
        return disagreement(self.rounds)


def undisturbed(rounds: Sequence[float]) -> float:
    """The median of the faster half of the rounds: whatever else happens on a machine makes a round slower only."""
    return float(np.median(_faster_half(rounds)))


def disagreement(rounds: Sequence[float]) -> float:
    """How far the faster half of the rounds is apart, relative."""
    half = _faster_half(rounds)
    return half[-1] / half[0] - 1


def _faster_half(rounds: Sequence[float]) -> list[float]:
    return sorted(rounds)[: (len(rounds) + 1) // 2]


@dataclass
class Measured:
    """What was measured so far: the content of the file beside the table.

    Args:
        alone: Milliseconds of each part's key.
        timings: Of all networks, in order.
        groups: How many groups of networks were timed.
        seconds: How long everything took.
    """

    alone: dict[str, float] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    groups: int = 0
    seconds: float = 0.0

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes one line of the file."""
        self.alone |= line.get("alone", {})
        if "networks" in line:
            self.timings += [
                Timing(
                    timing["purpose"],
                    tuple(timing["genes"]),
                    tuple(timing["rounds"]),
                    timing["core_share"],
                    self.groups,
                )
                for timing in line["networks"]
            ]
            self.groups += 1
        self.seconds += line.get("seconds", 0.0)


@dataclass(frozen=True)
class Arrays:
    """The networks of some purposes: genotypes ``(m, n)``, milliseconds ``(m,)``, and numbers of groups ``(m,)``."""

    genes: Genes
    ms: Floats
    groups: Indices

    @classmethod
    def of(cls, measured: Measured, *purposes: Purpose) -> Arrays:
        """Those of what was measured, in its order."""
        kept = [timing for timing in measured.timings if timing.purpose in purposes]
        return cls(
            np.array([timing.genes for timing in kept], dtype=np.int64),
            np.array([timing.ms for timing in kept]),
            np.array([timing.group for timing in kept], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ms)

    def first(self, count: int) -> Arrays:
        """The first networks."""
        return Arrays(self.genes[:count], self.ms[:count], self.groups[:count])


def resume(work: Path, identity: Mapping[str, Any]) -> Measured:
    """What an earlier run measured; begins the file when there is none."""
    measured = Measured()
    try:
        lines = work.read_text(encoding="utf-8").splitlines() if work.exists() else []
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:
                break  # a run was stopped while it wrote this line
        if not records:
            write_bytes(work, (json.dumps(identity, sort_keys=True) + "\n").encode())
            return measured
        if records[0] != identity:
            changed = [name for name in identity if records[0].get(name) != identity[name]]
            raise LatencyTableError(
                f"{work} was measured with another {changed[0] if changed else 'version'}; give another --out, or "
                "remove the file to measure anew"
            )
        for record in records[1:]:
            measured.add(record)
        if len(records) < len(lines):
            write_bytes(work, "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode())
    except OSError as error:
        raise OutputError(f"cannot read or write {work}: {error.strerror or error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise LatencyTableError(f"{work} is damaged ({error}); remove it to measure anew") from None
    return measured


def append(work: Path, measured: Measured, make: Callable[[], dict[str, Any]]) -> None:
    """Makes a line, and adds it with the time that it took to the file and to what was measured."""
    began = time.monotonic()
    line = make()
    line["seconds"] = time.monotonic() - began
    try:
        with work.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {work}: {error.strerror or error}") from None
    measured.add(line)
