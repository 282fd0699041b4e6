"""What ``olive run`` needs for a search: the package configuration with the pass, a run configuration, a script."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from qnas_plugin.errors import UnknownNameError, UsageError
from qnas_plugin.files import make_folder, write_bytes, write_json
from qnas_plugin.measure.metrics import load as load_metric
from qnas_plugin.objectives import directed
from qnas_plugin.quantizers.formats import DEFAULT
from qnas_plugin.request import TuneRequest
from qnas_plugin.supernets.onnx_file import onnx_model

_METRICS: dict[str, dict[str, Any]] = {
    "accuracy": {"name": "accuracy", "type": "accuracy", "sub_types": [{"name": "accuracy_score"}]},
    "latency_ms": {"name": "latency", "type": "latency", "sub_types": [{"name": "p50"}]},
    "size_mb": {"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes"}]},
}
_OF_THE_SEARCH = {"model", "out", "objectives", "limits", "algorithm", "trials", "population", "seed", "storage"}
"""Options that Olive has in other places, or that are its own business."""


MAX_GROUPS = 60
"""Variables of a pass stand before its model is known, and Olive cannot count spaces of 2**63 points and more."""


def group_name(index: int) -> str:
    """The name of the option that is the precision of a group."""
    return f"group_{index:02}"


def write_config(request: TuneRequest) -> None:
    """Writes ``package.json``, ``run.json`` and ``qnas_olive.py`` into the folder of the request.

    Raises:
        UsageError: The request is about a supernet, or the space is larger than Olive can count.
        QnasError: The model cannot be used, or the folder not be written.
    """
    if request.model is None:
        raise UsageError("Olive's pass takes one ONNX model; give --model FILE.onnx")
    found = importlib.util.find_spec("olive")
    if found is None or found.origin is None:
        raise UsageError("Olive is not installed; install it with: pip install qnas-plugin[olive]")
    space = onnx_model.load(request.model, precisions=request.precisions).space
    if len(space) > MAX_GROUPS or space.genotypes >= 2**63:
        raise UsageError(
            f"{request.model} has {len(space)} groups and {space.genotypes:.1g} policies, Olive takes {MAX_GROUPS} and "
            "9e18; lower --max-groups"
        )
    given = request.model_dump(mode="json", exclude_defaults=True)
    options = {name: value for name, value in given.items() if name not in _OF_THE_SEARCH}
    options |= {"data": request.data, "out": str(request.out), "task": request.task}
    make_folder(request.out)
    default = Path(found.origin).with_name("olive_config.json")  # what is given to Olive replaces it
    package = json.loads(default.read_text(encoding="utf-8"))
    package["passes"]["QnasMixedPrecision"] = {
        "module_path": "qnas_plugin.hosts.olive.passes.QnasMixedPrecision",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["int8"],
    }
    write_json(request.out / "package.json", package)
    write_json(request.out / "run.json", _run(request, options, len(space)))
    settings = {"seed": request.seed, "population": request.population, "algorithm": request.algorithm}
    lines = [f"LinasSearchSampler.{name} = {value!r}" for name, value in settings.items()]
    lines = ["from qnas_plugin.hosts.olive.search import LinasSearchSampler", "", *lines]
    write_bytes(request.out / "qnas_olive.py", ("\n".join(lines) + "\n").encode())


def _run(request: TuneRequest, options: dict[str, Any], groups: int) -> dict[str, Any]:
    choices = {
        "olive_parameter_type": "SearchParameter",
        "type": "Categorical",
        "support": list(request.precision or DEFAULT),
    }
    metrics = []
    directions = directed(request.objectives, load_metric(request.metric or "accuracy").direction)
    for priority, objective in enumerate(request.objectives, 1):
        if objective not in _METRICS:
            raise UnknownNameError("objective of Olive", objective, _METRICS)
        metric = _METRICS[objective]
        ranked = {"priority": priority, "higher_is_better": directions[objective] == "maximize"}
        metrics.append({**metric, "sub_types": [{**part, **ranked} for part in metric["sub_types"]]})
    return {
        "input_model": {"type": "OnnxModel", "model_path": request.model},
        "systems": {
            "local": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "evaluators": {
            "qnas": {
                "type": "qnas",
                "type_args": {"request": {**options, "model": request.model}},
                "user_script": str(request.out / "qnas_olive.py"),
                "metrics": metrics,
            }
        },
        "passes": {
            "qnas": {
                "type": "QnasMixedPrecision",
                "request": options,
                **{group_name(i): choices for i in range(groups)},
            }
        },
        "search_strategy": {
            "execution_order": "joint",
            "sampler": "linas",
            "max_iter": max(1, request.trials - 1),  # Olive 0.13 runs one more
        },
        "evaluator": "qnas",
        "host": "local",
        "target": "local",
        "evaluate_input_model": False,
        "output_dir": str(request.out / "olive"),
        "cache_dir": str(request.out / "cache"),
    }
