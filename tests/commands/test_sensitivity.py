"""What single decisions do to the accuracy: measured once, kept line by line, refused for another network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qnas_plugin.additive import total
from qnas_plugin.additive.sensitivity import Sensitivity, single_changes
from qnas_plugin.commands.loading import load
from qnas_plugin.commands.sensitivity import FILE, sensitivity, sensitivity_in
from qnas_plugin.errors import StudyError
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.request import TuneRequest
from qnas_plugin.space import Precision


@pytest.fixture(scope="module")
def request_(bert_checkpoint: Path, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneRequest:
    return TuneRequest(
        supernet="bert",
        checkpoint=str(bert_checkpoint),
        task="text_classification",
        data=str(sentences),
        out=tmp_path_factory.mktemp("sensitivity"),
        calibration_samples=8,
        search_samples=24,
    )


@pytest.fixture(scope="module")
def lab(request_: TuneRequest) -> Lab:
    return load(request_, measures=False)


@pytest.fixture(scope="module")
def found(request_: TuneRequest, lab: Lab) -> Sensitivity:
    return sensitivity(request_, lab=lab)


def test_each_change_is_what_its_candidate_gets_more_than_the_centre(
    found: Sensitivity, lab: Lab, tmp_path: Path
) -> None:
    space = lab.network.space
    centre = space.corner("largest", Precision.FP32)
    changes = list(single_changes(space, centre))
    assert [(change.variable, change.choice) for change in found.changes] == [change[:2] for change in changes]
    assert len(changes) == sum(len(variable.choices) - 1 for variable in space.variables)
    for i in (0, len(changes) // 2, len(changes) - 1):
        soft = []
        for candidate in (centre, changes[i][2]):
            lab.write(candidate, tmp_path / "model.onnx")
            scored = lab.scores(tmp_path / "model.onnx", "search").soft
            assert scored is not None
            soft.append(scored)
        assert found.changes[i].mean == pytest.approx((soft[1] - soft[0]).mean(), abs=1e-5)
    genes = space.encode(changes[0][2])[None]
    assert total(space, found.terms(space), genes)[0, 0] == pytest.approx(-found.changes[0].mean)


def test_a_stopped_run_goes_on_and_a_damaged_line_is_measured_again(
    found: Sensitivity, request_: TuneRequest, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (request_.out / "sensitivity.jsonl").read_text().splitlines()
    out = tmp_path / "again"
    out.mkdir()
    (out / "sensitivity.jsonl").write_text("\n".join([*lines[:-2], "damaged", lines[-1][:20]]))
    built = []
    write = type(lab).write
    monkeypatch.setattr(type(lab), "write", lambda self, *of: (built.append(of[0].key), write(self, *of))[1])
    again = sensitivity(request_.model_copy(update={"out": out}), lab=lab)
    assert len(built) == 2
    np.testing.assert_allclose([c.mean for c in again.changes], [c.mean for c in found.changes], atol=1e-5)
    assert all(json.loads(line) for line in (out / "sensitivity.jsonl").read_text().splitlines()[-2:])


def test_the_table_is_read_back_and_that_of_other_data_is_refused(
    found: Sensitivity, request_: TuneRequest, lab: Lab, tmp_path: Path
) -> None:
    assert Sensitivity.read(request_.out / FILE) == found
    assert sensitivity_in(request_.out, lab) == found
    record = json.loads((request_.out / FILE).read_text())
    record["identity"]["data"] = "000000000000"
    (tmp_path / FILE).write_text(json.dumps(record))
    with pytest.raises(StudyError, match="is of another data: 000000000000, not"):
        sensitivity_in(tmp_path, lab)
    for damage in ({"changes": 3}, {"schema_version": 2}, {"value": "nan"}):
        (tmp_path / FILE).write_text(json.dumps(record | damage))
        with pytest.raises(StudyError, match="is not a sensitivity table of this version"):
            Sensitivity.read(tmp_path / FILE)


def test_a_space_with_more_variables_is_refused(found: Sensitivity, lab: Lab) -> None:
    fewer = Sensitivity(found.centre, found.score, found.value, found.examples, found.identity, found.changes[1:])
    with pytest.raises(StudyError, match=f"has nothing of '{found.changes[0].variable}'"):
        fewer.terms(lab.network.space)
