from __future__ import annotations

import re

from qnas_plugin.results.report import _makeup, render
from qnas_plugin.space import Condition, Precision, SearchSpace, Variable
from qnas_plugin.study.evaluation import Trial

ODD = "int8-asym"
SPACE = SearchSpace(
    (
        Variable("depth", (1, 2)),
        Variable("precision.layer.0.query", ("int8", "fp32", ODD), "precision"),
        Variable("precision.layer.1.query", ("int8", "fp32", ODD), "precision", Condition("depth", (2,))),
    )
)


def candidate(size: str, precision: Precision | str) -> dict[str, object]:
    corner = dict(SPACE.corner(size, Precision.INT8))  # type: ignore[arg-type]
    return {key: str(precision) if key.startswith("precision.") else value for key, value in corner.items()}


def row(name: str, size: str, precision: Precision | str) -> dict[str, object]:
    against = {"latency_ratio": 2.0, "size_ratio": 1.5, "accuracy_difference": -0.01, "p_value": 0.25}
    return {
        "name": name,
        "candidate": candidate(size, precision),
        "report": {"accuracy": 0.9, "latency_ms": 2.0, "size_mb": 3.0},
        "latency": {"p95": 2.2},
        "against": {"largest-int8": against},
    }


RECORD = {
    "request": {"supernet": "bert", "population": 2, "algorithm": "linas"},
    "hardware": {"name": "a-sku"},
    "objectives": ["accuracy", "latency_ms"],
    "members": [row("1-aaa", "largest", Precision.INT8), {**row("2-bbb", "smallest", ODD), "dominated": True}],
    "baselines": [row("smallest-fp32", "smallest", Precision.FP32)],
    "recommended": "1-aaa",
    "reason": "deploy <this> & that",
    "data": {
        "source": "somewhere",
        "metric": "accuracy",
        "examples": {"calibration": 1, "search": 2, "selection": 300, "report": 872},
    },
    "report_standard_error": 0.0104,
    "witness": {"witness": "soft", "soft_correlation": 0.87, "accuracy_correlation": 0.54},
    "selection": {
        "examples": 300,
        "groups": None,
        "allowed": 0.01,
        "confidence": 0.9,
        "tests": [{"name": "1-aaa", "difference": -0.0033, "p_value": 0.0456, "passed": True}],
    },
    "trials": {"complete": 2, "failed": 1},
    "space": {"networks": 6.0},
    "setting": {"threads": 1, "resolution": None},
    "environment": {"machine": {"brand": "A CPU"}, "versions": {"onnxruntime": "1.31.1"}},
    "latency": {"search": "measured", "verified": "measured", "table": None, "notes": []},
}


def test_render_shows_the_record_and_needs_nothing_else() -> None:
    trials = [
        Trial(
            metrics={"accuracy": 0.8, "latency_ms": 3.0}, number=0, candidate=SPACE.corner("largest", Precision.FP32)
        ),
        Trial(
            metrics={"accuracy": 0.9, "latency_ms": 2.0}, number=1, candidate=SPACE.corner("smallest", Precision.INT8)
        ),
        Trial(error="broken", number=2, candidate=SPACE.corner("largest", Precision.INT8)),
    ]
    html = render(RECORD, trials, SPACE)
    for text in ("1-aaa", "smallest-fp32", "a-sku", "A CPU", "-1.00", "1.04 points", "2 evaluated, 1 failed", "0.0456"):
        assert text in html, text
    assert "the probability of the right class" in html
    assert "1 more that the search took for members" in html
    assert "Deploy &lt;this&gt; &amp; that" in html
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", html)


def test_render_names_the_test_that_was_run() -> None:
    """A sign test of cosine similarities is not McNemar's."""
    trials = [
        Trial(metrics={"accuracy": 0.8, "latency_ms": 3.0}, number=0, candidate=SPACE.corner("largest", Precision.FP32))
    ]
    assert "McNemar" in render(RECORD, trials, SPACE)
    cosine = RECORD | {"data": {**RECORD["data"], "metric": "cosine"}}  # type: ignore[dict-item]
    assert "McNemar" not in render(cosine, trials, SPACE)


def test_render_draws_every_format_as_what_it_is() -> None:
    figure = _makeup(RECORD, SPACE)
    heat = figure.data[0]
    rows = dict(zip(heat.y, heat.z, strict=True))
    assert rows["1-aaa"][0] != rows["2-bbb"][0] != rows["smallest-fp32"][0]
    assert 0 not in [row[0] for row in heat.z]  # the colour of layers that a subnet skips
    assert ODD in [entry.name for entry in figure.data]


def test_render_shows_a_record_of_the_first_schema() -> None:
    """What an earlier version wrote has none of the newer parts."""
    old = {
        name: value for name, value in RECORD.items() if name not in ("witness", "selection", "report_standard_error")
    }
    old["data"] = {
        **RECORD["data"],
        "report_standard_error": 0.0104,
        "examples": {"calibration": 1, "search": 2, "report": 8},
    }  # type: ignore[dict-item]
    trials = [
        Trial(metrics={"accuracy": 0.8, "latency_ms": 3.0}, number=0, candidate=SPACE.corner("largest", Precision.FP32))
    ]
    assert "1.04 points" in render(old, trials, SPACE)
