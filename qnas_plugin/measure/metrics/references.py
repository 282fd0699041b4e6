"""What the FP32 model gives for each example, kept on disk: outputs of all examples need not fit into memory."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.errors import OutputError
from qnas_plugin.measure.metrics.metric import Outputs

Runs = Callable[[], Iterable[tuple[npt.NDArray[np.int64], Outputs]]]
"""Gives positions and outputs of each run. Outputs of one example may lack a batch axis."""

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class References:
    """Outputs of the FP32 model by example. They are made when first asked for, in each process anew.

    Args:
        runs: All examples, each once.
    """

    runs: Runs
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _made: list[_Stored] = field(default_factory=list, init=False, repr=False)

    def make(self) -> None:
        """Makes them now.

        Raises:
            OutputError: There is no room for a temporary file.
        """
        _ = self._stored

    def of(self, positions: npt.NDArray[np.int64]) -> Arrays:
        """The arrays of numbers among the outputs of these examples, ``(b, ...)`` each.

        Raises:
            OutputError: There is no room for a temporary file.
        """
        return self._stored.rows(positions)

    @property
    def kinds(self) -> dict[str, tuple[str, bool]]:
        """The arrays of numbers among the outputs: the kind of their type, and whether one has more than one number.

        Raises:
            OutputError: There is no room for a temporary file.
        """
        return self._stored.kinds

    @property
    def names(self) -> tuple[str, ...]:
        """All outputs.

        Raises:
            OutputError: There is no room for a temporary file.
        """
        return tuple(self._stored.names)

    @property
    def _stored(self) -> _Stored:
        with self._lock:
            if not self._made:
                self._made.append(_Stored.of(self.runs()))
            return self._made[0]

    def __reduce__(self) -> tuple[type[References], tuple[Runs]]:
        return References, (self.runs,)


@dataclass(frozen=True, eq=False)
class _Stored:
    """A file of one record for each run."""

    file: IO[bytes]
    records: list[dict[str, int]] = field(default_factory=list)
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    kinds: dict[str, tuple[str, bool]] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    last: dict[int, Arrays] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, runs: Iterable[tuple[npt.NDArray[np.int64], Outputs]]) -> _Stored:
        stored = cls(tempfile.TemporaryFile(prefix="qnas-references-"))  # noqa: SIM115 - lives as long as this
        try:
            for positions, outputs in runs:
                stored._add(positions, outputs)
        except OSError as error:
            raise OutputError(
                f"cannot keep the FP32 model's outputs in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a "
                "folder with more room"
            ) from error
        return stored

    def _add(self, positions: npt.NDArray[np.int64], outputs: Outputs) -> None:
        record = {}
        for name, values in outputs.items():
            self.names[name] = None
            if not isinstance(values, np.ndarray) or values.dtype.kind not in "biufc":
                continue
            record[name] = self.file.tell()
            rows = values[None] if len(positions) == 1 else values
            np.save(self.file, rows, allow_pickle=False)
            kind, several = self.kinds.get(name, (values.dtype.kind, False))
            self.kinds[name] = kind, several or rows[0].size != 1
        self.places.update({position: (len(self.records), row) for row, position in enumerate(positions.tolist())})
        self.records.append(record)

    def rows(self, positions: npt.NDArray[np.int64]) -> Arrays:
        places = [self.places[position] for position in positions.tolist()]
        with self.lock:
            found = {number: self._record(number) for number in dict.fromkeys(number for number, _ in places)}
            self.last.clear()
            self.last.update(list(found.items())[-1:])
        names = found[places[0][0]]
        return {name: np.stack([found[number][name][row] for number, row in places]) for name in names}

    def _record(self, number: int) -> Arrays:
        if number in self.last:
            return self.last[number]
        arrays = {}
        for name, start in self.records[number].items():
            self.file.seek(start)
            arrays[name] = np.load(self.file, allow_pickle=False)
        return arrays
