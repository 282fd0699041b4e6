"""Rows of a latency table from measured networks: which networks to measure, the fit, and its test.

The fit is regularised least squares on relative errors. What it falls back on is each row's time alone, times one
factor for all; how far a row may stray from that is shared, in three equal parts, between all rows of its kind, those
of its kind and precision, and the row itself. So a row that few networks have still learns from its relatives. What
every network takes beside its rows is free, and may be negative: weights of a small network stay in the caches, so that
its rows take less than the same rows in a large one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag
from scipy.optimize import nnls
from scipy.stats import kendalltau

from qnas_plugin.latency.rows import Decomposition, Key
from qnas_plugin.latency.table import Errors
from qnas_plugin.space import Features, Genes, Precision

Floats = npt.NDArray[np.float64]

_STRENGTHS = 10.0 ** np.arange(-4.5, -0.4, 0.5)
"""Regularisations to choose from: the variance of a measurement over that of a row's time, both relative."""
_FOLDS = 10
_POOL = 3000


@dataclass(frozen=True)
class Fit:
    """Rows fitted to networks.

    Args:
        ms: Milliseconds of each row, ``(k,)``, none negative.
        offset_ms: What every network takes beside its rows.
        spread_ms: Standard deviation of each, ``(k,)``.
        error: Mean absolute relative error in cross-validation.
    """

    ms: Floats
    offset_ms: float
    spread_ms: Floats
    error: float

    def __call__(self, counts: Features) -> Floats:
        """Milliseconds ``(m,)`` of networks with these rows, ``(m, k)``."""
        return counts @ self.ms + self.offset_ms


def fit(counts: Features, measured: Floats, alone: Floats, keys: Sequence[Key]) -> Fit:
    """Fits rows to whole networks.

    Args:
        counts: How often each network has each row, ``(m, k)``.
        measured: Milliseconds of each network, ``(m,)``.
        alone: Milliseconds of each row when timed alone, ``(k,)``.
        keys: Of the rows.
    """
    A = np.column_stack([counts, np.ones(len(counts))]) / measured[:, None]
    K = block_diag(_covariance(alone, keys), (measured.mean() / 3) ** 2)
    prior = np.append(alone, 0.0)
    strength, error = _choose(A, K, prior)
    centre = _scale(A, prior) * prior
    solved = np.linalg.solve(A @ K @ A.T + strength * np.eye(len(A)), np.column_stack([1 - A @ centre, A @ K]))
    ms = centre + K @ A.T @ solved[:, 0]
    if ms[:-1].min() < 0:
        targets = np.concatenate([np.full(len(A), strength**-0.5), np.linalg.solve(np.linalg.cholesky(K), centre)])
        matrix = np.vstack([strength**-0.5 * A, np.linalg.inv(np.linalg.cholesky(K))])
        signed, _ = nnls(np.column_stack([matrix, -matrix[:, -1]]), targets, maxiter=100 * len(ms))
        ms = np.append(signed[:-2], signed[-2] - signed[-1])
    variance = np.maximum(np.diag(K) - ((A @ K) * solved[:, 1:]).sum(axis=0), 0)
    scale = float(np.mean((1 - A @ ms) ** 2)) / strength
    return Fit(ms[:-1], float(ms[-1]), np.sqrt(variance[:-1] * scale), error)


def _choose(A: Features, K: Floats, prior: Floats) -> tuple[float, float]:
    """The regularisation with the least error in cross-validation, and that error."""
    folds = np.arange(len(A)) * 7 % min(_FOLDS, len(A))
    mistakes = np.zeros(len(_STRENGTHS))
    for fold in np.unique(folds) if len(A) > 1 else ():
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        centre = _scale(A[train], prior) * prior
        within, across = A[train] @ K @ A[train].T, A[test] @ K @ A[train].T
        for i, strength in enumerate(_STRENGTHS):
            weights = np.linalg.solve(within + strength * np.eye(len(train)), 1 - A[train] @ centre)
            mistakes[i] += np.abs(A[test] @ centre + across @ weights - 1).sum() / len(A)
    best = int(mistakes.argmin())
    return float(_STRENGTHS[best]), float(mistakes[best])


def design(decomposition: Decomposition, count: int, rng: np.random.Generator) -> Genes:
    """Networks to fit rows to, in an order of which each beginning is a good design, canonical ``(count, n)``.

    First the corners of the space; then networks until each row is in one, each time the one with most new rows; then
    greedily those whose latency is least certain, which makes the determinant of the information grow fastest
    (D-optimal). They are taken from networks whose share of INT8 groups is uniform, in a third of which all layers are
    alike.
    """
    space = decomposition.space
    names = ("largest-int8", "largest-fp32", "smallest-int8", "smallest-fp32")
    corners = [space.encode(space.corners[name]) for name in names if name in space.corners]
    pool = np.unique(np.concatenate([np.array(corners), _pool(decomposition, rng)]), axis=0)
    order = [int(np.flatnonzero((pool == corner).all(axis=1))[0]) for corner in corners]
    order = list(dict.fromkeys(order))
    X = decomposition.counts(pool)
    X /= X.sum(axis=1, keepdims=True)
    seen = (X[order] > 0).any(axis=0)
    while not seen.all():
        new = (X[:, ~seen] > 0).sum(axis=1)
        if not new.max():
            break
        order.append(int(new.argmax()))
        seen |= X[order[-1]] > 0
    information = np.eye(X.shape[1]) * 1e-4 + X[order].T @ X[order]
    inverse = np.linalg.inv(information)
    variance = ((X @ inverse) * X).sum(axis=1)
    while len(order) < min(count, len(pool)):
        variance[order] = -np.inf
        order.append(int(variance.argmax()))
        gain = inverse @ X[order[-1]]
        gain /= np.sqrt(1 + X[order[-1]] @ gain)
        inverse -= np.outer(gain, gain)
        variance -= (X @ gain) ** 2
    chosen: Genes = pool[order[:count]]
    return chosen


def errors(predicted: Floats, measured: Floats) -> Errors:
    """How predictions ``(m,)`` differ from what was measured ``(m,)``."""
    relative = predicted / measured - 1
    tau = kendalltau(predicted, measured).statistic if len(measured) > 1 else 0.0
    return Errors(
        mean_error=float(np.abs(relative).mean()),
        bias=float(relative.mean()),
        within_5=float((np.abs(relative) <= 0.05).mean()),
        within_10=float((np.abs(relative) <= 0.10).mean()),
        kendall_tau=float(tau) if np.isfinite(tau) else 0.0,
    )


def _pool(decomposition: Decomposition, rng: np.random.Generator) -> Genes:
    space = decomposition.space
    genes = space.sample(_POOL, rng)
    precision = np.array([variable.kind == "precision" for variable in space.variables])
    int8, fp32 = space.uniform(Precision.INT8), space.uniform(Precision.FP32)
    share = rng.random((_POOL, 1))
    rounded = np.where(genes == fp32, int8, genes)  # another 8-bit format where one was drawn
    drawn = np.where(rng.random(genes.shape) < share, rounded, fp32)
    genes = np.where(precision, drawn, genes)
    for part in decomposition.parts:
        twin = next(other for other in decomposition.parts if other.kind == part.kind)
        for name, first in zip(part.variables.values(), twin.variables.values(), strict=True):
            genes[: _POOL // 3, space.index[name]] = genes[: _POOL // 3, space.index[first]]
    return space.canonical(genes)


def _covariance(alone: Floats, keys: Sequence[Key]) -> Floats:
    """How rows may stray together, ``(k, k)``, relative to the time of each alone."""
    kinds = np.array([key.kind for key in keys])
    words = [" ".join([key.kind, *(str(value) for _, value in key.values if isinstance(value, str))]) for key in keys]
    same_kind = kinds[:, None] == kinds
    same_words = np.array(words)[:, None] == np.array(words)
    size = np.maximum(alone, 0.01 * alone.mean())
    together: Floats = same_kind / 3 + same_words / 3 + np.eye(len(keys)) / 3
    return together * np.outer(size, size)


def _scale(A: Features, prior: Floats) -> float:
    """The factor on times alone that explains relative latencies of 1 best."""
    total = A @ prior
    return float(total.sum() / (total @ total))
