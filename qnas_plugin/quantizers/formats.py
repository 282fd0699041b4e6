"""The choices of a precision variable, as data: how the layers of a group compute.

A supernet lists names of these as the choices of its precision variables, and a user lists them as ``--precision``;
``int8`` and ``fp32`` are what they get otherwise. One entry of ``FORMATS`` is all that a further choice takes, and
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

FLOAT_BITS = 32
"""Bits of a number that is not quantized."""


@dataclass(frozen=True)
class Numbers:
    """The integers that stand for the numbers of a tensor.

    Args:
        bits: Of each.
        signed: Whether they go below zero.
        symmetric: Whether zero stands for zero; otherwise a zero point does, so that the range is used from its
            smallest to its largest value.
        axis: What has a scale of its own: each output channel, the whole tensor, or each block of a channel.
        block: Numbers of a block, where ``axis`` says so.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    axis: Literal["channel", "tensor", "block"] = "channel"
    block: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise UsageError(f"numbers have 1 to 16 bits, got {self.bits}")
        if (self.axis == "block") != (self.block is not None) or (self.block is not None and self.block < 1):
            raise UsageError(f"blocks, and only they, need a size of 1 or more, got {self.axis} and {self.block}")


@dataclass(frozen=True)
class Format:
    """How a MatMul, Gemm or Conv computes.

    Args:
        about: For people.
        weights: What the weights become; None leaves them FP32.
        activations: What the tensor that it reads becomes; None leaves it FP32.
        ranges: What gives the range of that tensor: all values, or nearly all, so that outliers are clipped
            (``percentile``, ``kl``: Neural Compressor's names); ``dynamic`` is the tensor itself in each run, without
            calibration data; ``learned`` is the checkpoint, where training learned them.
        alpha: How much of the differences between the channels that a MatMul or Gemm reads goes to its weight, see
            ``qnas_plugin.quantizers.smooth``; None is nothing.
        corrected: Whether biases make up for the rounding of weights, see ``qnas_plugin.quantizers.bias_correction``.
    """

    about: str
    weights: Numbers | None = Numbers()
    activations: Numbers | None = Numbers(signed=False, symmetric=False, axis="tensor")
    ranges: Literal["minmax", "percentile", "kl", "dynamic", "learned"] = "minmax"
    alpha: float | None = None
    corrected: bool = False

    @property
    def quantized(self) -> bool:
        """Whether anything of the layer is no FP32 number."""
        return self.weights is not None or self.activations is not None

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        return FLOAT_BITS if self.weights is None else self.weights.bits

    @property
    def activation_bits(self) -> int:
        """Bits of a number that the layer reads."""
        return FLOAT_BITS if self.activations is None else self.activations.bits

    @property
    def needs(self) -> frozenset[str]:
        """What has to be found out on calibration data: algorithms for ranges, and ``channels``."""
        found = {self.ranges} if self.activations is not None else set()
        return frozenset(found - {"dynamic", "learned"} | ({CHANNELS} if self.prepared else set()))

    @property
    def prepared(self) -> bool:
        """Whether the FP32 layer is changed before it is quantized like ``int8``."""
        return self.alpha is not None or self.corrected

    @property
    def dynamic(self) -> bool:
        """Whether what the layer reads gets its scale in each run."""
        return self.activations is not None and self.ranges == "dynamic"


_TENSOR = Numbers(axis="tensor")
_UNSIGNED = Numbers(signed=False, symmetric=False, axis="tensor")

# Neural Compressor 3.7.1 computes no asymmetric scale per channel, and ONNX Runtime 1.31 runs no such Conv.
FORMATS: dict[str, Format] = {
    "int8": Format("symmetric INT8 weights, a scale for each output channel"),
    "int8-asym": Format("asymmetric UINT8 weights, one scale", _UNSIGNED),
    "int8-per-tensor": Format("symmetric INT8 weights, one scale", _TENSOR),
    "int8-percentile": Format("like int8, without the outermost 0.001 % of what the layer reads", ranges="percentile"),
    "int8-kl": Format("like int8, what the layer reads clipped by relative entropy", ranges="kl"),
    "int8-dynamic": Format(
        "like int8, what the layer reads gets its scale in each run, without data", ranges="dynamic"
    ),
    "int8-smooth": Format("like int8, channels that a product reads made alike (SmoothQuant, alpha 0.5)", alpha=0.5),
    "int8-smooth-75": Format("like int8-smooth with alpha 0.75: more is left to the weights", alpha=0.75),
    "int8-corrected": Format("like int8, biases make up for what rounding adds to the mean", corrected=True),
    "fp32": Format("not quantized", None, None),
}
"""What a group can be; ``add`` puts in more. Quantized tables (Gather) are asymmetric, with one scale each."""


def add(name: str, format: Format) -> None:
    """Adds a choice of precision variables; the same one may be added again.

    Raises:
        UsageError: Another format has this name.
    """
    if FORMATS.setdefault(name, format) != format:
        raise UsageError(f"there is another format '{name}' already; give yours another name")


def format_of(name: str) -> Format:
    """The format of a name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in FORMATS:
        raise UnknownNameError("precision", name, FORMATS)
    return FORMATS[name]


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
        format_of(name)
    if Precision.FP32 not in names or len(names) < 2 or len(set(names)) != len(names):
        raise UsageError(f"give fp32 and one or more others, each once; got {', '.join(names) or 'none'}")
    return tuple(names)
