"""Hypervolume against evaluations as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import plotly.express
import plotly.graph_objects as go
import plotly.io

Floats = npt.NDArray[np.float64]


def render(spaces: Mapping[str, Mapping[str, Floats]]) -> str:
    """The page: a chart a space, a line a contender at the median over seeds, the quartiles as a band.

    Args:
        spaces: Shares of the best known front's hypervolume after each evaluation, ``(seeds, evaluations)``, of each
            contender on each space.
    """
    names = list(dict.fromkeys(name for contenders in spaces.values() for name in contenders))
    palette = plotly.express.colors.qualitative.Dark24
    colours = {name: palette[i % len(palette)] for i, name in enumerate(names)}
    charts = [
        plotly.io.to_html(
            _chart(title, contenders, colours), full_html=False, include_plotlyjs=first, config={"displaylogo": False}
        )
        for first, (title, contenders) in zip([True] + [False] * len(spaces), spaces.items(), strict=False)
    ]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Hypervolume against evaluations</title>"
        f"<body style='font-family: sans-serif'>{''.join(charts)}</body></html>\n"
    )


def _chart(title: str, contenders: Mapping[str, Floats], colours: Mapping[str, str]) -> go.Figure:
    figure = go.Figure()
    for name, shares in contenders.items():
        count = np.arange(1, shares.shape[1] + 1)
        low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75], axis=0)
        red, green, blue = (int(colours[name][i : i + 2], 16) for i in (1, 3, 5))
        figure.add_scatter(
            x=[*count, *count[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.10)",
            line={"width": 0},
            hoverinfo="skip",
            legendgroup=name,
            showlegend=False,
        )
        figure.add_scatter(x=count, y=middle, mode="lines", name=name, legendgroup=name, line={"color": colours[name]})
    figure.update_layout(
        title=title,
        xaxis_title="evaluations",
        yaxis_title="share of the best known hypervolume",
        template="simple_white",
        height=520,
        width=980,
    )
    return figure
