"""A latency table as one HTML file: predicted against measured latency of the held-out networks, and rows as bars."""

from __future__ import annotations

import html

import plotly.graph_objects as go
import plotly.io

from qnas_plugin.latency.table import LatencyTable

INT8, FP32, OTHER = "#1f6feb", "#f0883e", "#57606a"
MOST_ROWS = 200
"""A chart of more bars would be taller than browsers draw."""


def render(table: LatencyTable) -> str:
    """The page; needs nothing else."""
    shared = {"full_html": False, "config": {"displaylogo": False, "responsive": True}}
    tested = plotly.io.to_html(_tested(table), include_plotlyjs=True, **shared)
    rows = plotly.io.to_html(_rows(table), include_plotlyjs=False, **shared)
    errors = table.fidelity.errors
    problems = "".join(f"<p><strong>{html.escape(problem)}</strong></p>" for problem in table.problems)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(str(table))}</title>"
        "<body style='font-family: sans-serif; max-width: 70em; margin: 2em auto'>"
        f"<h1>{html.escape(str(table))}</h1>"
        f"<p>{table.networks} networks fitted, {table.fidelity.held_out} held out: mean error {errors.mean_error:.2%}, "
        f"{errors.within_5:.0%} within 5 %, {errors.within_10:.0%} within 10 %, Kendall tau {errors.kendall_tau:.3f}; "
        f"two measurements of one network differ by {table.fidelity.noise:.2%}; the sum of parts timed alone is off by "
        f"{table.fidelity.alone.mean_error:.1%}. Measured {html.escape(table.created)}.</p>{problems}{tested}{rows}"
        "</body></html>\n"
    )


def _tested(table: LatencyTable) -> go.Figure:
    measured, predicted = zip(*table.tested, strict=True)
    low, high = min(*measured, *predicted), max(*measured, *predicted)
    figure = go.Figure()
    for name, factor, dash in (("equal", 1.0, "solid"), ("+5 %", 1.05, "dot"), ("-5 %", 0.95, "dot")):
        figure.add_scatter(
            x=[low, high],
            y=[low * factor, high * factor],
            mode="lines",
            name=name,
            line={"color": OTHER, "width": 1, "dash": dash},
        )
    figure.add_scatter(x=measured, y=predicted, mode="markers", name="held-out network", marker={"color": INT8})
    figure.update_layout(
        title="Held-out networks", xaxis_title="measured (ms)", yaxis_title="predicted (ms)", template="simple_white"
    )
    return figure


def _rows(table: LatencyTable) -> go.Figure:
    slowest = {row.key for row in sorted(table.rows, key=lambda row: -row.ms)[:MOST_ROWS]}
    rows = [row for row in table.rows[::-1] if row.key in slowest]
    figure = go.Figure()
    figure.add_bar(
        y=[row.key for row in rows],
        x=[row.ms for row in rows],
        error_x={"array": [row.spread_ms for row in rows], "thickness": 1},
        orientation="h",
        name="in context",
        marker={"color": [_colour(row.key) for row in rows]},
    )
    figure.add_scatter(
        y=[row.key for row in rows],
        x=[row.alone_ms for row in rows],
        mode="markers",
        name="alone",
        marker={"symbol": "line-ns-open", "color": "#24292f", "size": 10},
    )
    figure.update_layout(
        title="Rows" if len(rows) == len(table.rows) else f"The {len(rows)} slowest of {len(table.rows)} rows",
        xaxis_title="ms",
        template="simple_white",
        height=160 + 18 * len(rows),
        yaxis={"automargin": True},
    )
    return figure


def _colour(key: str) -> str:
    if "int8" in key and "fp32" in key:
        return OTHER
    return INT8 if "int8" in key else FP32 if "fp32" in key else OTHER
