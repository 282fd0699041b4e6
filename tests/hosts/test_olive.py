"""Needs olive-ai, which the main environment does not have; ``tests/environments.py`` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qnas_plugin.cli import main
from tests.hosts.conftest import Case, trials

pytest.importorskip("olive", reason="olive-ai is not installed")


@pytest.fixture(scope="module")
def ran(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ``olive run`` of the search that the fixture ``tuned`` has."""
    out = tmp_path_factory.mktemp("olive") / "out"
    config = out.with_name("search.toml")
    config.write_text(
        f"model = '{case.model}'\ndata = '{case.data}'\nhardware = '{case.hardware}'\nseed = 3\npopulation = 5\n"
        "calibration_samples = 32\nsearch_samples = 100\ntrials = 10\nobjectives = ['accuracy', 'size_mb']\n"
    )
    with pytest.raises(SystemExit) as stop:
        main(["olive-config", "--config", str(config), "--out", str(out)])
    assert stop.value.code == 0
    command = ["-m", "olive", "run", "--config", str(out / "run.json"), "--package-config", str(out / "package.json")]
    environment = dict(os.environ) | {"OLIVE_DISABLE_TELEMETRY": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, *command], check=True, cwd=out, env=environment)
    return out


def test_olive_config_is_the_default_one_and_the_pass(ran: Path) -> None:
    from olive.package_config import OlivePackageConfig

    default = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    written = json.loads((ran / "package.json").read_text())
    assert written["passes"].pop("QnasMixedPrecision")["module_path"].startswith("qnas_plugin.hosts.olive")
    assert written == default


def test_olive_writes_a_model_and_measures_as_tune_does(ran: Path, tuned: Path) -> None:
    """All FP32 and all INT8 come first in both: accuracies to the last digit; Olive adds its version, some bytes."""
    assert list((ran / "olive").rglob("*.onnx"))
    footprint = json.loads(next((ran / "olive").rglob("footprint.json")).read_text())
    nodes = sorted((node for node in footprint.values() if node.get("metrics")), key=lambda node: node["end_time"])
    found = [node["metrics"]["value"] for node in nodes]
    assert len(found) == 10
    for value, (_, accuracy, size) in zip(found[:2], trials(tuned)[:2], strict=True):
        assert value["accuracy-accuracy_score"]["value"] == accuracy
        assert 0 < value["size-bytes"]["value"] - size * 1e6 < 100
