"""Weights as 8-bit integers, each rounded once for all policies.

Scales are those of Neural Compressor and of ONNX Runtime's quantizer, which compute the same, except that no channel's
is next to nothing beside the largest one.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.quantizers.formats import Numbers

_AT_ONCE = 1 << 16  # numbers rounded together: what they need stays in the cache of a core
_SMALLEST_CHANNEL = 2.0**-16  # of the largest channel's scale


@dataclass(frozen=True, eq=False)
class Rounded:
    """A weight as integers.

    Args:
        values: INT8 if symmetric, else UINT8; of the weight's shape.
        scales: One for each channel ``(n,)``, or for all ``(1,)``; FP32.
        zero_points: As many, of the type of the values.
        axis: Of the channels; None is one scale.
    """

    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[Any]
    axis: int | None


Kept = MutableMapping[tuple[str, tuple[int, ...], bool, int | None], Rounded]
"""Rounded weights by name, shape, whether they are symmetric, and channel axis; the axis is None for one scale."""


def rounded(
    name: str,
    values: npt.NDArray[Any],
    numbers: Numbers,
    axis: int | None,
    kept: Kept,
    least: npt.NDArray[np.float64] | None = None,
) -> Rounded:
    """A weight rounded over its own minimum and maximum, once.

    Args:
        name: Of the weight.
        values: The weight in FP32.
        numbers: 8 bits, symmetric or not.
        axis: Of the channels, each with its scale; None for one scale.
        kept: What was rounded before; gets it.
        least: The scales that its channels ``(n,)`` have at least, or all of them ``(1,)``.
    """
    key = name, values.shape, numbers.symmetric, axis
    if key not in kept:
        kept[key] = _rounded(values, symmetric=numbers.symmetric, axis=axis)
    if least is None:
        return kept[key]
    own = least.max() if axis is None else least
    if (kept[key].scales < own).any():  # not kept: it depends on what the layer reads
        return _rounded(values, symmetric=numbers.symmetric, axis=axis, least=own)
    return kept[key]


def _rounded(
    values: npt.NDArray[Any],
    *,
    symmetric: bool,
    axis: int | None,
    least: npt.NDArray[np.float64] | float = 0.0,
) -> Rounded:
    kind: Any = np.int8 if symmetric else np.uint8
    others = tuple(i for i in range(values.ndim) if i != axis)
    low = np.minimum(values.min(others, keepdims=True), 0).astype(np.float64)
    high = np.maximum(values.max(others, keepdims=True), 0).astype(np.float64)
    span = 2 * np.maximum(-low, high) / 254 if symmetric else (high - low) / 255
    span[span == 0] = 1.0
    zero_point = np.zeros(span.shape) if symmetric else np.clip(np.round(-low / span), 0, 255)
    scale = span.astype(np.float32)
    scale = np.maximum(scale, scale.max() * np.float32(_SMALLEST_CHANNEL))
    scale = np.maximum(scale.reshape(-1), least).astype(np.float32).reshape(scale.shape)
    integers = np.empty(values.shape, kind)
    zeros = zero_point.astype(kind)
    rows = max(1, _AT_ONCE * len(values) // values.size)
    for first in range(0, len(values), rows):
        part = slice(first, first + rows)
        steps, shift = (scale[part], zeros[part]) if axis == 0 else (scale, zeros)
        integers[part] = np.round(values[part].astype(np.float32) / steps) + shift.astype(np.float32)
    return Rounded(integers, scale.reshape(-1), zeros.reshape(-1), axis)
