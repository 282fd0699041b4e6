"""The options of ``retarget``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from qnas_plugin.request.options import Insist, Options, RunSize, Seed, Shown, Table, Threads


class RetargetRequest(Options):
    """A finished study to be carried over to another CPU or setting."""

    study: Annotated[Path, Shown("What")] = Field(description="Folder that qnas tune wrote.")
    hardware: Annotated[str, Shown("Hardware")] = Field(
        description="Hardware profile to find the Pareto set for, or auto."
    )
    threads: Threads = None
    batch: RunSize = None
    seq_len: Annotated[int | None, Shown("Hardware", "the study's")] = Field(
        None, ge=2, description="Tokens an example, for text."
    )
    table: Table = None
    insist: Insist = False
    evaluate: Annotated[int, Shown("Search")] = Field(
        0, ge=0, description="New accuracy evaluations to spend where predictions are unsure."
    )
    seed: Seed = 0
    out: Annotated[Path | None, Shown("Output", "STUDY/retarget/HARDWARE")] = Field(
        None, description="Folder for the result."
    )
