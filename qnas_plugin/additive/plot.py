"""A sensitivity table as one HTML file: what each single decision does, the most harmful on top."""

from __future__ import annotations

import plotly.graph_objects as go
import plotly.io

from qnas_plugin.additive.sensitivity import Sensitivity

WORSE, BETTER = "#f0883e", "#1f6feb"
MOST = 200
"""A chart of more bars would be taller than browsers draw."""


def render(found: Sensitivity) -> str:
    """The page; needs nothing else."""
    ranked = sorted(found.changes, key=lambda change: change.mean)[:MOST]
    figure = go.Figure()
    figure.add_bar(
        y=[f"{change.variable} = {change.choice}" for change in ranked[::-1]],
        x=[100 * change.mean for change in ranked[::-1]],
        error_x={"array": [100 * change.error for change in ranked[::-1]], "thickness": 1},
        marker={"color": [WORSE if change.mean < 0 else BETTER for change in ranked[::-1]]},
        orientation="h",
    )
    figure.update_layout(
        xaxis_title=f"change of {found.score}, points, with its standard error",
        height=120 + 18 * len(ranked),
        template="simple_white",
        margin={"l": 10},
        yaxis={"automargin": True},
    )
    chart = plotly.io.to_html(figure, full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    title = "What each single decision does"
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title>"
        "<body style='font-family: sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em'>"
        f"<h1>{title}</h1><p>{len(found.changes)} single changes of the full network in FP32, whose {found.score} is "
        f"{found.value:.4f} on {found.examples} examples.</p>{chart}</body></html>\n"
    )
