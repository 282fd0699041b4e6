from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from qnas_plugin import registry
from qnas_plugin.errors import UnknownNameError, UsageError

KINDS = ("supernets", "tasks", "predictors", "search", "quantizers", "runtimes")
HEAVY = ("torch", "onnxruntime", "onnx", "neural_compressor", "transformers", "sklearn", "optuna", "pymoo", "plotly")


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_described_and_load(kind: registry.Kind) -> None:
    assert registry.names(kind)
    for name in registry.names(kind):
        if name == "neural_compressor" and importlib.util.find_spec(name) is None:
            continue
        assert registry.describe(kind, name).endswith(".")
        assert registry.load(kind, name) is registry.load(kind, name.replace("_", "-"))


def test_load_suggests_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="unknown supernet 'brt'; did you mean 'bert'"):
        registry.load("supernets", "brt")


def test_a_quantizer_is_told_from_other_files_of_its_room_by_its_functions(tmp_path: Path) -> None:
    whole = "def version(): ...\ndef can_emit(format): ...\ndef emit(work): ...\n"
    (tmp_path / "own.py").write_text(whole)
    (tmp_path / "_hidden.py").write_text(whole)
    (tmp_path / "part.py").write_text("def emit(graph): ...")
    (tmp_path / "methods.py").write_text("class A:\n" + "".join(f"    {line}\n" for line in whole.splitlines()))
    assert registry._modules("quantizers", tmp_path) == {"own"}
    assert registry._modules("search", tmp_path) == {"own", "part", "methods"}


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> object:
    def install(*points: EntryPoint) -> None:
        monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
        registry._third_party.cache_clear()

    yield install
    registry._third_party.cache_clear()


def test_names_include_entry_points(third_party) -> None:  # type: ignore[no-untyped-def]
    third_party(EntryPoint("my-predictor", "json", "qnas_plugin.predictors"))
    assert "my_predictor" in registry.names("predictors")
    assert registry.load("predictors", "my-predictor").__name__ == "json"
    assert registry.describe("predictors", "my_predictor")


def test_names_refuse_an_entry_point_that_shadows(third_party) -> None:  # type: ignore[no-untyped-def]
    third_party(EntryPoint("ridge", "json", "qnas_plugin.predictors"))
    with pytest.raises(UsageError, match="already"):
        registry.names("predictors")


@pytest.mark.parametrize(
    "code",
    [
        f"import qnas_plugin, qnas_plugin.cli, qnas_plugin.registry as r; [r.names(k) for k in {KINDS!r}]",
        "import qnas_plugin.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass",
        "import qnas_plugin.cli as c\ntry: c.main(['tune', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_import_and_help_load_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys; print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
