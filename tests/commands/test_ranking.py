import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from qnas_plugin import registry
from qnas_plugin.cli import main
from qnas_plugin.commands.ranking import ranking
from qnas_plugin.errors import StudyError, UsageError
from qnas_plugin.request import TuneRequest
from qnas_plugin.study.evaluation import Evaluation
from qnas_plugin.study.study import Study


def study_of(checkpoint: Path, out: Path, trials: int) -> Path:
    """A study whose accuracy is additive, and whose latency is noise."""
    request = TuneRequest.build(
        {
            "supernet": "bert",
            "checkpoint": str(checkpoint),
            "task": "text_classification",
            "data": "none",
            "out": out,
            "objectives": ("accuracy", "latency_ms"),
        }
    )
    out.mkdir()
    request.write(out / "request.toml")
    supernet = registry.load("supernets", "bert").load(str(checkpoint))
    space, storage = supernet.space, str(out / "study.journal")
    rng = np.random.default_rng(0)
    worth = rng.normal(size=int(space.sizes.sum()))
    identity = {"checkpoint": supernet.fingerprint}
    with Study.open(storage, space, request.objectives, identity=identity, name=out.name) as study:
        for genes in space.sample(trials, rng):
            accuracy = 0.9 + 0.001 * float(space.features(genes[None])[0] @ worth)
            study.add(space.decode(genes), Evaluation({"accuracy": accuracy, "latency_ms": 5 + rng.random()}))
        study.add(space.decode(genes), Evaluation(error="MeasurementError: none"))
    return out


def test_ranking_shows_what_can_be_learned_from_a_study(
    bert_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of(bert_checkpoint, tmp_path / "study", 80)
    found = ranking(study)
    last = {metric: {point.name: point for point in points if point.rows == 50} for metric, points in found.items()}
    assert set(last["accuracy"]) == set(registry.names("predictors"))
    assert all(point.tau > 0.4 for point in last["accuracy"].values())
    assert all(abs(point.tau) < 0.3 for point in last["latency_ms"].values())
    assert ranking(study) == found
    with pytest.raises(SystemExit) as stop:
        main(["show", "predictors", "--study", str(study)])
    assert not stop.value.code
    assert "Kendall tau" in capsys.readouterr().out


def test_ranking_refuses_what_is_no_study(bert_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder that qnas tune wrote"):
        ranking(tmp_path)
    with pytest.raises(StudyError, match="5 finished trials, 30 are needed"):
        ranking(study_of(bert_checkpoint, tmp_path / "study", 5))


def test_show_refuses_a_study_for_another_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["show", "tasks", "--study", str(tmp_path)])
    assert stop.value.code == 2
    assert "--study is for qnas show predictors" in capsys.readouterr().err


def test_ranking_refuses_a_study_of_other_weights(bert_checkpoint: Path, tmp_path: Path) -> None:
    study = study_of(bert_checkpoint, tmp_path / "study", 40)
    other = tmp_path / "other"
    shutil.copytree(bert_checkpoint, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    request = TuneRequest.build({"checkpoint": str(other)}, study / "request.toml")
    request.write(study / "request.toml")
    with pytest.raises(StudyError, match=r"other has changed since the study in .*; run qnas tune again"):
        ranking(study)
