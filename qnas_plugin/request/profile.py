"""The options of ``profile``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from qnas_plugin.errors import UsageError
from qnas_plugin.quantizers import DEFAULT
from qnas_plugin.request.options import (
    Insist,
    Options,
    Overwrite,
    RunSize,
    Seed,
    Shown,
    Supernet,
    Threads,
)


def _tables() -> Path:
    from qnas_plugin.hardware import user_folder

    return user_folder("latency_tables")


class ProfileRequest(Options):
    """A latency table to be made on this machine."""

    supernet: Supernet[str]
    checkpoint: Annotated[str, Shown("What")] = Field(
        description="As for tune; a folder with a config.json and no weights is enough, no data are needed."
    )
    hardware: Annotated[str, Shown("Hardware")] = Field(
        "auto", description="Hardware profile of this machine, or auto to find it."
    )
    threads: Threads = None
    batch: RunSize = None
    seq_len: Annotated[int | None, Shown("Hardware", "the profile's")] = Field(
        None, ge=2, description="Tokens an example, for text."
    )
    resolution: Annotated[int | None, Shown("Hardware", "the model's")] = Field(
        None, ge=1, description="Height and width in pixels, for images."
    )
    budget: Annotated[str, Shown("Measurement")] = Field(
        "10m", description="How long to measure: 90s, 10m, 1h; time of an earlier, stopped run included."
    )
    out: Annotated[Path, Shown("Output", "the user's own")] = Field(
        default_factory=_tables, description="Folder of latency tables, or what --detect, --merge or --plot write."
    )
    seed: Annotated[Seed, Shown("Measurement")] = 0
    insist: Insist = False
    quantizer: Annotated[str, Shown("Output")] = Field(
        DEFAULT, description="What quantizes, see: qnas show quantizers."
    )
    overwrite: Overwrite = False

    @field_validator("budget")
    @classmethod
    def _budget(cls, text: str) -> str:
        parse_duration(text)
        return text


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``10m`` or ``1.5h``.

    Raises:
        UsageError: The text has another form.
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smh])", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"cannot read the duration '{text}'; write it like 90s, 10m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
