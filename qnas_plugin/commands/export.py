"""One candidate as ONNX, from a finished or running study: the same bytes each time."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Mapping
from pathlib import Path

from qnas_plugin.commands.loading import load
from qnas_plugin.commands.study_folder import check_unchanged, request_in
from qnas_plugin.errors import OutputError, QnasError, StudyError, UsageError, door
from qnas_plugin.files import make_folder, move_files
from qnas_plugin.files.doors import read_json
from qnas_plugin.files.locks import alone_in, scratch
from qnas_plugin.request import ExportRequest, TuneRequest
from qnas_plugin.results.write import CANDIDATE_FILE, write_candidate
from qnas_plugin.space import Candidate, SearchSpace

MODEL_FILE = "model.onnx"
MADE_WITH = ("checkpoint", "processor", "data", "space")
"""What of a study's identity the bytes of its candidates follow from."""


def export(asked: ExportRequest, on_stage: Callable[[str], None] = lambda text: None) -> Candidate:
    """Builds one candidate of a study's supernet and writes it with its files.

    Nothing is measured, so any machine will do. A folder that holds this very model is left as it is.

    Args:
        asked: What is asked for.
        on_stage: Is told what happens.

    Raises:
        UsageError: The study, key or file is wrong, or ``out`` is the folder of the study's model.
        StudyError: The checkpoint, the tokenizer or the data are not what the study was made with.
        CandidateError: The candidate cannot be built.
        OutputError: The folder holds another model, or cannot be written.
    """
    study, out, candidate = asked.study, asked.out, asked.candidate
    request = request_in(study)
    if asked.key is not None and candidate is not None:
        raise UsageError("give --key or --candidate, not both")
    _check_apart(request, study, out)
    lab = load(request, measures=False)
    space = lab.network.space
    check_unchanged(study, request, {**lab.identity, "space": space.fingerprint}, MADE_WITH)
    if candidate is None:
        values = _stored(study, asked.key, space)
    else:
        values = space.candidate(candidate) if isinstance(candidate, Mapping) else _read(candidate, space)
    if asked.precision != "searched":
        values = space.with_policy(values, dict.fromkeys(space.policy(values), asked.precision))
    there = _model_in(out)
    if there not in (None, values.key) and not asked.overwrite:
        raise OutputError(f"{out} holds {there}; give another --out, or --overwrite to replace it")
    make_folder(out)
    with alone_in(out), scratch(out) as folder:
        write_candidate(lab, values, folder)
        if there == values.key and _same_model(folder, out):
            on_stage(f"Already finished: {out} holds this very model")
            return values
        if there is not None and (out / MODEL_FILE).exists() and not asked.overwrite:
            raise OutputError(f"{out} holds another model of this candidate; give another --out, or --overwrite")
        move_files(folder, out, last=MODEL_FILE)  # killed meanwhile, the same command goes on: the key is there first
    on_stage(f"Wrote {values.key} to {out / MODEL_FILE}")
    return values


def _check_apart(request: TuneRequest, study: Path, out: Path) -> None:
    """Keeps an export from what the study reads.

    Raises:
        UsageError: ``out`` is the folder of its model, or its own.
    """
    source = Path(request.source)
    for what, folder in (
        ("the model that was searched", source.parent if source.is_file() else source),
        ("the study", study),
    ):
        if folder.is_dir() and out.exists() and out.samefile(folder):
            raise UsageError(f"--out is the folder of {what}, and would overwrite it; give another --out")


def _same_model(new: Path, old: Path) -> bool:
    """Whether the old folder has all files of the new one, and the same model."""
    there = all((old / path.name).exists() for path in new.iterdir())
    return there and filecmp.cmp(new / MODEL_FILE, old / MODEL_FILE, shallow=False)


def _model_in(out: Path) -> str | None:
    """The key of the candidate in a folder, or what else is there; None where there is no model."""
    models = [name for name in ("*.onnx", "config.json", "*.safetensors", "*.bin", "*.pth") if any(out.glob(name))]
    if not models and not (out / CANDIDATE_FILE).exists():
        return None
    try:
        return str(read_json(out / CANDIDATE_FILE, UsageError, "")["key"])
    except (QnasError, KeyError):
        return "a model that qnas export did not write"


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
