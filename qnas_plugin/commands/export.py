"""One candidate as ONNX, from a finished or running study: the same bytes each time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qnas_plugin.commands.tune import load
from qnas_plugin.doors import door, read_json
from qnas_plugin.errors import StudyError, UsageError
from qnas_plugin.request import TuneRequest
from qnas_plugin.results.write import write_candidate
from qnas_plugin.space import Candidate, Precision, SearchSpace, Value


def export(
    study: Path | str,
    out: Path | str,
    *,
    key: str | None = None,
    candidate: Path | str | Mapping[str, Value] | None = None,
    precision: str = "searched",
) -> Candidate:
    """Builds one candidate of a study's supernet and writes it with its files.

    Args:
        study: The folder that ``tune`` wrote.
        out: The folder for the model.
        key: The key of a trial's candidate, or a beginning that only one has; None is the recommended member's.
        candidate: A candidate, or a JSON file with one, instead of a key.
        precision: ``searched``, or ``int8`` or ``fp32`` for all groups.

    Raises:
        UsageError: The study, key, file or precision is wrong.
        CandidateError: The candidate cannot be built.
    """
    study, out = Path(study), Path(out)
    if not (study / "request.toml").is_file():
        raise UsageError(f"{study} is no folder that qnas tune wrote: it has no request.toml")
    if key is not None and candidate is not None:
        raise UsageError("give --key or --candidate, not both")
    loaded = load(TuneRequest.build({}, study / "request.toml"))
    space = loaded.supernet.space
    if candidate is None:
        values = _stored(study, key, space)
    else:
        values = space.candidate(candidate) if isinstance(candidate, Mapping) else _read(Path(candidate), space)
    if precision != "searched":
        if precision not in list(Precision):
            raise UsageError(f"--precision is searched, int8 or fp32; got '{precision}'")
        values = space.candidate(
            {name: precision if name.startswith("precision.") else value for name, value in values.items()}
        )
    write_candidate(loaded.evaluator(), values, out)
    return values


def _read(path: Path, space: SearchSpace) -> Candidate:
    remedy = "take one from pareto/*/candidate.json"
    record = read_json(path, UsageError, remedy)
    with door(UsageError, f"{path} holds no candidate", remedy):
        return space.candidate(record.get("candidate", record))


def _stored(study: Path, key: str | None, space: SearchSpace) -> Candidate:
    path = study / "pareto.json"
    if not path.exists():
        raise UsageError(f"{path} does not exist yet; finish the study with qnas tune, or give --candidate")
    remedy = "make it again with: qnas tune, or give --candidate"
    record = read_json(path, StudyError, remedy)
    with door(StudyError, f"{path} is not what qnas tune wrote", remedy):
        members = [*record["members"], *record["baselines"]]
        if key is None:
            if record["recommended"] is None:
                raise UsageError(f"the study recommends no member ({record['reason']}); give --key")
            found = [member for member in members if member["name"] == record["recommended"]]
        else:
            found = [member for member in members if member["key"].startswith(key) or member["name"] == key]
        keys = {member["key"]: member for member in found}
        if len(keys) != 1:
            have = ", ".join(member["name"] for member in members)
            raise UsageError(f"{len(keys)} members have a key or name like '{key}'; have: {have}")
        (member,) = keys.values()
        candidate = space.candidate(member["candidate"])
        if candidate.key != member["key"]:
            raise ValueError(f"the key of '{member['name']}' is {member['key']}, its candidate's is {candidate.key}")
        return candidate
