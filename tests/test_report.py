from __future__ import annotations

import re

from qnas_plugin.report import render
from qnas_plugin.space import Condition, Precision, SearchSpace, Variable
from qnas_plugin.study import Trial

SPACE = SearchSpace(
    (
        Variable("depth", (1, 2)),
        Variable("precision.layer.0.query", ("int8", "fp32"), "precision"),
        Variable("precision.layer.1.query", ("int8", "fp32"), "precision", Condition("depth", (2,))),
    )
)


def row(name: str, size: str, precision: Precision) -> dict[str, object]:
    against = {"latency_ratio": 2.0, "size_ratio": 1.5, "accuracy_difference": -0.01, "p_value": 0.25}
    return {
        "name": name,
        "candidate": dict(SPACE.corner(size, precision)),  # type: ignore[arg-type]
        "report": {"accuracy": 0.9, "latency_ms": 2.0, "size_mb": 3.0},
        "latency": {"p95": 2.2},
        "against": {"largest-int8": against},
    }


RECORD = {
    "request": {"supernet": "bert", "population": 2, "algorithm": "linas"},
    "hardware": {"name": "a-sku"},
    "objectives": ["accuracy", "latency_ms"],
    "members": [row("1-aaa", "largest", Precision.INT8)],
    "baselines": [row("smallest-fp32", "smallest", Precision.FP32)],
    "recommended": "1-aaa",
    "reason": "deploy <this> & that",
    "data": {
        "source": "somewhere",
        "examples": {"calibration": 1, "search": 2, "report": 872},
        "report_standard_error": 0.0104,
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
    html = render(RECORD, trials)
    for text in ("1-aaa", "smallest-fp32", "a-sku", "A CPU", "-1.00", "1.04 points", "2 evaluated, 1 failed"):
        assert text in html, text
    assert "Deploy &lt;this&gt; &amp; that" in html
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", html)
