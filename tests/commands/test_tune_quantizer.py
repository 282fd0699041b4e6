"""A search with ONNX Runtime's quantizer, where there is no Neural Compressor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from qnas_plugin.errors import LatencyTableError
from qnas_plugin.hardware import describe, write_profile
from qnas_plugin.hardware.machine import detect
from qnas_plugin.latency import table as latency_table
from qnas_plugin.latency.merge import merge
from tests.golden.given import given, write_model
from tests.test_missing import python, without

__all__ = ["without"]

SAMPLES = ["--calibration-samples", "12", "--search-samples", "10"]
FEW = ["--trials", "4", "--population", "4", "--algorithm", "random", "--threads", "1", *SAMPLES]


def small(kind: str, folder: Path, request: pytest.FixtureRequest) -> list[str]:
    """The options of a search of a tiny network."""
    if kind == "supernet":
        checkpoint, data = (str(request.getfixturevalue(name)) for name in ("bert_checkpoint", "sentences"))
        return ["--supernet", "bert", "--checkpoint", checkpoint, "--task", "text-classification", "--data", data]
    write_model(folder / "model.onnx")
    np.savez(folder / "data.npz", pixels=given("pixels", (60, 1, 8, 8), -32, 32, 32), labels=np.arange(60) % 10)
    return ["--model", str(folder / "model.onnx"), "--data", str(folder / "data.npz")]


@pytest.mark.parametrize("kind", ["supernet", "model"])
def test_tune_and_export_need_no_neural_compressor(
    kind: str, tmp_path: Path, without: str, request: pytest.FixtureRequest
) -> None:
    options = small(kind, tmp_path, request)
    study = tmp_path / "study"
    sku = write_profile(describe(detect(), "this-machine"), tmp_path)
    few = [*FEW, "--hardware", str(sku)]
    command = ["-m", "qnas_plugin", "tune", *options, *few, "--quantizer", "onnxruntime", "--out", str(study)]
    ran = python(*command, path=without)
    assert ran.returncode == 0, ran.stderr
    record = json.loads((study / "pareto.json").read_text())
    assert record["identity"]["quantizer"] == f"onnxruntime {onnxruntime.__version__}"
    assert record["request"]["quantizer"] == "onnxruntime"
    baselines = {member["name"]: member for member in record["baselines"]}
    assert baselines["largest-int8"]["kernels"]["not_integer"] == []
    key = baselines["largest-int8"]["key"]
    ran = python(
        "-m", "qnas_plugin", "export", "--study", str(study), "--key", key, "--out", str(tmp_path / "out"), path=without
    )
    assert ran.returncode == 0, ran.stderr
    made = (study / baselines["largest-int8"]["folder"] / "model.onnx").read_bytes()
    assert (tmp_path / "out" / "model.onnx").read_bytes() == made
    ran = python(*command[:-4], "--out", str(study), path="")
    assert ran.returncode == 1
    assert "neural_compressor" in ran.stderr


def test_a_table_says_what_quantized_and_old_ones_are_of_neural_compressor() -> None:
    old = Path(__file__).parents[1] / "assets" / "old" / "sku-a.json"
    assert latency_table.load(old).quantizer == "neural_compressor 3.7.1"
    versions = {**latency_table.load(old).versions, "quantizer": "onnxruntime 1.31.1"}
    other = latency_table.load(old).model_copy(update={"versions": versions})
    with pytest.raises(LatencyTableError, match="their quantizer differs"):
        merge(latency_table.load(old), other)
