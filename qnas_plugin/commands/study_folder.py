"""Where ``tune`` keeps a search, and what commands read of it; the search may still be running."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qnas_plugin.errors import StudyError, UsageError
from qnas_plugin.request import TuneRequest
from qnas_plugin.study.evaluation import Trial
from qnas_plugin.study.storage import studies_in
from qnas_plugin.study.study import Study, stored_identity


def request_in(folder: Path) -> TuneRequest:
    """The request of a search.

    Raises:
        UsageError: ``tune`` did not write the folder.
    """
    if not (folder / "request.toml").is_file():
        raise UsageError(f"{folder} is no folder that qnas tune wrote: it has no request.toml")
    return TuneRequest.build({}, folder / "request.toml")


def study_in(folder: Path, request: TuneRequest) -> tuple[str, str]:
    """The storage and the name of a search's study.

    A study is what its file says, not what its folder is called: a journal in the folder has the name of the one study
    in it; in a storage of several, the name is the one that ``request.toml`` in the folder tells. Only a new study is
    named after its folder.

    Raises:
        StudyError: The journal has several studies, and none of that name.
    """
    own = request.study_name or request.out.resolve().name
    if request.storage is None:
        journal = folder / "study.journal"
        names = studies_in(journal)
        if not names or own in names:
            return str(journal), own
        if len(names) > 1:
            raise StudyError(f"'{journal}' has several studies: {', '.join(names)}; choose one with --study-name")
        if request.study_name is not None:
            raise StudyError(f"'{journal}' has the study '{names[0]}', not '{own}'; leave out --study-name")
        return str(journal), names[0]
    if request.study_name is None and (folder / "request.toml").is_file():
        before = request_in(folder)
        if before.storage is not None and _place(before.storage) == _place(request.storage):
            own = before.study_name or before.out.resolve().name
    return request.storage, own


def _place(storage: str) -> str:
    """A storage without the user and the password of its URL."""
    return re.sub(r"://.*@", "://", storage)


def identity_in(folder: Path, request: TuneRequest) -> Mapping[str, str]:
    """What the trials of a search were made with: by its result, which may be all that was copied, else its storage.

    Raises:
        StudyError: There is no study.
        OutputError: The storage cannot be read.
    """
    with suppress(OSError, ValueError, AttributeError):
        identity = json.loads((folder / "pareto.json").read_text(encoding="utf-8")).get("identity")
        if isinstance(identity, dict):
            return identity
    return stored_identity(*study_in(folder, request))


def check_unchanged(folder: Path, request: TuneRequest, now: Mapping[str, str], names: Sequence[str]) -> None:
    """Checks that what a study was made with is still what it was.

    Args:
        folder: That of the search.
        request: Its request.
        now: The identity that a search would have now.
        names: What of it matters.

    Raises:
        StudyError: It names what has changed.
    """
    stored = identity_in(folder, request)
    what = {
        "checkpoint": request.source,
        "data": request.data,
        "processor": f"the tokenizer or image processor of {request.source}",
    }
    for name in names:
        if name in stored and stored[name] != now.get(name):
            raise StudyError(
                f"{what.get(name, name)} has changed since the study in {folder}; restore it, or run qnas tune again "
                "in another --out"
            )


def trials_in(folder: Path, request: TuneRequest, network: Any) -> tuple[Mapping[str, str], list[Trial]]:
    """What the trials of a search were made with, and those that are complete, in order.

    Args:
        folder: That of the search.
        request: Its request.
        network: The supernet or ONNX model of the request, as it is now.

    Raises:
        StudyError: There is no study, or it is of another state of the network.
    """
    storage, name = study_in(folder, request)
    identity = stored_identity(storage, name)
    if identity.get("checkpoint") != network.fingerprint:
        changed = request.model or request.checkpoint
        raise StudyError(f"{changed} has changed since the study in {folder}; run qnas tune again")
    with Study.open(storage, network.space, request.objectives, identity=identity, name=name, write=False) as study:
        return identity, [trial for trial in study.trials() if trial.state == "complete"]
