"""A study as one HTML file that needs nothing else: fronts, progress, what each member is made of, all numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io

from qnas_plugin.evaluate.bench import CORE_SHARE
from qnas_plugin.measure.metrics import shown
from qnas_plugin.objectives import directed, hypervolume, losses
from qnas_plugin.quantizers.formats import format_of
from qnas_plugin.space import SearchSpace
from qnas_plugin.study.evaluation import Trial

AXES = {
    **{"latency_ms": "latency (ms)", "size_mb": "size (MB)"},
    **{"gmacs": "multiply-accumulates (10^9)", "gbitops": "bit operations (10^9)"},
}
INT8, FP32, ABSENT = "#1f6feb", "#f0883e", "#eaeef2"
OTHERS = ("#8250df", "#2da44e", "#bf3989", "#0550ae", "#9a6700", "#57606a")
"""Colours of formats beside plain INT8 and FP32, in the order in which they come."""


def render(record: Mapping[str, Any], trials: Sequence[Trial], space: SearchSpace) -> str:
    """The report's HTML.

    Args:
        record: What stands in ``pareto.json``.
        trials: All trials of the study, in order.
        space: Of their candidates.
    """
    axes = {**AXES, "accuracy": shown(record["data"]["metric"])}
    complete = [trial for trial in trials if trial.state == "complete"]
    title = axes["accuracy"][0].upper() + axes["accuracy"][1:]
    figures = [
        (f"{title} and {axes[metric]}", _front(record, complete, metric, axes, space))
        for metric in record["objectives"]
        if metric != "accuracy"
    ]
    figures.append(("Progress of the search", _progress(record, complete)))
    figures.append(("What the members are made of", _makeup(record, space)))
    shared = {"full_html": False, "config": {"displaylogo": False, "responsive": True}}
    plots = [
        (title, plotly.io.to_html(figure, include_plotlyjs=i == 0, **shared))
        for i, (title, figure) in enumerate(figures)
    ]
    source = files("qnas_plugin.results").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        record=record, plots=plots, axes=axes, test=_test(record), **_units(record)
    )


def _units(record: Mapping[str, Any]) -> dict[str, Any]:
    """How differences of what stands as accuracy are written."""
    if record["data"].get("points", True):
        return {
            "unit": "points",
            "difference": lambda value: f"{100 * value:+.2f}",
            "amount": lambda value: f"{100 * value:.2f} points",
        }
    return {"unit": "change", "difference": lambda value: f"{value:+.4g}", "amount": lambda value: f"{value:.4g}"}


def _test(record: Mapping[str, Any]) -> str:
    """What the p-values of comparisons are of."""
    if record["data"].get("test", "exact") == "permutation":
        return "a permutation test, the two models exchanged at random,"
    if record["data"]["metric"] in ("accuracy", "agreement"):
        return "McNemar's exact test"
    return "the exact sign test of which of the two scores higher"


def _front(
    record: Mapping[str, Any], trials: Sequence[Trial], metric: str, axes: Mapping[str, str], space: SearchSpace
) -> go.Figure:
    figure = go.Figure()
    shares = [_quantized_share(space.policy(trial.candidate)) for trial in trials]
    figure.add_scatter(
        x=[trial.metrics[metric] for trial in trials],
        y=[trial.metrics["accuracy"] for trial in trials],
        mode="markers",
        name="trials (search split)",
        marker={
            "size": 6,
            "color": shares,
            "colorscale": [[0, FP32], [1, INT8]],
            "cmin": 0,
            "cmax": 1,
            "opacity": 0.45,
            "colorbar": {"title": "share not FP32", "thickness": 10},
        },
        text=[_about(trial) for trial in trials],
    )
    members = record["members"]
    for name, rows, symbol, size in (
        ("Pareto set (report split)", [row for row in members if not row.get("dominated")], "circle", 11),
        ("dominated on the report split", [row for row in members if row.get("dominated")], "circle-open", 9),
        ("baselines (report split)", record["baselines"], "diamond-open", 12),
    ):
        ordered = sorted(rows, key=lambda row: row["report"][metric])
        figure.add_scatter(
            x=[row["report"][metric] for row in ordered],
            y=[row["report"]["accuracy"] for row in ordered],
            mode="markers",
            name=name,
            marker={
                "size": size,
                "symbol": symbol,
                "color": ["#d1242f" if row["name"] == record["recommended"] else "#24292f" for row in ordered],
            },
            text=[row["name"] for row in ordered],
        )
    return _styled(figure, axes[metric], axes["accuracy"])


def _progress(record: Mapping[str, Any], trials: Sequence[Trial]) -> go.Figure:
    directions = directed(record["objectives"], record["data"].get("direction", "maximize"))
    points = losses([trial.metrics for trial in trials], directions)
    population = int(record["request"]["population"])
    reference = points[:population].max(axis=0)
    volumes = [hypervolume(points[: i + 1], reference) for i in range(len(points))]
    figure = go.Figure()
    figure.add_scatter(
        x=[trial.number + 1 for trial in trials], y=volumes, mode="lines", line={"color": INT8, "shape": "hv"}
    )
    return _styled(figure, "trials", "hypervolume (from the worst of the first population)")


def _makeup(record: Mapping[str, Any], space: SearchSpace) -> go.Figure:
    rows = [*record["members"], *record["baselines"]]
    policies = [space.policy(row["candidate"]) for row in rows]
    groups = sorted(dict.fromkeys(group for policy in policies for group in policy), key=_natural)
    formats = list(dict.fromkeys(policy[group] for policy in policies for group in groups if group in policy))
    formats.sort(key=lambda name: (name != "int8", name == "fp32", name))
    others = iter(OTHERS * len(formats))
    colours = {name: {"int8": INT8, "fp32": FP32}.get(name) or next(others) for name in formats}
    codes = {name: code for code, name in enumerate(formats, 1)}
    steps = [ABSENT, *colours.values()]
    figure = go.Figure()
    figure.add_heatmap(
        z=[[codes.get(policy.get(group, ""), 0) for group in groups] for policy in policies],
        x=groups,
        y=[row["name"] for row in rows],
        text=[[policy.get(group, "layer skipped") for group in groups] for policy in policies],
        hovertemplate="%{y}<br>%{x}: %{text}<extra></extra>",
        colorscale=[[(i + end) / len(steps), colour] for i, colour in enumerate(steps) for end in (0, 1)],
        zmin=-0.5,
        zmax=len(steps) - 0.5,
        showscale=False,
        xgap=1,
        ygap=1,
    )
    for name, colour in {**colours, "layer skipped": ABSENT}.items():  # what the colours mean
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=name, marker={"color": colour, "symbol": "square", "size": 12}
        )
    figure.update_yaxes(autorange="reversed")
    styled = _styled(figure, "", "")
    return styled.update_layout(height=120 + 22 * len(rows))


def _styled(figure: go.Figure, x: str, y: str) -> go.Figure:
    return figure.update_layout(
        template="plotly_white",
        xaxis_title=x,
        yaxis_title=y,
        height=430,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "y": 1.08},
    )


def _about(trial: Trial) -> str:
    """What stands beside the point of a trial."""
    lines = [f"trial {trial.number}", trial.candidate.key]
    if CORE_SHARE in trial.metrics:
        lines.append(f"something else ran on its core: it had {trial.metrics[CORE_SHARE]:.0%} of the time")
    return "<br>".join(lines)


def _quantized_share(policy: Mapping[str, str]) -> float:
    return sum(format_of(name).quantized for name in policy.values()) / max(1, len(policy))


def _natural(name: str) -> tuple[Any, ...]:
    """Sorts ``layer.10`` after ``layer.9``, and what is in no layer last."""
    parts = name.split(".")
    return (0, int(parts[1]), name) if len(parts) > 1 and parts[1].isdigit() else (1, 0, name)
