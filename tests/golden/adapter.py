"""Where the things stand that the golden record looks at: the one file here that follows when modules move."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qnas_plugin.build.shared_model import Outline
from qnas_plugin.commands.loading import load
from qnas_plugin.latency.rows import GRANULARITIES as _GRANULARITIES
from qnas_plugin.latency.rows import Decomposition, join
from qnas_plugin.request import TuneRequest
from qnas_plugin.space import Precision

GRANULARITIES = tuple(_GRANULARITIES)

SESSION = (Outline, "running")
"""Where sessions come from that say what tensors are: class and method, whose object has the graph as ``model``."""


class Opened:
    """A network and its data, as far as candidates are built.

    Args:
        options: Of a request, without ``out``.
        folder: Where a search would write; nothing is.
    """

    def __init__(self, options: Mapping[str, Any], folder: Path) -> None:
        self._lab = load(TuneRequest.build({**options, "out": folder}), measures=False)
        self._decompositions: dict[str, Decomposition] = {}

    @property
    def space(self) -> Any:
        return self._lab.network.space

    @property
    def fingerprint(self) -> str:
        return self._lab.network.fingerprint

    def corners(self) -> list[Any]:
        """The largest and the smallest network, in INT8 and FP32."""
        sizes = ("largest", "smallest")
        return [self.space.corner(size, precision) for size in sizes for precision in (Precision.INT8, Precision.FP32)]

    def file(self, candidate: Any) -> bytes:
        """What is written as the candidate's ``model.onnx``, without a wait for those who measure beside it."""
        ((_, parts),) = self._lab.bench.build(self._lab.job(candidate)).files("model.onnx")
        return b"".join(parts)

    def rows(self, candidate: Any, granularity: Any) -> dict[str, int]:
        """Key of each latency table's row that the candidate has to how often; none of a plain ONNX model."""
        parts = getattr(self._lab.network, "parts", None)
        if parts is None:
            return {}
        if granularity not in self._decompositions:
            self._decompositions[granularity] = Decomposition(self.space, join(parts, granularity))
        decomposition = self._decompositions[granularity]
        counts = decomposition.counts(self.space.encode(candidate)[None])[0].tolist()
        return {str(key): int(count) for key, count in zip(decomposition.keys, counts, strict=True) if count}
