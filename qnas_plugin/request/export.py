"""The options of ``export``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from qnas_plugin.request.options import Options, Overwrite, Shown


class ExportRequest(Options):
    """A candidate of a study to be written as ONNX."""

    study: Annotated[Path, Shown("What")] = Field(description="Folder that qnas tune wrote.")
    out: Annotated[Path, Shown("Output")] = Field(description="Folder for the model.")
    key: Annotated[str | None, Shown("What", "the recommended member's")] = Field(
        None, description="Key, or beginning of it, of a candidate of the study."
    )
    candidate: Annotated[Path | Mapping[str, Any] | None, Shown("What", metavar="FILE.json")] = Field(
        None,
        description="JSON file with a candidate, like pareto/*/candidate.json; in Python also a candidate.",
    )
    precision: Annotated[Literal["searched", "int8", "fp32"], Shown("What")] = Field(
        "searched", description="The candidate's own, or one that all groups get."
    )
    overwrite: Overwrite = False
