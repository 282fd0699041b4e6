"""The seam of the quantizers: FP32 layers of a graph become layers of integers.

A quantizer is a module of this folder, told by its functions, or of an entry point ``qnas_plugin.quantizers``. It has:

    version() -> str
    can_emit(format: Format) -> bool
    histogram(algorithm: str) -> Histogram
    emit(work: Work) -> Emitted

All else is the same for each of them, and in ``quantize``: ranges, policies, layers that need no quantizer, the forms
that run as integers, and the check that a policy landed, which is no quantizer's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qnas_plugin.quantizers.formats import Format

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

    from qnas_plugin.build.observe import Histogram, Ranges
    from qnas_plugin.quantizers.weights import Kept

DEFAULT = "neural_compressor"
"""The quantizer of what does not name one."""

Policy = Mapping[str, str]
"""Precision group to the format of its nodes, a name of ``qnas_plugin.quantizers.formats.FORMATS``."""

Groups = Mapping[str, tuple[str, ...]]
"""Precision group to the names of its nodes in the FP32 graph: MatMul, Gemm, Conv, or Gather, with a stored weight."""


@dataclass(frozen=True, eq=False)
class Work:
    """What is to become integers.

    Args:
        model: In FP32; weights have no values; each Conv and Gemm has its own bias. It is changed.
        formats: Name of a node to its format.
        ranges: Of what these nodes read, and of what a Conv or Gather among them writes.
        weights: FP32 weights by name.
        kept: Rounded weights of earlier runs; new ones are added.
    """

    model: onnx.ModelProto
    formats: Mapping[str, Format]
    ranges: Ranges
    weights: Mapping[str, npt.NDArray[Any]]
    kept: Kept


@dataclass(frozen=True, eq=False)
class Emitted:
    """What became of the model of some work, beside the graph itself.

    In the graph an INT8 node has ``_quant`` behind its name, its weight and what it reads come from a
    DequantizeLinear, and a tensor that was rounded for its readers, and not as the output of a Conv or Gather, has
    ``_dequantized`` behind its name. Nodes stand in an order in which they can be run.

    Args:
        weights: Integers by the names of their initializers, which have no values.
        scales: Of activations, by the name of the tensor.
    """

    weights: Mapping[str, npt.NDArray[Any]]
    scales: Mapping[str, float]


class Quantizer(Protocol):
    """A module that quantizes. Deterministic: the same work gives the same bytes in every process."""

    def version(self) -> str:
        """Of the package that does it."""
        ...

    def can_emit(self, format: Format) -> bool:
        """Whether layers can become this."""
        ...

    def histogram(self, algorithm: str) -> Histogram:
        """A histogram that gives the range of a tensor without its outliers, by ``percentile`` or ``kl``."""
        ...

    def emit(self, work: Work) -> Emitted:
        """Quantizes in place.

        Raises:
            QuantizationError: It cannot.
        """
        ...
