"""What a profile has measured so far, kept line by line in a file: a stopped run loses no more than one visit."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import LatencyTableError, OutputError, quoted
from qnas_plugin.files.doors import check_files
from qnas_plugin.latency.fit import Floats
from qnas_plugin.space import Genes

Purpose = Literal["fit", "test"]


@dataclass(frozen=True)
class Timing:
    """A network that was timed in one visit.

    Args:
        purpose: Whether rows are fitted to it, or tested on it.
        genes: Its canonical genotype.
        ms: What it took; see ``steady``.
        spread: How far single rounds were apart after that, relative.
        core_share: See ``measure.Latency``.
        visit: The number of the visit.
    """

    purpose: Purpose
    genes: tuple[int, ...]
    ms: float
    spread: float
    core_share: float
    visit: int


@dataclass
class Measured:
    """What was measured so far: the content of the file beside the table.

    Args:
        alone: Milliseconds of each part's key.
        timings: Of all networks, in order.
        visits: How many batches of networks were timed.
        batches: Their numbers in the order of all batches.
        seconds: How long everything took.
        damaged: How many lines of the file could not be read.
    """

    alone: dict[str, float] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    visits: int = 0
    batches: set[int] = field(default_factory=set)
    seconds: float = 0.0
    damaged: int = 0

    def add(self, line: Mapping[str, Any], sizes: Sequence[int] | None = None) -> None:
        """Takes one line of the file, all of it or nothing.

        Args:
            line: What ``append`` wrote.
            sizes: How many choices each variable has; genotypes are checked against them when they are given.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, OverflowError: It is no such line.
        """
        alone = {str(key): _number(ms) for key, ms in line.get("alone", {}).items()}
        seconds = _number(line.get("seconds", 0.0))
        if "networks" in line:
            timings = [_timing(network, self.visits, sizes) for network in line["networks"]]
            number = int(line.get("batch", max(self.batches, default=-1) + 1))
            self.timings += timings
            self.visits += 1
            self.batches.add(number)
        self.alone |= alone
        self.seconds += seconds


@dataclass(frozen=True)
class Networks:
    """Networks with what they take on the usual machine, joined from all visits.

    Args:
        genes: Canonical genotypes, ``(m, n)``.
        ms: Milliseconds, ``(m,)``.
        tests: Which are held out, ``(m,)``.
        slower: How much slower than usual the machine was in each visit, relative, ``(v,)``.
        noise: What two measurements of a held-out network differ by, relative, each in half of its visits; 0 when
            none was visited twice.
        repeated: How many held-out networks were visited twice or more.
    """

    genes: Genes
    ms: Floats
    tests: npt.NDArray[np.bool_]
    slower: Floats
    noise: float
    repeated: int


def steady(rounds: Floats) -> tuple[Floats, Floats]:
    """What each network takes and how far its rounds are apart, relative, ``(m,)`` both.

    A machine is now faster, now slower, for all networks alike: each round is divided by how its networks compare
    with their own medians.

    Args:
        rounds: The median run in milliseconds of each network in each round, ``(m, rounds)``.
    """
    usual = np.median(rounds, axis=1, keepdims=True)
    alike = rounds / np.median(rounds / usual, axis=0)
    ms = np.median(alike, axis=1)
    return ms, np.median(np.abs(alike / ms[:, None] - 1), axis=1)


def joined(measured: Measured) -> Networks:
    """All visits together, each divided by the speed of the machine in it (weighted least squares of logarithms).

    What was measured with a spread of 1 % counts four times as much as with 2 %.
    """
    index = {genes: i for i, genes in enumerate(dict.fromkeys(timing.genes for timing in measured.timings))}
    network = np.array([index[timing.genes] for timing in measured.timings])
    visit = np.array([timing.visit for timing in measured.timings])
    log_ms = np.log([timing.ms for timing in measured.timings])
    weight = 1 / np.maximum([timing.spread for timing in measured.timings], 0.005)
    columns = np.hstack([np.eye(len(index))[network], np.eye(measured.visits)[visit]])
    slower = np.linalg.lstsq(columns * weight[:, None], log_ms * weight, rcond=None)[0][len(index) :]
    slower -= slower.mean()
    steadied = log_ms - slower[visit]
    tests = {timing.genes for timing in measured.timings if timing.purpose == "test"}
    own = [np.flatnonzero(network == i) for i in range(len(index))]

    def mean(of: npt.NDArray[np.int64]) -> float:
        return float(np.average(steadied[of], weights=weight[of] ** 2))

    halves = [of for genes, of in zip(index, own, strict=True) if genes in tests and len(of) > 1]
    return Networks(
        genes=np.array([*index], dtype=np.int64),
        ms=np.exp([mean(of) for of in own]),
        tests=np.array([genes in tests for genes in index]),
        slower=np.expm1(slower),
        noise=float(np.mean([abs(mean(of[::2]) - mean(of[1::2])) for of in halves] or [0.0])),
        repeated=len(halves),
    )


def resume(work: Path, identity: Mapping[str, Any], sizes: Sequence[int] | None = None) -> Measured:
    """What an earlier run measured; begins the file when there is none.

    Lines that are damaged are counted and left where they are; a last one that a killed run left half written goes.

    Args:
        work: The file; the caller keeps other processes from it.
        identity: What it must have been measured with: its first line.
        sizes: See ``Measured.add``.

    Raises:
        LatencyTableError: It was measured with something else, or its first line is damaged.
        OutputError: It cannot be read or written.
    """
    measured = Measured()
    try:
        check_files(work)
        with work.open("a+b") as file:
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content) and _parsed(content[whole:]) is None:
                content = content[:whole]
                file.truncate(whole)
            elif whole < len(content):
                file.write(b"\n")  # else the next line would be glued to it
            lines = [line for line in content.split(b"\n") if line.strip()]
            if not lines:
                file.write((json.dumps(identity, sort_keys=True) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
                return measured
    except OSError as error:
        raise OutputError(f"cannot read or write {work}: {error.strerror or error}") from None
    first = _parsed(lines[0])
    if first is None:
        raise LatencyTableError(
            f"the first line of {work}, which says what was measured, is damaged; restore it, or move the file away to "
            "measure anew"
        )
    if first != identity:
        changed = [name for name in identity if first.get(name) != identity[name]]
        raise LatencyTableError(
            f"{work} was measured with another {changed[0] if changed else 'version'}; give another --out, or "
            "remove the file to measure anew"
        )
    for line in lines[1:]:
        try:
            measured.add(json.loads(line), sizes)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            measured.damaged += 1
    return measured


def _check(measured: Measured) -> None:
    """Looks at what a file says before anybody calculates with it.

    Raises:
        ValueError: A time is no positive number, or a genotype has another length than the others.
    """
    for ms in measured.alone.values():
        if not (isinstance(ms, int | float) and math.isfinite(ms) and ms >= 0):
            raise ValueError(f"{quoted(ms)} is no time")
    for timing in measured.timings:
        numbers = (timing.ms, timing.spread, timing.core_share)
        if not (all(isinstance(number, float) and math.isfinite(number) for number in numbers) and timing.ms > 0):
            raise ValueError(f"{quoted(numbers)} is no measurement")
        if not all(type(gene) is int for gene in timing.genes) or len(timing.genes) != len(measured.timings[0].genes):
            raise ValueError(f"{quoted(timing.genes)} is no genotype")


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


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None where it is something else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _timing(network: Mapping[str, Any], visit: int, sizes: Sequence[int] | None) -> Timing:
    genes = tuple(int(gene) for gene in network["genes"])
    if sizes is not None and not (
        len(genes) == len(sizes) and all(0 <= gene < size for gene, size in zip(genes, sizes, strict=True))
    ):
        raise ValueError("a genotype of another space")
    if network["purpose"] not in get_args(Purpose) or not _number(network["ms"]) > 0:
        raise ValueError("no purpose, or no time")
    return Timing(
        network["purpose"],
        genes,
        _number(network["ms"]),
        _number(network["spread"]),
        _number(network["core_share"]),
        visit,
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError("no number")
    return float(value)
