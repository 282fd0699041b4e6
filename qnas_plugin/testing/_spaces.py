"""Search spaces with known values, on which algorithms and predictors are tested."""

from __future__ import annotations

import numpy as np

from qnas_plugin.space import Candidate, Condition, Precision, SearchSpace, Variable

PRECISIONS = (Precision.INT8.value, Precision.FP32.value)


def encoder_space() -> SearchSpace:
    """SimQ-NAS's for BERT-base: depth, heads and feed-forward widths of 12 layers, and a precision for 74 of them."""
    layers = range(12)
    exists = [Condition("depth", tuple(range(max(6, i + 1), 13))) for i in layers]
    linears = ("query", "key", "value", "output", "up", "down")
    return SearchSpace(
        (
            Variable("depth", tuple(range(6, 13))),
            *(Variable(f"heads_{i}", (6, 8, 10, 12), when=exists[i]) for i in layers),
            *(Variable(f"ffn_{i}", (1024, 2048, 3072), when=exists[i]) for i in layers),
            *(Variable(f"{name}_{i}", PRECISIONS, "precision", exists[i]) for i in layers for name in linears),
            Variable("pooler", PRECISIONS, "precision"),
            Variable("classifier", PRECISIONS, "precision"),
        )
    )


def layered_space(layers: int) -> SearchSpace:
    """Depth 1 to ``layers``; a width and a precision for each layer that exists."""
    exists = [Condition("depth", tuple(range(i + 1, layers + 1))) for i in range(layers)]
    return SearchSpace(
        (
            Variable("depth", tuple(range(1, layers + 1))),
            *(Variable(f"width_{i}", (8, 16, 32), when=exists[i]) for i in range(layers)),
            *(Variable(f"layer_{i}", PRECISIONS, "precision", exists[i]) for i in range(layers)),
        )
    )


def layered_metrics(candidate: Candidate) -> dict[str, float]:
    """Of such a space: layers differ in what their width and their precision are worth."""
    accuracy, latency_ms, size_mb = 0.2, 1.0, 5.0
    for i in range(int(candidate["depth"])):
        width, fp32 = int(candidate[f"width_{i}"]), candidate[f"layer_{i}"] == "fp32"
        worth = 0.01 * (1 + 3 * i % 8)
        accuracy += worth * np.log2(width) / 5 * (1 if fp32 or i % 3 else 0.5)
        latency_ms += 0.3 + width / 32 * (3 if fp32 else 1)
        size_mb += width * (4 if fp32 else 1)
    return {"accuracy": accuracy, "latency_ms": latency_ms, "size_mb": size_mb}
