"""Two latency tables: one table of both, and what got slower from one to the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qnas_plugin.errors import LatencyTableError
from qnas_plugin.latency.table import LatencyTable, Row, describe, minor


def merge(first: LatencyTable, second: LatencyTable) -> LatencyTable:
    """One table with the rows of two; rows of both are averaged, the more certain one counts more.

    Nobody tested the merged table: it has the fidelity of the worse one, and says so in ``merged``.

    Raises:
        LatencyTableError: They are not of one SKU, supernet, setting, granularity and runtime.
    """
    for name in ("supernet", "shape", "granularity", "hardware", "setting", "quantizer"):
        mine, theirs = getattr(first, name), getattr(second, name)
        if mine != theirs:
            raise LatencyTableError(f"cannot merge {first} and {second}: their {name} differs ({mine}; {theirs})")
    if minor(first.versions.get("onnxruntime")) != minor(second.versions.get("onnxruntime")):
        raise LatencyTableError(f"cannot merge {first} and {second}: they were measured with other onnxruntimes")

    rows = first.by_key(), second.by_key()

    def row(key: str) -> Row:
        both = [table[key] for table in rows if key in table]
        if len(both) == 1:
            return both[0]
        certainty = np.array([1 / max(row.spread_ms, 1e-9) ** 2 for row in both])
        weights = certainty / certainty.sum()
        return Row(
            key=key,
            ms=float(weights @ [row.ms for row in both]),
            spread_ms=float(certainty.sum() ** -0.5),
            networks=sum(row.networks for row in both),
            alone_ms=float(np.mean([row.alone_ms for row in both])),
        )

    worse = max(first, second, key=lambda table: table.fidelity.errors.mean_error)
    return LatencyTable.model_validate(
        {name: getattr(worse, name) for name in LatencyTable.model_fields}
        | {
            "rows": tuple(row(key) for key in sorted({*rows[0], *rows[1]})),
            "offset_ms": (first.offset_ms + second.offset_ms) / 2,
            "created": max(first.created, second.created),
            "networks": first.networks + second.networks,
            "seconds": first.seconds + second.seconds,
            "problems": tuple(dict.fromkeys([*first.problems, *second.problems])),
            "merged": tuple(sorted(date for table in (first, second) for date in table.merged or (table.created,))),
        }
    )


@dataclass(frozen=True)
class Change:
    """How a row differs between two tables, in milliseconds; ``certain`` is beyond twice the combined spread."""

    key: str
    before: float
    after: float
    certain: bool


def compare(before: LatencyTable, after: LatencyTable) -> list[Change]:
    """The rows of both tables, the one that lost most time first.

    Raises:
        LatencyTableError: They have no row in common, or are of different supernets or shapes.
    """
    if (before.supernet, dict(before.shape)) != (after.supernet, dict(after.shape)):
        raise LatencyTableError(
            f"cannot compare {describe(before.supernet, before.shape)} with {describe(after.supernet, after.shape)}"
        )
    later = after.by_key()
    changes = [
        Change(key, row.ms, other.ms, abs(other.ms - row.ms) > 2 * np.hypot(row.spread_ms, other.spread_ms))
        for key, row in before.by_key().items()
        if (other := later.get(key)) is not None
    ]
    if not changes:
        raise LatencyTableError(
            f"the tables have no row in common: one is by {before.granularity}, the other by {after.granularity}"
        )
    return sorted(changes, key=lambda change: (change.before - change.after, change.key))
