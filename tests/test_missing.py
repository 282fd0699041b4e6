"""What is said when a package that a command needs is not installed."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest


def installed(distribution: str) -> bool:
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture
def without(tmp_path: Path) -> str:
    """A folder whose module stands in place of Neural Compressor and is as missing as it can be."""
    folder = tmp_path / "hidden"
    folder.mkdir()
    if installed("neural-compressor"):
        (folder / "neural_compressor.py").write_text(
            "raise ModuleNotFoundError(\"No module named 'neural_compressor'\", name='neural_compressor')"
        )
    return str(folder)


def python(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([path, *filter(None, sys.path)])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_qnas_names_the_package_that_is_missing(without: str, tmp_path: Path) -> None:
    options = ["--supernet", "bert", "--checkpoint", "c", "--task", "text-classification", "--data", "d", "--out"]
    ran = python("-m", "qnas_plugin", "tune", *options, str(tmp_path / "out"), path=without)
    assert ran.returncode == 1
    assert ran.stderr.strip() == (
        "qnas: the quantizer 'neural_compressor' needs the package 'neural_compressor', which is not installed; "
        "install what is missing with: pip install qnas-plugin, or try another: --quantizer onnxruntime"
    )
    assert python("-m", "qnas_plugin", "tune", "--help", path=without).returncode == 0
    assert python("-m", "qnas_plugin", "show", "supernets", path=without).returncode == 0


def test_the_host_names_what_is_missing(without: str) -> None:
    ran = python("-c", "import qnas_plugin.hosts.neural_compressor", path=without)
    assert ran.stderr.strip().endswith("No module named 'neural_compressor'")


@pytest.mark.skipif(installed("optimum"), reason="optimum is installed")
def test_transformers_does_not_take_our_namespace_for_optimum() -> None:
    from transformers.utils import is_optimum_available

    assert not is_optimum_available()
