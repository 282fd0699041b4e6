"""What a stopped training leaves for the same command to continue: which training it is, and how far it came."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qnas_plugin.data import Dataset, Processor, encoding
from qnas_plugin.errors import CheckpointError, OutputError, door
from qnas_plugin.files import whole_file
from qnas_plugin.supernets import Supernet
from qnas_plugin.supernets._checkpoint import fingerprint

RESUME_FILE = "training.pt"


def identity(
    supernet: Supernet,
    dataset: Dataset,
    processor: Processor,
    settings: Mapping[str, Any],
    teacher: nn.Module | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """What a training is of, before it begins: the same gives the same weights, and may continue what was stopped.

    Args:
        supernet: With the weights that training starts from.
        dataset: Of the training.
        processor: What makes inputs of it.
        settings: How to train.
        teacher: Who is learned from.
        processes: How many share the batches.
    """
    return dict(settings) | {
        "dataset": dataset.fingerprint,
        "processor": encoding(processor, dataset),
        "space": supernet.space.fingerprint,
        "start": supernet.fingerprint,
        "processes": processes,
        "teacher": None if teacher is None else fingerprint(teacher, supernet.space),
    }


def differing(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of an identity that are not the same; what older versions did not record may be anything."""

    def same(name: str) -> bool:
        if name == "teacher" and isinstance(stored.get(name), bool):  # older versions: whether there is one
            return bool(stored[name]) == (now[name] is not None)
        return stored.get(name) == now[name] or (name in ("start", "processor") and name not in stored)

    return sorted(name for name in now if not same(name))


def read(out: Path, now: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a stopped training left in a folder; None where there is nothing.

    Raises:
        CheckpointError: It is damaged, or of another training.
    """
    path = out / RESUME_FILE
    if not path.is_file():
        return None
    with door(CheckpointError, f"{path} is damaged", "delete it to train from the start"):
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        stored = dict(state["identity"])
    if names := differing(stored, now):
        name = names[0]
        raise CheckpointError(
            f"{path} is of a training with {name} = {stored.get(name)}, now it is {now[name]}; give the same "
            "options to continue, or another --out"
        )
    return state


def write(out: Path, state: Mapping[str, Any], hint: str) -> None:
    """Keeps the state of a training in place of the one before.

    Raises:
        OutputError: It cannot be written; the one before stays, and the hint is what it is.
    """
    path = out / RESUME_FILE
    try:
        with whole_file(path) as file:
            torch.save(dict(state), file)
    except (OSError, RuntimeError) as error:  # torch 2.13 raises the latter when a write fails
        reason = str(error).splitlines()[0] if isinstance(error, OutputError) else f"cannot write {path}"
        raise OutputError(f"{reason}; {hint}; make room, the same command continues") from error


def finish(out: Path) -> None:
    """Removes the state of a training whose weights have been saved."""
    (out / RESUME_FILE).unlink(missing_ok=True)
