"""What checkpoints of all supernets share: a record beside the weights, fingerprints, quiet and repeatable loading."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qnas_plugin.errors import CheckpointError, door, quoted
from qnas_plugin.files import write_json
from qnas_plugin.files.doors import read_json
from qnas_plugin.space import SearchSpace
from qnas_plugin.supernets import Elastic

SUPERNET_FILE = "supernet.json"
SCHEMA_VERSION = 1
NAMED = 3
"""How many tensors an error names."""
_LARGEST, _DEEPEST = 2**24, 1000
"""A size that a configuration may name, and a number of layers."""


def fingerprint(model: nn.Module, space: SearchSpace) -> str:
    """Twelve hexadecimal digits of the weights and the space."""
    digest = hashlib.sha256(space.fingerprint.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def write_record(folder: Path, family: str, elastic: Elastic, training: Mapping[str, Any]) -> None:
    """Writes what a checkpoint is beside its weights."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "supernet": family,
        "elastic": asdict(elastic),
        "training": dict(training),
    }
    write_json(folder / SUPERNET_FILE, record)


def read_record(checkpoint: str, family: str) -> dict[str, Any] | None:
    """What ``Supernet.save`` wrote beside the weights; None for a plain Hugging Face checkpoint.

    Raises:
        CheckpointError: The file is malformed, newer than this program, or of another family.
    """
    path = Path(checkpoint) / SUPERNET_FILE
    if not path.is_file():
        return None
    remedy = "train again or restore the file"
    record = read_json(path, CheckpointError, remedy)
    with door(CheckpointError, f"{path} is damaged", remedy):
        version = int(record["schema_version"])
        if version > SCHEMA_VERSION:
            raise CheckpointError(
                f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; update it"
            )
        found, training = record["supernet"], record["training"]
        if not isinstance(training, dict):
            raise ValueError(f"'training' is {quoted(training)}")
        for name, choices in record["elastic"].items():
            if not all(type(choice) in (int, float) and 0 <= choice <= _LARGEST for choice in choices):
                raise ValueError(f"the choices for {name} are {quoted(choices)}")
        record["elastic"] = Elastic(**{name: tuple(choices) for name, choices in record["elastic"].items()})
    if found != family:
        raise CheckpointError(f"{checkpoint} is a '{found}' supernet, not '{family}'; use --supernet {found}")
    return record


def check_tensors(
    source: str | Path,
    missing: Mapping[str, str],
    unexpected: Iterable[str],
    *,
    is_head: Callable[[str], bool],
    may_be_new: bool,
) -> tuple[str, ...]:
    """Checks that weights are those of a model; only its head may be new, and then replaces another one.

    Args:
        source: Where the weights are.
        missing: Tensors of the model that were not found, each with what is wrong: ``of shape (2, 32) is missing``.
        unexpected: Tensors that the model does not have.
        is_head: Whether a tensor belongs to a head, of this model or of another one.
        may_be_new: Whether the head may be new.

    Returns:
        The missing tensors, all of the head.

    Raises:
        CheckpointError: Others are missing or unexpected; it names them.
    """
    wrong = [f"tensor '{name}' {what}" for name, what in missing.items() if not (may_be_new and is_head(name))]
    stray = [f"the model has no tensor '{name}'" for name in unexpected if not (missing and is_head(name))]
    if wrong or stray:
        shown = [*wrong[:NAMED], *stray[:NAMED]]
        more = len(wrong) + len(stray) - len(shown)
        raise CheckpointError(
            f"{source}: {', '.join(shown)}{f', and {more} more' if more else ''}; check config.json, or whether the "
            "file of weights is whole"
        )
    return tuple(missing)


def check_size(config: Any, build: Callable[[], nn.Module]) -> None:
    """Builds the model of a configuration without its weights, before its weights fill the memory.

    Args:
        config: As Hugging Face reads it.
        build: Makes the model.

    Raises:
        ValueError: A number is no size of a network, or the machine has not the memory for the weights.
    """
    for name, value in config.to_dict().items():
        most = _DEEPEST if "layers" in name or name == "depths" else _LARGEST
        numbers = value if isinstance(value, list | tuple) else [value]
        if wrong := [number for number in numbers if isinstance(number, int) and abs(number) > most]:
            raise ValueError(f"'{name}' is {quoted(wrong[0])}, allowed is up to {most}")
    with torch.device("meta"):
        needed = 4 * sum(tensor.numel() for tensor in build().parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(f"its weights take {needed / 1e9:.1f} GB, this machine has {memory / 1e9:.1f}")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps notes about new or unused heads, and retries of downloads, from the user; errors still raise."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    before = [(log, log.get_verbosity()) for log in (logging, hub)]
    for log, _ in before:
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, verbosity in before:
            log.set_verbosity(verbosity)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A fixed torch seed inside, the caller's random state after: a new head gets the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
