"""The seam of the runtimes: what opens a model in a setting and runs it.

A runtime is a module of this folder, or of an entry point ``qnas_plugin.runtimes``. Processes that
time import it, so it loads little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx


class Session(Protocol):
    """A model that is open."""

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, npt.NDArray[Any]]) -> Sequence[npt.NDArray[Any]]:
        """Named outputs, or all, for named inputs."""
        ...


class Runtime(Protocol):
    """A module that opens models."""

    def version(self) -> str:
        """Of the package that does it."""
        ...

    def session(
        self, model: str | Path, threads: int, *, spinning: bool, arena: bool = True, cpus: Sequence[int] = ()
    ) -> Session:
        """A session on the CPU with fixed threads and exact INT8 products.

        Args:
            cpus: One for each thread, the calling thread's first; none leaves threads where the system puts them.
        """
        ...

    def feed(self, model: Any, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The inputs that a session takes, of those that are given."""
        ...

    def optimised(self, model: Path) -> onnx.ModelProto:
        """The graph that is run, of which names of operators are those of kernels; large weights have no values.

        Raises:
            MeasurementError: It cannot run the file.
        """
        ...
