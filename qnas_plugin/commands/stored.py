"""Where ``tune`` keeps a search, and what commands read of it; the search may still be running."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qnas_plugin.errors import StudyError, UsageError
from qnas_plugin.request import TuneRequest
from qnas_plugin.study import Study, Trial, stored_identity


def request_in(folder: Path) -> TuneRequest:
    """The request of a search.

    Raises:
        UsageError: ``tune`` did not write the folder.
    """
    if not (folder / "request.toml").is_file():
        raise UsageError(f"{folder} is no folder that qnas tune wrote: it has no request.toml")
    return TuneRequest.build({}, folder / "request.toml")


def study_in(folder: Path, request: TuneRequest) -> tuple[str, str]:
    """The storage and the name of a search's study; a folder may have been moved since the request was written."""
    return request.storage or str(folder / "study.journal"), request.out.resolve().name


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
