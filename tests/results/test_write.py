from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qnas_plugin.files import write_bytes
from qnas_plugin.results.member import Result
from qnas_plugin.results.verify import _put_in_place
from qnas_plugin.results.write import write_result
from qnas_plugin.space import SearchSpace
from tests.results.test_recommend import member


def test_old_members_go_only_when_the_new_ones_stand_in_pareto_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each moment the file names folders that are there, whatever ends the process."""
    for name in ("pareto/old", "pareto/both", "baselines/old", "pareto/of-the-user"):
        (tmp_path / name).mkdir(parents=True)
        if "user" not in name:
            (tmp_path / name / "candidate.json").write_text("old")
    write_bytes(tmp_path / "pareto.json", b"before")
    building = tmp_path / ".verifying"
    for name in ("pareto/both", "pareto/new"):
        (building / name).mkdir(parents=True)
        (building / name / "candidate.json").write_text("new")
    both, new = member("both", 0.9, 8.0, 20.0), member("new", 0.8, 4.0, 10.0)
    result = replace(Result((both, new), (), None, ""), record={"members": ["both", "new"]})

    def folders() -> set[str]:
        return {str(path.parent.relative_to(tmp_path)) for path in tmp_path.glob("*/*/candidate.json")}

    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    _put_in_place(tmp_path, building, result)
    assert folders() == {"pareto/old", "pareto/both", "pareto/new", "baselines/old"}
    assert (tmp_path / "pareto/both/candidate.json").read_text() == "new"
    assert not building.exists()
    monkeypatch.setattr("qnas_plugin.results.write.render", stop)
    with pytest.raises(KeyboardInterrupt):
        write_result(result, [], SearchSpace(()), tmp_path)
    assert folders() == {"pareto/old", "pareto/both", "pareto/new", "baselines/old"}
    monkeypatch.setattr("qnas_plugin.results.write.render", lambda *_: "report")
    write_result(result, [], SearchSpace(()), tmp_path)
    assert folders() == {"pareto/both", "pareto/new"}
    assert (tmp_path / "pareto/of-the-user").is_dir()
    assert json.loads((tmp_path / "pareto.json").read_text()) == {"members": ["both", "new"]}
