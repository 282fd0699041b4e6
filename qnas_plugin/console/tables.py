"""Tables of the terminal, and what people read for a metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from qnas_plugin.additive.sensitivity import Sensitivity
    from qnas_plugin.results.member import Member, Result


MOST = 20
"""Rows of the table of single changes."""


def latency_notes(latency: Mapping[str, Any]) -> list[str]:
    """What a reader of latencies must know: that a table predicted them, with its error, or that it does not fit."""
    notes = [f"The latency table does not quite fit: {note}." for note in latency["notes"]]
    if latency["verified"] == "predicted":
        table = latency["table"]
        notes.insert(
            0,
            f"Latencies are predicted, not measured: by the latency table {table['name']}, whose mean error on "
            f"{table['held_out']} held-out networks is {table['mean_error']:.1%}.",
        )
    return notes


def called(objective: str, metric: str) -> str:
    """What people read for an objective: for accuracy the name of the metric, of a user's without its module."""
    return metric.rpartition(":")[2] if objective == "accuracy" else objective


def result_table(result: Result) -> Table:
    predicted = result.record["latency"]["verified"] == "predicted"
    against: str = result.record["request"]["against"]
    title = "latency predicted" if predicted else "measured on the report split"
    table = Table(
        title=f"Pareto set, {title}, and against the full network in {against.upper()}",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("", no_wrap=True, min_width=17)
    data = result.record["data"]
    unit = "points" if data["points"] else "change"
    shown = {"accuracy", "latency_ms", "size_mb"}
    others = [name for name in result.record["request"]["objectives"] if name not in shown]
    first = (called("accuracy", data["metric"]), "latency ms", "size MB", *others)
    for name in (*first, "faster", "smaller", unit):
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))

    def difference(value: float) -> str:
        return f"{100 * value:+.2f}" if data["points"] else f"{value:+.4g}"

    def row(member: Member) -> None:
        metrics, ratio = member.report, member.against.get(f"largest-{against}")
        ratios = (
            [
                f"{ratio['latency_ratio']:.2f}x",
                f"{ratio['size_ratio']:.2f}x",
                difference(ratio["accuracy_difference"]),
            ]
            if ratio
            else ["", "", ""]
        )
        chosen = member.name == result.recommended
        table.add_row(
            ("> " if chosen else "  ") + member.name,
            f"{metrics['accuracy']:.4f}",
            f"{metrics['latency_ms']:.3f}",
            f"{metrics['size_mb']:.2f}",
            *(f"{metrics[name]:.4g}" for name in others),
            *ratios,
            style="bold" if chosen else None,
        )

    for member in result.members:
        if not member.dominated or member.name == result.recommended:
            row(member)
    table.add_section()
    for member in result.baselines:
        row(member)
    return table


def sensitivity_table(found: Sensitivity) -> Table:
    """The changes that lose most."""
    table = Table(
        title=f"Of {len(found.changes)} single changes, what loses most; {found.score} of the full network "
        f"{found.value:.4f} on {found.examples} examples",
        title_justify="left",
        box=box.SIMPLE,
    )
    for column in ("decision", "points", "standard error", "points of accuracy"):
        table.add_column(column, justify="left" if column == "decision" else "right")
    for change in found.ranked()[:MOST]:
        mean, error, accuracy = (100 * value for value in (change.mean, change.error, change.accuracy))
        table.add_row(f"{change.variable} = {change.choice}", f"{mean:+.2f}", f"{error:.2f}", f"{accuracy:+.2f}")
    return table
