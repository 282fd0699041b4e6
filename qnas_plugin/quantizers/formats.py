"""The choices of a precision variable, as data: a name and the settings that Neural Compressor gets for it.

A supernet lists names of these as the choices of its precision variables, and a user lists them as ``--precision``;
``int8`` and ``fp32`` are what they get otherwise. One entry here is all that a further choice takes, and
``quantize.verify`` checks that it landed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from qnas_plugin.errors import UnknownNameError, UsageError
from qnas_plugin.space import Precision

CHANNELS = "channels"
"""What formats need that smooth or correct: the channels of what layers read."""


@dataclass(frozen=True)
class Format:
    """How a MatMul, Gemm or Conv becomes one of 8-bit integers.

    Args:
        scheme: Of the weights: ``sym`` is INT8 around zero, ``asym`` UINT8 from the smallest to the largest value.
        granularity: One scale of the weights for each output channel, or for all.
        about: For people.
        calibration: What gives the range of the tensor that it reads, by Neural Compressor's name: all values, or
            nearly all, so that outliers are clipped. ``dynamic`` is the tensor itself in each run, without
            calibration data.
        alpha: How much of the differences between the channels that a MatMul or Gemm reads goes to its weight, see
            ``qnas_plugin.quantizers.smooth``; None is nothing.
        corrected: Whether biases make up for the rounding of weights, see ``qnas_plugin.quantizers.bias_correction``.
    """

    scheme: Literal["sym", "asym"]
    granularity: Literal["per_channel", "per_tensor"]
    about: str
    calibration: Literal["minmax", "percentile", "kl", "dynamic"] = "minmax"
    alpha: float | None = None
    corrected: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """What has to be found out on calibration data: algorithms for ranges, and ``channels``."""
        return frozenset({self.calibration} - {"dynamic"} | ({CHANNELS} if self.prepared else set()))

    @property
    def prepared(self) -> bool:
        """Whether the FP32 layer is changed before it is quantized like ``int8``."""
        return self.alpha is not None or self.corrected

    @property
    def dynamic(self) -> bool:
        """Whether it needs no ranges."""
        return self.calibration == "dynamic"


# Neural Compressor 3.7.1 computes no asymmetric scale per channel, and ONNX Runtime 1.31 runs no such Conv.
FORMATS: Mapping[str, Format] = {
    "int8": Format("sym", "per_channel", "symmetric INT8 weights, a scale for each output channel"),
    "int8-asym": Format("asym", "per_tensor", "asymmetric UINT8 weights, one scale"),
    "int8-per-tensor": Format("sym", "per_tensor", "symmetric INT8 weights, one scale"),
    "int8-percentile": Format(
        "sym", "per_channel", "like int8, without the outermost 0.001 % of what the layer reads", "percentile"
    ),
    "int8-kl": Format("sym", "per_channel", "like int8, what the layer reads clipped by relative entropy", "kl"),
    "int8-dynamic": Format(
        "sym", "per_channel", "like int8, what the layer reads gets its scale in each run, without data", "dynamic"
    ),
    "int8-smooth": Format(
        "sym", "per_channel", "like int8, channels that a product reads made alike (SmoothQuant, alpha 0.5)", alpha=0.5
    ),
    "int8-smooth-75": Format(
        "sym", "per_channel", "like int8-smooth with alpha 0.75: more is left to the weights", alpha=0.75
    ),
    "int8-corrected": Format(
        "sym", "per_channel", "like int8, biases make up for what rounding adds to the mean", corrected=True
    ),
}
"""What a group can be beside ``fp32``. Tables (Gather) are asymmetric with one scale in each of them."""

DEFAULT = (Precision.INT8.value, Precision.FP32.value)


@dataclass(frozen=True)
class Precisions:
    """What a user says of the precision policy.

    Args:
        choices: Names of formats, and ``fp32``; empty leaves them to the network.
        fp32: Patterns, like ``*/head/*``, of what stays FP32: layers of an ONNX model, groups of a supernet.
        groups: Name and pattern of the layers of an ONNX model that are decided together.
        most: How many groups an ONNX model may have at most.
    """

    choices: tuple[str, ...] = ()
    fp32: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    most: int = 60

    def of(self, group: str, default: tuple[str, ...] = DEFAULT) -> tuple[str, ...]:
        """The choices of a group by its name; the default is the network's own."""
        kept = any(matches(group, pattern) for pattern in self.fp32)
        return (Precision.FP32.value,) if kept else self.choices or default

    def check(self, names: Sequence[str]) -> None:
        """Checks that each pattern matches some name.

        Raises:
            UsageError: One matches none.
        """
        for pattern in (*self.fp32, *self.groups.values()):
            if not any(matches(name, pattern) for name in names):
                raise UsageError(
                    f"the pattern '{pattern}' matches none of the {len(names)} names: {', '.join(names[:3])} ...; "
                    "those of an ONNX file are listed by: qnas show FILE.onnx"
                )


def matches(name: str, pattern: str) -> bool:
    """Whether a name is that of a pattern; each name is a pattern of itself, whatever signs are in it."""
    return name == pattern or fnmatchcase(name, pattern)


def check_choices(names: Sequence[str]) -> tuple[str, ...]:
    """Checks the choices of a precision variable.

    Raises:
        UsageError: One stands twice, there is nothing to choose, or ``fp32``, which all is compared with, is missing.
        UnknownNameError: There is no such format.
    """
    for name in names:
        if name not in FORMATS and name != Precision.FP32:
            raise UnknownNameError("precision", name, [*FORMATS, Precision.FP32.value])
    if Precision.FP32 not in names or len(names) < 2 or len(set(names)) != len(names):
        raise UsageError(f"give fp32 and one or more others, each once; got {', '.join(names) or 'none'}")
    return tuple(names)
